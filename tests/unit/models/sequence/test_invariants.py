"""What every sequence module keeps to: padding, empty histories, other rows, copies, order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prismrec.embeddings.jagged import from_padded, newest_first, to_padded
from prismrec.models.sequence import (
    DARESpec,
    DINSpec,
    Order,
    SequenceSpec,
    TemporalSpec,
    TIMSpec,
)
from tests.unit.models.sequence.fixture import WIDTHS, batch, drawn, order
from tests.unit.models.vectors import assert_close, copy_of

BOTH = TemporalSpec("both")
NO_TIME = TemporalSpec("none")
SPECS: dict[str, SequenceSpec] = {
    "tim": TIMSpec(BOTH),
    "tim-concat": TIMSpec(TemporalSpec("both", "concat", 2)),
    "tim-interval": TIMSpec(TemporalSpec("interval")),
    "tim-no-time": TIMSpec(NO_TIME),
    "tim-no-attention": TIMSpec(BOTH, attention=False),
    "tim-no-representation": TIMSpec(BOTH, representation=False),
    "tim-official": TIMSpec(BOTH, readout="official"),
    "din": DINSpec((3, 2)),
    "din-sum": DINSpec((3, 2), "prelu", "sum"),
    "din-dice": DINSpec((3, 2), "dice"),
    "dare": DARESpec(NO_TIME),
    "dare-time": DARESpec(TemporalSpec("both", "concat", 2)),
    "dare-keep": DARESpec(BOTH, keep=2),
}
LENGTHS = [3, 0, 1, 5]


def _attention(where: Order, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)

    def draw(count: int) -> Tensor:
        return torch.randn(count, 2, generator=generator, dtype=torch.double).requires_grad_()

    return draw(len(where.positions)), draw(rows)


def _call(name: str, module: nn.Module, parts: tuple[Any, ...], pair: Any = None) -> Tensor:
    return module(*parts, pair) if name.startswith("dare") else module(*parts)


def _module(name: str, copies: int | None = None) -> nn.Module:
    return drawn(SPECS[name].build(WIDTHS, copies)).eval()


@pytest.mark.parametrize("name", SPECS)
def test_the_width_is_as_announced_and_all_weights_learn(name: str) -> None:
    module = _module(name)
    parts = batch(LENGTHS)
    pair = _attention(parts[2], 4)
    out = _call(name, module, parts, pair)
    assert out.shape == (4, module.out_dim)
    out.square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", SPECS)
def test_no_history_at_all_leaves_every_weight_a_gradient_and_no_nan(name: str) -> None:
    module = _module(name).train()
    behaviours, targets, where = batch([0, 0])
    pair = _attention(where, 2)
    out = _call(name, module, (behaviours, targets, where), pair)
    assert out.isfinite().all()
    out.square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert behaviours.grad is not None  # an empty one: the tables' backward runs on every rank
    if name.startswith("dare"):
        assert pair[0].grad is not None


@pytest.mark.parametrize("name", SPECS)
def test_an_empty_history_gives_zero_interest_and_touches_nobody(name: str) -> None:
    module = _module(name)
    behaviours, targets, where = batch(LENGTHS)
    pair = _attention(where, 4)
    out = _call(name, module, (behaviours, targets, where), pair)
    width = 4 if name.startswith("din") else module.temporal.width
    if name != "tim-official":  # there a projection has the last word
        assert not out[1, :width].any()
    grads = torch.autograd.grad(out[1].sum(), behaviours, allow_unused=True)[0]
    assert grads is None or not grads.any()
    rest = [0, 2, 3]
    fewer = Order(where.offsets[[0, 1, 3, 4]], where.positions, where.intervals)
    shorter = _call(name, module, (behaviours, targets[rest], fewer), (pair[0], pair[1][rest]))
    assert_close(out[rest], shorter, 1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_other_rows_do_not_matter(name: str) -> None:
    module = _module(name)
    behaviours, targets, where = batch(LENGTHS)
    pair = _attention(where, 4)
    out = _call(name, module, (behaviours, targets, where), pair)
    for row, (start, stop) in enumerate(
        zip(where.offsets[:-1].tolist(), where.offsets[1:].tolist(), strict=True)
    ):
        intervals = where.intervals[start:stop]
        alone = order([stop - start], intervals)
        of_row = slice(row, row + 1)
        parts = (behaviours[start:stop], targets[of_row], alone)
        single = _call(name, module, parts, (pair[0][start:stop], pair[1][of_row]))
        assert_close(single[0], out[row], 1e-12)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_any_content_on_either_side_changes_nothing(name: str, side: str) -> None:
    module = _module(name)
    behaviours, targets, where = batch(LENGTHS)
    pair = _attention(where, 4)
    expected = _call(name, module, (behaviours, targets, where), pair)
    padded = []
    for values in (behaviours, where.intervals.double().unsqueeze(1), pair[0]):
        rows, mask = to_padded(values, where.offsets, 6)
        if side == "left":  # to the left edge of a wider row, oldest first as before
            shift = (6 - mask.sum(1)).tolist()
            rows = torch.stack([row.roll(by, 0) for row, by in zip(rows, shift, strict=True)])
            mask = mask.flip(1)
        padded.append(torch.where(mask.unsqueeze(-1), rows, 7.0))
    found, offsets = from_padded(padded[0], mask)
    intervals = from_padded(padded[1], mask)[0][:, 0].long()
    again = Order(offsets, newest_first(offsets, len(found)), intervals)
    parts = (found, targets, again)
    assert_close(_call(name, module, parts, (from_padded(padded[2], mask)[0], pair[1])), expected)


@pytest.mark.parametrize("name", SPECS)
def test_copies_are_independent_modules(name: str) -> None:
    stacked = _module(name, copies=2)
    behaviours, targets, where = batch(LENGTHS, copies=2)
    pair = _attention(where, 4)
    out = _call(name, stacked, (behaviours, targets, where), pair)
    assert out.shape == (2, 4, stacked.out_dim)
    for m in range(2):
        single = _module(name)
        own = {
            key: value if key.startswith("of_attention") else value[m]
            for key, value in stacked.state_dict().items()
        }
        if name.startswith("dare"):
            single.load_state_dict(own)
        else:
            copy_of(stacked, single, m)
        assert_close(_call(name, single, (behaviours[m], targets[m], where), pair), out[m])


@pytest.mark.parametrize("name", SPECS)
def test_gradients_by_finite_differences(name: str) -> None:
    module = _module(name)
    behaviours, targets, where = batch([2, 0, 1])
    pair = _attention(where, 3)

    def of(*tensors: Tensor) -> Tensor:
        return _call(name, module, (*tensors[:2], where), tensors[2:])

    assert torch.autograd.gradcheck(of, (behaviours, targets, *pair))


@pytest.mark.parametrize("name", [n for n in SPECS if n != "dare-keep"])
def test_a_single_behaviour_has_all_the_weight(name: str) -> None:
    module = _module(name)
    behaviours, targets, where = batch([1])
    out = _call(name, module, (behaviours, targets, where), _attention(where, 1))
    if name.startswith("din"):
        score = module.logits(behaviours, targets, where) if name == "din-sum" else 1
        assert_close(out[:, :4], behaviours * score, 1e-12)
    elif name.startswith("dare"):
        assert_close(
            out[:, : module.temporal.width], module.temporal(behaviours, targets, where)[0]
        )
    elif name != "tim-official":
        encoded, target = module.temporal(behaviours, targets, where)
        rest = target if module.representation else 1
        assert_close(out[:, : module.temporal.width], encoded * rest, 1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_the_order_matters_where_position_is_encoded_and_nowhere_else(name: str) -> None:
    module = _module(name)
    behaviours, targets, where = batch([4])
    pair = _attention(where, 1)
    index = [2, 0, 3, 1]
    moved = Order(where.offsets, where.positions, where.intervals[index])
    out = _call(name, module, (behaviours, targets, where), pair)
    again = _call(name, module, (behaviours[index], targets, moved), (pair[0][index], pair[1]))
    # An average of what was added does not know to whom.
    has_none = ("tim-interval", "tim-no-time", "tim-no-attention", "dare")
    has_positions = name not in has_none and "din" not in name
    assert torch.allclose(out, again, atol=1e-9) != has_positions


def test_order_does_not_matter_where_all_positions_have_one_vector() -> None:
    module = _module("tim")
    with torch.no_grad():
        module.temporal.positions[1:] = module.temporal.positions[1].clone()
    behaviours, targets, where = batch([4])
    index = [2, 0, 3, 1]
    moved = Order(where.offsets, where.positions, where.intervals[index])
    assert_close(module(behaviours[index], targets, moved), module(behaviours, targets, where))


@pytest.mark.parametrize("name", SPECS)
def test_bf16_inputs_are_summed_in_float32(name: str) -> None:
    module = _module(name).float()
    behaviours, targets, where = batch(LENGTHS)
    pair = _attention(where, 4)
    exact = _call(
        name, module, (behaviours.float(), targets.float(), where), tuple(p.float() for p in pair)
    )
    with torch.autocast("cpu", torch.bfloat16):
        rounded = _call(
            name,
            module,
            (behaviours.bfloat16(), targets.bfloat16(), where),
            tuple(p.bfloat16() for p in pair),
        )
    torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=6e-2)


def test_a_target_of_zeros_has_no_interest() -> None:
    module = _module("tim-no-time")
    behaviours, targets, where = batch([3])
    assert not module(behaviours, torch.zeros_like(targets), where).any()


def test_dare_on_one_set_is_tim_without_time_to_the_bit() -> None:
    behaviours, targets, where = batch([3, 0, 4])
    widths = WIDTHS.__class__(4, attention=4)
    dare = DARESpec(NO_TIME).build(widths).double()
    tim = TIMSpec(NO_TIME).build(widths).double()
    out = dare(behaviours, targets, where, (behaviours, targets))
    assert torch.equal(out[:, 4:], tim(behaviours, targets, where)[:, :4])


def test_dare_on_one_set_with_positions_is_tim() -> None:
    behaviours, targets, where = batch([3, 0, 4])
    widths = WIDTHS.__class__(4, attention=4, positions=3)
    tim = drawn(TIMSpec(TemporalSpec("position")).build(widths))
    dare = DARESpec(TemporalSpec("position")).build(widths).double()
    with torch.no_grad():
        for table in (dare.of_attention.positions, dare.temporal.positions):
            table.copy_(tim.temporal.positions)
    out = dare(behaviours, targets, where, (behaviours, targets))
    assert_close(out[:, 4:], tim(behaviours, targets, where)[:, :4])


def test_the_attention_of_dare_learns_nothing_from_a_single_behaviour() -> None:
    behaviours, targets, where = batch([1, 1])
    pair = _attention(where, 2)
    _module("dare")(behaviours, targets, where, pair).square().sum().backward()
    assert not pair[0].grad.any()
    assert not pair[1].grad.any()


def test_behaviours_that_are_not_kept_get_no_gradient() -> None:
    behaviours, targets, where = batch([5])
    pair = _attention(where, 1)
    module = drawn(DARESpec(NO_TIME, keep=2).build(WIDTHS))
    logits = module.logits(behaviours, targets, where, pair)
    module(behaviours, targets, where, pair).square().sum().backward()
    kept = set(logits.topk(2).indices.tolist())
    for j in range(5):
        assert bool(behaviours.grad[j].any()) == (j in kept)
        assert bool(pair[0].grad[j].any()) == (j in kept)


def test_dare_without_a_set_for_its_attention() -> None:
    with pytest.raises(ValueError, match="needs vectors of a set for its attention"):
        DARESpec().build(WIDTHS.__class__(4))


def test_intervals_where_no_time_is_known() -> None:
    with pytest.raises(ValueError, match="encoding 'both' needs intervals, and there are none"):
        TIMSpec(BOTH).build(WIDTHS.__class__(4, positions=3))
