"""D-Train through the real loop: what stands still, what goes on, on one rank and on two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prismrec.checkpoint.reader import CheckpointReader
from prismrec.config import UserError
from tests.helpers.runs import Start, Trained, alone, make_recipe, train_on, write_rows

SPLIT, FREEZE, STEPS = 6, 11, 16
MODEL = "model={name='aitm', hidden=[8, 8], tower=[4], domain_towers=true, norm='batch'%s}"
PHASES = (
    "features.domain='tab'",
    f"train.phases={{steps=[{SPLIT}, {FREEZE - SPLIT}]}}",
    "train.optimizer={name='adamw', learning_rate=0.01, weight_decay=0.01}",
    "train.clip_norm=5.0",
    f"train.steps={STEPS}",
)
TEMPERED = ("train.domain_reduction='tempered'", "train.domain_temperature=0.3")
PLAIN = (MODEL % "", *PHASES, *TEMPERED)
WORLDS = {
    "plain": PLAIN,
    "star": (
        "model={name='star', hidden=[8], domain_dim=4}",
        "features.domain='tab'",
        f"train.steps={STEPS}",
        "train.domain_reduction='per_domain_mean'",
    ),
}
"""The same on any number of ranks."""
EVERYTHING = (MODEL % ", dropout=0.2", *PHASES, "train.ema_decay=0.9")
"""Everything that has a state of its own."""
MIXED = (
    "embedding.tables.user={layout='separate', sharding='row_wise'}",
    "embedding.tables.tags={sharding='data_parallel'}",
    "embedding.tables.item={optimizer={name='rowwise_adagrad', learning_rate=0.02}, layout='separate'}",
)
SAVED = ("checkpoint.every_steps=1", "checkpoint.keep_last=20")
STOPS = (3, SPLIT, 9, FREEZE, 13)
"""Within every phase, and at both of their edges."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("phases") / "rows")


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Trained]:
    place = data.parent

    def start(name: str, directory: str, *changes: str) -> tuple[str, Start]:
        return name, Start(make_recipe(data, *changes), place / directory, name.replace(" ", "-"))

    one, two = (
        [start(f"{name} {n}", f"{name}-{n}", *changes) for name, changes in WORLDS.items()]
        for n in (1, 2)
    )
    two += [
        start("whole", "whole", *EVERYTHING, *MIXED, *SAVED),
    ]
    for stop in STOPS:
        short = f"train.steps={stop}"
        two.append(start(f"begun {stop}", f"resumed-{stop}", *EVERYTHING, *MIXED, short))
        two.append(start(f"resumed {stop}", f"resumed-{stop}", *EVERYTHING, *MIXED))
    found = [*alone([each for _, each in one]), *train_on(2, [each for _, each in two])]
    return dict(zip([name for name, _ in [*one, *two]], found, strict=True))


def stored(run: Trained, step: int) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, by a name."""
    found = {}
    with CheckpointReader(run.checkpoint.parent / f"step-{step:08d}") as reader:
        for key, entry in reader.manifest.tables.items():
            table, name = key.split("/")
            for kind in entry.tensors:
                found[f"table {key}/{kind}"] = reader.table(table, name, kind)
        for group in ("dense", "dense_optimizer"):
            found |= {f"{group} {name}": each for name, each in reader.dense(group).items()}
    return found


def is_head(name: str) -> bool:
    return "towers." in name


def test_nothing_but_heads_moves_once_the_backbone_is_frozen(runs: dict[str, Trained]) -> None:
    before, after = (stored(runs["whole"], step) for step in (FREEZE, STEPS))
    assert before.keys() == after.keys()
    assert sum(name.startswith("table ") for name in before) >= 12
    assert any("running_mean" in name for name in before)
    for name, tensor in before.items():
        stands = torch.equal(tensor, after[name])
        if not is_head(name):
            assert stands, name
        elif "heads" not in name:
            assert not stands, name
    earlier = stored(runs["whole"], SPLIT)
    for name in before:
        if not is_head(name) and "accumulator" not in name:
            assert not torch.equal(earlier[name], before[name]), name


def test_one_head_is_trained_until_they_are_split(runs: dict[str, Trained]) -> None:
    first, last = (stored(runs["whole"], step) for step in (1, SPLIT))
    head = "dense model.towers.head.weight"
    assert last["dense model.towers.of_domain.heads"].tolist() == [0, 0, 0]
    assert (last[head][0] != first[head][0]).all()
    moments = last["dense_optimizer model.towers.head.weight/exp_avg"]
    assert moments[0].any()
    assert not moments[1:].any()
    after = stored(runs["whole"], SPLIT + 1)
    assert after["dense model.towers.of_domain.heads"].tolist() == [0, 1, 2]
    assert after["dense_optimizer model.towers.head.weight/step"] == 1
    assert after["dense_optimizer model.bottoms.linears.0.weight/step"] == SPLIT + 1
    # A first step of Adam is at most the learning rate long.
    weight = after[head]
    assert (weight - last[head][:1]).abs().max() < 0.0101
    assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize("name", WORLDS)
def test_losses_do_not_depend_on_the_number_of_ranks(runs: dict[str, Trained], name: str) -> None:
    one, two = runs[f"{name} 1"], runs[f"{name} 2"]
    assert len(one.losses) == STEPS
    np.testing.assert_allclose(two.losses, one.losses, rtol=2e-5)
    for metric in ("click/logloss", "buy/logloss"):
        assert two.metrics[metric] == pytest.approx(one.metrics[metric], rel=1e-4)
    assert ("train/phase" in two.log) == (name == "plain")


def test_a_run_tells_its_phase(runs: dict[str, Trained]) -> None:
    phases = list(runs["plain 2"].log["train/phase"].values())
    assert phases == [1] * SPLIT + [2] * (FREEZE - SPLIT) + [3] * (STEPS - FREEZE)


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_goes_on_in_the_phase_of_its_step(runs: dict[str, Trained], stop: int) -> None:
    losses = [*runs[f"begun {stop}"].losses, *runs[f"resumed {stop}"].losses]
    assert losses == runs["whole"].losses
    assert str(runs[f"resumed {stop}"].metrics) == str(runs["whole"].metrics)


def test_a_checkpoint_of_any_phase_is_judged_by_the_heads_that_it_has(
    runs: dict[str, Trained],
) -> None:
    assert runs["begun 3"].metrics["click/logloss"] != runs["whole"].metrics["click/logloss"]


def test_phases_that_have_moved_are_refused(data: Path, runs: dict[str, Trained]) -> None:
    later = f"train.phases={{steps=[{STEPS + 2}, 1]}}"
    recipe = make_recipe(data, *PLAIN, later, f"train.steps={STEPS + 4}")
    with pytest.raises(UserError, match=f"train.phases: at step {STEPS} the heads are to be one"):
        alone([Start(recipe, data.parent / "plain-1", "moved")])
