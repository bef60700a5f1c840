"""Models over sets of different width that cover different numbers of fields."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.config import UserError
from prismrec.config.models import BUILT_IN
from prismrec.config.models.single import DCNv2
from prismrec.models import Fields, Inputs, build_model, needs_linear
from tests.helpers.losses import global_mean_bce
from tests.unit.models.vectors import assert_close, axes

HIDDEN = (6, 5)
AME = Fields(num_sparse=4, num_dense=2, set_dims=(8, 4, 4, 4), num_tasks=2, set_fields=(4, 2, 4, 2))
"""Sets 1 and 3 have one shape, whichever two of the four fields each of them covers."""
MERGES = ("mean", "gate", "concat")


def inputs(fields: Fields, batch: int = 7) -> tuple[list[Tensor], Tensor, Tensor]:
    torch.manual_seed(2)
    draw = {"dtype": torch.float64}
    sets = [
        torch.randn(batch, count, dim, **draw)
        for count, dim in zip(fields.set_fields, fields.set_dims, strict=True)
    ]
    linear = torch.randn(batch, fields.num_sparse, fields.num_tasks, **draw)
    return sets, linear, torch.randn(batch, fields.num_dense, **draw)


def built(section, fields: Fields) -> nn.Module:
    torch.manual_seed(1)
    model = build_model(section, fields).double()
    for name, parameter in model.named_parameters():
        if ".gate.scores.weight" in name:  # off its uniform start
            nn.init.normal_(parameter, std=0.3)
    return model


class OneByOne:
    """A stacked DCN-v2 with one hidden layer, taken apart: each set's weights, by plain products."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.branch = model, model.branches[0]
        self.layer = getattr(self.branch, "extraction", None) and self.branch.extraction.layers[0]
        self.experts = (self.layer or self.branch).experts
        self.at = {
            expert: (group, row if len(plan.experts) > 1 else None)
            for plan, group in zip(self.experts.plans, self.experts.groups, strict=True)
            for row, expert in enumerate(plan.experts)
        }

    def flat(self, m: int, sets: list[Tensor], dense: Tensor) -> Tensor:
        vectors = dense[:, :, None] * self.model.numeric[str(m)].weight
        return torch.cat([sets[m].flatten(1), vectors.flatten(1)], 1)

    def expert(self, m: int, x0: Tensor) -> Tensor:
        group, row = self.at[m]
        own = (lambda p: p) if row is None else (lambda p: p[row])
        x = x0
        for layer in group.interactions[0].layers:
            x = x0 * (x @ own(layer.weight).T + own(layer.bias)) + x
        linear, norm = group.projection.linears[0], group.projection.norms[0]
        x = F.layer_norm(x @ own(linear.weight).T + own(linear.bias), (HIDDEN[0],))
        return F.relu(x * own(norm.weight) + own(norm.bias))

    def gates(self, flats: list[Tensor]) -> Tensor:
        parts = []
        gate = self.layer.gate
        for stack, projection in zip(gate.context.groups, gate.context.projections, strict=True):
            linear, norm = projection
            for row, m in enumerate(stack):
                own = (lambda p, row=row: p[row]) if len(stack) > 1 else (lambda p: p)
                part = F.layer_norm(flats[m] @ own(linear.weight).T, (64,))
                parts.append(part * own(norm.weight) + own(norm.bias))
        scores = torch.cat(parts, 1) @ gate.scores.weight.T
        gates = torch.softmax(scores.view(len(scores), -1, len(flats)), -1)
        return gates[..., [self.experts.order.index(m) for m in range(len(flats))]]


