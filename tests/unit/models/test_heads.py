"""What holds of every model of `zoo/heads.py` and of towers of domains, whatever its formula."""

import dataclasses

import pytest
import torch
from torch import nn

from prismrec.config import UserError, dump, from_dict
from prismrec.config.models.heads import AITM, ESMM, STAR, PEPNet
from prismrec.models import Fields, Inputs, build_model
from tests.helpers.losses import global_mean_bce
from tests.unit.models.vectors import assert_close, axes

HIDDEN = (6, 5)
PRIOR = {"prior_set": "narrow", "domain_set": "small"}
SECTIONS = [
    ESMM(name="esmm", hidden=HIDDEN),
    ESMM(name="esmm", hidden=HIDDEN, norm="batch", domain_towers=True),
    AITM(name="aitm", hidden=HIDDEN, tower=(4,)),
    AITM(name="aitm", hidden=HIDDEN, transfer="shared", domain_towers=True),
    PEPNet(name="pepnet", hidden=HIDDEN, **PRIOR),
    PEPNet(
        name="pepnet", hidden=HIDDEN, norm="batch", gate_position="post", gate_hidden=4, **PRIOR
    ),
    STAR(name="star", hidden=HIDDEN),
    STAR(name="star", hidden=HIDDEN, norm="none", auxiliary_reads_features=False, dropout=0.1),
]
FIELDS = Fields(3, 2, (4, 8, 4), 3, (3, 2, 1), sets=("wide", "narrow", "small"))


def ids(section):
    return "-".join(
        map(str, section.model_dump(exclude={"hidden"}, exclude_defaults=True).values())
    )


def fields_for(section) -> Fields:
    return dataclasses.replace(FIELDS, num_domains=3 if section.reads_domain else 0)


def given(section, rows: int = 9, dtype=torch.float64) -> Inputs:
    torch.manual_seed(2)
    sets = [
        torch.randn(rows, n, d, dtype=dtype)
        for n, d in zip(FIELDS.set_fields, FIELDS.set_dims, strict=True)
    ]
    domain = torch.arange(rows) % 3 if section.reads_domain else None
    return Inputs(sets, None, torch.randn(rows, 2, dtype=dtype), domain)


def built(section) -> nn.Module:
    torch.manual_seed(1)
    return build_model(section, fields_for(section))


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_every_parameter_gets_a_gradient_whatever_rows_there_are(section):
    model, example = built(section).double(), given(section)
    if example.domain is not None:
        example = dataclasses.replace(example, domain=torch.zeros_like(example.domain))
    leaves = [each.requires_grad_() for each in example.sets]
    logits, auxiliary = model(example)
    assert logits.shape == (9, 3)
    ones, valid = torch.ones(9, 3), torch.ones(9, 3)
    valid[:, 1:] = 0
    total, _ = global_mean_bce(logits, 0 * ones, valid, ones, torch.ones(3))
    (total + sum(auxiliary.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    read_by_towers = [x.grad.abs().max() > 0 for x in leaves]
    assert all(read_by_towers[: 1 if section.name == "pepnet" else 3])


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_export_with_a_dynamic_batch_gives_the_eager_logits(section):
    model = built(section).double().eval()
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    shapes = {"inputs": axes(given(section), {0: batch})}
    program = torch.export.export(model, (given(section),), dynamic_shapes=shapes)
    for rows in (1, 7, 32):
        example = given(section, rows)
        assert_close(program.module()(example)[0], model(example)[0])


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_bfloat16_autocast_stays_near_float32(section):
    model = built(section).eval()
    example = given(section, 64, torch.float32)
    exact = model(example)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(example)[0]
        rounded.sum().backward()
    assert rounded.dtype == torch.float32
    assert (rounded != rounded.bfloat16().float()).any()
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.08)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_every_model_learns_a_small_set_of_rows(section):
    model = built(section)
    rows = torch.randint(0, 20, (64, 3))
    tables = [nn.Parameter(0.1 * torch.randn(20, d)) for d in FIELDS.set_dims]
    labels = (torch.rand(64, 3) > 0.4).float().cumprod(1)
    dense, ones = torch.randn(64, 2), torch.ones(64, 3)
    domain = torch.arange(64) % 3 if section.reads_domain else None
    optimizer = torch.optim.Adam([*model.parameters(), *tables], 0.02)
    losses = []
    for _ in range(60):
        sets = [t[rows[:, :n]] for t, n in zip(tables, FIELDS.set_fields, strict=True)]
        logits, _ = model(Inputs(sets, None, dense, domain))
        total, _ = global_mean_bce(logits, labels, ones, ones, torch.ones(3))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("section", [SECTIONS[1], SECTIONS[3]], ids=ids)
def test_towers_of_domains_are_trained_by_their_own_rows(section):
    model, example = built(section).double(), given(section)
    model(example)[0][example.domain == 1].sum().backward()
    for name, parameter in model.towers.named_parameters():
        assert parameter.grad[1].any(), name
        assert not parameter.grad[[0, 2]].any(), name


def recipe(**model):
    tree = {
        "name": "r",
        "data": {"path": "x"},
        "features": {"sparse": ["user", "item"], "domain": "tab"},
        "embedding": {"sets": [{"name": "main", "dim": 8}, {"name": "prior", "dim": 4}]},
        "model": model,
        "tasks": model.pop("tasks", [{"name": n, "label": n} for n in ("click", "buy")]),
    }
    return from_dict(tree)


@pytest.mark.parametrize("name", ["esmm", "aitm", "star", "pepnet"])
def test_a_recipe_in_full_is_the_recipe(name):
    chosen = recipe(name=name, **({"prior_set": "prior"} if name == "pepnet" else {}))
    assert from_dict(dump(chosen)) == chosen


def test_recipes_name_the_sets_of_a_pepnet():
    section = recipe(name="pepnet", prior_set="prior")
    assert section.model.prior_set == "prior"
    for wrong, message in (
        ({"prior_set": "prio"}, r"model.prior_set: no set is called 'prio'; .*'prior'"),
        ({"prior_set": "prior", "domain_set": "prior"}, "model.domain_set: is the prior_set too"),
        ({"prior_set": "prior", "domain_set": "main"}, "embedding.sets: every set is named as the"),
        ({"prior_set": "prior", "merge": "gate"}, "model.merge: unknown"),
    ):
        with pytest.raises(UserError, match=message):
            recipe(name="pepnet", **wrong)


@pytest.mark.parametrize("name", ["esmm", "aitm"])
def test_a_chain_needs_tasks_with_one_logit_each(name):
    assert recipe(name=name).model.name == name
    with pytest.raises(UserError, match=f"tasks: '{name}' takes tasks one after another and needs"):
        recipe(name=name, tasks=[{"name": "click", "label": "click"}])
    jrc = {"name": "buy", "label": "buy", "loss": {"name": "jrc"}}
    with pytest.raises(UserError, match=rf"tasks\[1\].loss: 'jrc' needs a second logit .*'{name}'"):
        recipe(name=name, tasks=[{"name": "click", "label": "click"}, jrc])


def test_domains_are_read_where_something_tells_them_apart():
    assert not recipe(name="esmm").reads_domain
    assert recipe(name="esmm", domain_towers=True).reads_domain
    assert recipe(name="star").reads_domain
    assert recipe(name="star").raw_columns == ["user", "item", "tab"]
