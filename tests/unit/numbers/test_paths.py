"""Three ways to the same vectors: bags of rows, a product with indicators, a gather from whole levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.numbers.digits import DigitForm
from prismrec.data.encode.numbers.quantise import State

Q = 1024
FORMS = [
    DigitForm(base, width, Q, mode)  # type: ignore[arg-type]
    for base, width in ((2, 10), (3, 7), (10, 4))
    for mode in ("paper", "robust")
]
ABOVE, BELOW, NEGATIVE = State.ABOVE * Q + 1023, int(State.BELOW) * Q, State.NEGATIVE * Q + 45


def bags(form: DigitForm, codes: np.ndarray, table: Tensor) -> Tensor:
    """As the models look rows up."""
    rows = torch.from_numpy(form.rows_of(codes))
    return torch.nn.functional.embedding_bag(rows, table, mode="sum")


def indicators(form: DigitForm, codes: np.ndarray) -> Tensor:
    """(B, R) which rows each code looks up."""
    found = torch.zeros(len(codes), form.rows, dtype=torch.float64)
    return found.scatter_(1, torch.from_numpy(form.rows_of(codes)), 1.0)


def products(form: DigitForm, codes: np.ndarray, table: Tensor) -> Tensor:
    return torch.einsum("br,rd->bd", indicators(form, codes), table)


def gathers(form: DigitForm, codes: np.ndarray, table: Tensor) -> Tensor:
    """Every code that there may be gets its vector first; then one row is taken for each value."""
    every = np.concatenate([np.arange(6 * Q), [NULL_ID]])
    whole = indicators(form, every) @ table
    places = np.where(codes == NULL_ID, 6 * Q, codes)
    return whole[torch.from_numpy(places)]


def run(
    way: Callable[[DigitForm, np.ndarray, Tensor], Tensor], form: DigitForm, codes: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Vectors, and the gradient of the table under fixed weights of them."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(form.rows, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    found = way(form, codes, table)
    (found * torch.randn(found.shape, generator=generator, dtype=torch.float64)).sum().backward()
    assert table.grad is not None
    return found.detach(), table.grad


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_values_and_gradients_are_the_same(form: DigitForm) -> None:
    codes = np.random.default_rng(0).integers(0, Q, 300)
    codes[:5] = [NULL_ID, ABOVE, BELOW, NEGATIVE, 0]
    expected = run(bags, form, codes)
    for way in (products, gathers):
        for ours, theirs in zip(run(way, form, codes), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert expected[1].any()


@pytest.mark.parametrize("form", FORMS[1::2], ids=str)
def test_a_state_changes_its_rows_alone(form: DigitForm) -> None:
    """A number above the range differs from the last level in one row; so does one below from level 0."""
    for odd, level in ((ABOVE, 1023), (BELOW, 0), (NEGATIVE, 45)):
        differing = indicators(form, np.array([odd])) - indicators(form, np.array([level]))
        assert differing.abs().sum() == 2
        assert not differing[:, : form.flag_row].any()
    nothing = indicators(form, np.array([NULL_ID]))[0].nonzero().flatten().tolist()
    digit_rows = indicators(form, np.arange(Q)).any(0).nonzero().flatten().tolist()
    assert not set(nothing) & set(digit_rows), "a missing number trains no digit"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_shift_between_positions_changes_no_vector(form: DigitForm) -> None:
    """What is added to all rows of one position and taken from all of another leaves every sum."""
    table = torch.randn(form.rows, 3, dtype=torch.float64)
    moved, stride = table.clone(), form.base + (form.mode == "robust")
    moved[:stride] += 5
    moved[stride : 2 * stride] -= 5
    codes = np.append(np.arange(Q), NULL_ID)
    torch.testing.assert_close(bags(form, codes, moved), bags(form, codes, table))