@pytest.mark.parametrize("merge", MERGES)
def test_sets_of_any_shape_equal_one_expert_at_a_time(merge: str) -> None:
    section = DCNv2(name="dcnv2", hidden=HIDDEN, structure="stacked", merge="mean")
    model = built(section.model_copy(update={"merge": merge}), AME)
    sets, _, dense = inputs(AME)
    plain = OneByOne(model)
    assert [plan.set_indices for plan in plain.experts.plans] == [(0,), (1, 3), (2,)]
    flats = [plain.flat(m, sets, dense) for m in range(4)]
    assert [x.shape[1] for x in flats] == [48, 16, 24, 16]
    experts = [plain.expert(m, x) for m, x in enumerate(flats)]
    tower = plain.branch.tower
    logits = model(Inputs(sets, None, dense))[0]
    if merge == "concat":
        merged = torch.cat(experts, 1)
    elif merge == "mean":
        merged = sum(experts) / 4
    else:
        gates = plain.gates(flats)
        assert (gates - 0.25).abs().max() > 0.01
        for task in range(2):
            merged = sum(gates[:, task, m, None] * experts[m] for m in range(4))
            linear, norm = tower.body.linears[0], tower.body.norms[0]
            h = F.layer_norm(merged @ linear.weight[task].T + linear.bias[task], (HIDDEN[1],))
            h = F.relu(h * norm.weight[task] + norm.bias[task])
            assert_close(logits[:, task], (h @ tower.head.weight[task].T).flatten())
        return
    linear, norm = tower.body.linears[0], tower.body.norms[0]
    h = F.layer_norm(merged @ linear.weight.T + linear.bias, (HIDDEN[1],))
    h = F.relu(h * norm.weight + norm.bias)
    assert_close(logits, h @ tower.head.weight.T)


SECTIONS = [
    BUILT_IN["fm"](name="fm", projection=5),
    *(
        BUILT_IN[name](name=name, hidden=HIDDEN)
        for name in ("dnn", "wide_deep", "deepfm", "dcn", "dcnv2")
    ),
    DCNv2(name="dcnv2", hidden=HIDDEN, structure="stacked"),
]


@pytest.mark.parametrize("merge", MERGES[:2])
@pytest.mark.parametrize("section", SECTIONS, ids=lambda each: each.name)
def test_every_parameter_and_every_set_gets_a_gradient(section, merge: str) -> None:
    model = built(section.model_copy(update={"merge": merge}), AME)
    sets, linear, dense = inputs(AME)
    leaves = [x.requires_grad_() for x in sets]
    logits, _ = model(Inputs(sets, linear if needs_linear(section) else None, dense))
    ones = torch.ones(7, 2)
    total, _ = global_mean_bce(logits, 0 * ones, ones, ones, torch.ones(2))
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all((x.grad != 0).any(-1).all() for x in leaves), "every field of every set moves"


@pytest.mark.parametrize("merge", MERGES[:2])
@pytest.mark.parametrize("section", SECTIONS, ids=lambda each: each.name)
def test_export_with_a_dynamic_batch_gives_the_eager_logits(section, merge: str) -> None:
    model = built(section.model_copy(update={"merge": merge}), AME).eval()
    wide = needs_linear(section)
    axis = {0: torch.export.Dim("batch", min=1, max=1 << 20)}

    def example(batch: int) -> tuple[Inputs]:
        sets, linear, dense = inputs(AME, batch)
        return (Inputs(sets, linear if wide else None, dense),)

    shapes = {"inputs": axes(*example(7), axis)}
    program = torch.export.export(model, example(7), dynamic_shapes=shapes)
    for rows in (1, 33):
        assert_close(program.module()(*example(rows))[0], model(*example(rows))[0])


def test_a_set_of_one_field_has_no_pairs() -> None:
    fields = Fields(3, 0, (4, 4), 1, set_fields=(3, 1))
    with pytest.raises(UserError, match=r"'fm' multiplies pairs .* set 1 has a single one"):
        build_model(BUILT_IN["fm"](name="fm"), fields)
    assert build_model(BUILT_IN["deepfm"](name="deepfm", hidden=HIDDEN), fields) is not None
    numeric = Fields(3, 1, (4, 4), 1, set_fields=(3, 1))
    assert build_model(BUILT_IN["fm"](name="fm"), numeric) is not None, "a numeric column pairs too"
