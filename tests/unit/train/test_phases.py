"""D-Train: the split, the optimizer that starts anew, and heads that train apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prismrec.config import UserError
from prismrec.config.train import Phases
from prismrec.data.source import open_data
from prismrec.models import Inputs, spec_of
from prismrec.models.domains import DomainTowers
from prismrec.models.layers import MLPSpec
from prismrec.models.objectives import binary_cross_entropy
from prismrec.train.phases import PhasePlan
from prismrec.train.process_group import process_group
from prismrec.train.sharding import ShardedModel, shard_model
from tests.helpers.runs import make_recipe, write_rows

MODEL = "model={name='aitm', hidden=[8], domain_towers=true, norm='batch', dropout=0.2}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("phases") / "rows", {"train": 32})


def sharded_model(ranks, data: Path, *changes: str) -> ShardedModel:
    recipe = make_recipe(data, MODEL, "features.domain='tab'", "train.ema_decay=0.9", *changes)
    spec = spec_of(recipe, open_data(data).schema)
    return shard_model(recipe, spec, ranks, is_bf16=False, total_steps=10)


def towers_of(sharded: ShardedModel) -> DomainTowers:
    return sharded.leaf.ranker.model.towers


@pytest.mark.parametrize("rule", ["adam", "adagrad"])
def test_heads_are_born_alike_and_their_optimizer_anew(data: Path, rule: str) -> None:
    with process_group("cpu") as ranks:
        sharded = sharded_model(ranks, data, f"train.optimizer.name={rule}")
        towers = towers_of(sharded)
        plan = PhasePlan(Phases(steps=(3, 4)), 10, sharded)
        plan.before(0)
        assert towers.of_domain.heads.tolist() == [0, 0, 0]
        torch.manual_seed(0)
        for each in sharded.dense_optimizer().values():
            each.uniform_(1, 2)
        for each in (*sharded.names, *sharded.averages().values()):
            each.data.normal_()
        kept = {name: each.clone() for name, each in sharded.dense().items()}
        plan.before(2)
        assert towers.of_domain.heads.tolist() == [0, 0, 0]
        plan.before(3)
        assert plan.metrics() == {"train/phase": 2.0}
        assert towers.of_domain.heads.tolist() == [0, 1, 2]
        held = {**{f"average {n}": a for n, a in sharded.averages().items()}, **sharded.dense()}
        for name, each in held.items():
            if "towers." in name and not name.endswith("heads"):
                assert torch.equal(each, each[:1].expand_as(each)), name
            if name in kept and "towers." in name and not name.endswith("heads"):
                assert torch.equal(each[0], kept[name][0]), name
        for name, each in sharded.dense_optimizer().items():
            assert bool(each.any()) != ("towers." in name), name
        for parameter in towers.parameters():
            parameter.data.normal_()
        drawn = [each.clone() for each in towers.parameters()]
        plan.before(4)
        assert all(torch.equal(a, b) for a, b in zip(drawn, towers.parameters(), strict=True))


def test_a_frozen_backbone_stays_in_evaluation_and_gets_gradients_of_zero(data: Path) -> None:
    with process_group("cpu") as ranks:
        sharded = sharded_model(ranks, data)
        plan = PhasePlan(Phases(steps=(0, 0)), 10, sharded)
        plan.before(0)
        towers, ranker = towers_of(sharded), sharded.leaf.ranker
        assert towers.of_domain.heads.tolist() == [0, 1, 2]  # split, though no step was before
        inside = set(towers.modules())
        for mode in (True, False, True):
            ranker.train(mode)
            for module in ranker.model.modules():
                assert module.training == (mode and module in inside)
        sets = [torch.randn(6, 4, d, requires_grad=True) for d in (8, 4)]
        inputs = Inputs(sets, None, torch.randn(6, 2), torch.arange(6) % 3)
        logits, _ = ranker._without_gradients(inputs)
        logits.sum().backward()
        heads = set(towers.parameters())
        for name, parameter in ranker.model.named_parameters():
            assert bool(parameter.grad.any()) == (parameter in heads), name
        assert all(each.grad is None for each in sets)
        for parameter in sharded.optimizers.frozen:
            sharded.plain[0].state[parameter]["exp_avg"] = torch.ones_like(parameter)
        before = [each.detach().clone() for each in sharded.optimizers.frozen]
        assert len(before) + len(heads) == len(sharded.names)
        sharded.optimizers.step()
        for then, now in zip(before, sharded.optimizers.frozen, strict=True):
            assert torch.equal(then, now)


def test_a_head_trains_as_if_there_were_no_other_domains() -> None:
    """By the mean of each domain, and from vectors that stand still."""
    torch.manual_seed(0)
    h, domain = torch.randn(40, 1, 5).double(), torch.arange(40) % 4
    labels = (torch.rand(40, 2) > 0.5).double()

    def trained(rows: torch.Tensor) -> DomainTowers:
        torch.manual_seed(1)
        towers = DomainTowers(5, MLPSpec((6,), norm="batch"), 2, 4).double()
        optimizer = torch.optim.Adam(towers.parameters(), 0.05)
        for _ in range(5):
            logits = towers(h[rows], Inputs([], None, h[rows, 0], domain[rows]))
            losses = binary_cross_entropy(logits, labels[rows])
            total = sum(losses[domain[rows] == s].mean() for s in domain[rows].unique())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        return towers

    together, alone = trained(torch.arange(40)), trained((domain == 2).nonzero().squeeze(1))
    for name, tensor in together.state_dict().items():
        if not name.endswith("heads"):
            torch.testing.assert_close(tensor[2], alone.state_dict()[name][2], rtol=0, atol=1e-12)
            assert (tensor[1] - alone.state_dict()[name][1]).abs().max() > 1e-3, name


def test_a_model_without_heads_of_domains_has_no_phases(data: Path) -> None:
    with pytest.raises(
        UserError, match="train.phases: the phases are about a head for each domain"
    ):
        make_recipe(data, "train.phases={}")
    with pytest.raises(UserError, match="train.phases: the phases are about"):
        make_recipe(data, "model={name='esmm'}", "train.phases={}")
    with process_group("cpu") as ranks:
        sharded = sharded_model(ranks, data, "model.domain_towers=false")
        with pytest.raises(UserError, match="train.phases: the model has no towers of domains"):
            PhasePlan(Phases(), 10, sharded)
        assert PhasePlan(None, 10, sharded).metrics() == {}


def test_phases_take_shares_of_the_run_or_steps() -> None:
    assert Phases().starts(1000) == (600, 900)
    assert Phases(shares=(0.0, 1.0, 0.0)).starts(7) == (0, 7)
    assert Phases(steps=(5, 0)).starts(7) == (5, 5)
    for wrong in ((0.5, 0.6, 0.1), (1.2, -0.2, 0.0)):
        with pytest.raises(ValueError, match="three shares from 0 to 1 that add up to 1"):
            Phases(shares=wrong)
    with pytest.raises(ValueError, match="numbers of steps are 0 or more"):
        Phases(steps=(-1, 2))
