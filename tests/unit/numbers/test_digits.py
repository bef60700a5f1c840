"""Digits and rows: the worked strings, tables and distances of the encoding, and its rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config.encodings import digits_needed
from prismrec.data.encode.encoders import TableRows
from prismrec.data.encode.ids import NULL_ID, Ints
from prismrec.data.encode.numbers import digits as module
from prismrec.data.encode.numbers.digits import DigitForm, digits
from prismrec.data.encode.numbers.encoders import NumberCodes, NumberEncoder
from prismrec.data.encode.numbers.quantise import Levels, State
from prismrec.data.encode.numbers.source import ColumnSource
from prismrec.data.encode.numbers.tables import NumberPart

Q = 1024
WIDTHS = {2: 10, 3: 7, 10: 4}


def encoder_of(of: DigitForm, first: int) -> NumberEncoder:
    """The encoder of a number that has the last rows of a table, from `first` on."""
    number = NumberCodes("x", ColumnSource("x"), Levels("linear", of.levels, 0.0, 1.0))
    return NumberEncoder(number, TableRows(first + of.rows, 0), NumberPart("x", first, of, 0.05))


def string(n: int, base: int, width: int) -> str:
    """Most significant digit first."""
    return "".join(str(d) for d in digits(np.array([n]), base, width)[0][::-1])


def form(base: int, mode: str = "paper", levels: int = Q) -> DigitForm:
    return DigitForm(base, digits_needed(levels, base), levels, mode)  # type: ignore[arg-type]


def rows(of: DigitForm, *codes: int) -> list[list[int]]:
    found: list[list[int]] = of.rows_of(np.array(codes)).tolist()
    return found


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(101, (7, 5, 3)), (1024, (10, 7, 4)), (65536, (16, 11, 5)), (2**20, (20, 13, 7))],
)
def test_fewest_digits(levels: int, expected: tuple[int, ...]) -> None:
    assert tuple(digits_needed(levels, base) for base in (2, 3, 10)) == expected


def test_fewest_digits_of_a_power_are_exact() -> None:
    """The logarithm of 125 to the base 5 is a little above 3 in floating point."""
    assert digits_needed(125, 5) == 3
    assert digits_needed(126, 5) == 4


@pytest.mark.parametrize(
    ("n", "base", "width", "expected"),
    [
        (45, 2, 10, "0000101101"),
        (46, 2, 10, "0000101110"),
        (957, 2, 10, "1110111101"),
        (63, 2, 10, "0000111111"),
        (64, 2, 10, "0001000000"),
        (575, 2, 10, "1000111111"),
        (575, 3, 9, "000210022"),
        (45, 3, 7, "0001200"),
        (46, 3, 7, "0001201"),
        (63, 3, 7, "0002100"),
        (64, 3, 7, "0002101"),
        (957, 3, 7, "1022110"),
        (45, 10, 4, "0045"),
        (957, 10, 4, "0957"),
        (574, 2, 10, "1000111110"),
        (574, 3, 7, "0210021"),
        (51, 2, 6, "110011"),
        (51, 3, 6, "001220"),
    ],
)
def test_strings(n: int, base: int, width: int, expected: str) -> None:
    assert string(n, base, width) == expected


ROWS = {
    0: ("0 2 4 6 8 10 12 14 16 18", 100, "0 3 6 9 12 15 18", 70, "0 10 20 30", 64),
    45: ("1 2 5 7 8 11 12 14 16 18", 104, "0 3 8 10 12 15 18", 73, "5 14 20 30", 73),
    575: ("1 3 5 7 9 11 12 14 16 19", 107, "2 5 6 9 13 17 18", 77, "5 17 25 30", 81),
    957: ("1 2 5 7 9 11 12 15 17 19", 108, "0 4 7 11 14 15 19", 77, "7 15 29 30", 85),
    1023: ("1 3 5 7 9 11 13 15 17 19", 110, "0 5 8 10 12 16 19", 77, "3 12 20 31", 70),
}
"""By level: rows and sums of the toy table whose row r is (r + 1) (1, -0.1), to the bases 2, 3 and 10."""


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("at", range(3))
def test_rows_and_sums_of_the_toy_table(n: int, at: int) -> None:
    base = (2, 3, 10)[at]
    expected, total = ROWS[n][2 * at], ROWS[n][2 * at + 1]
    found = rows(form(base), n)[0]
    assert found == [int(word) for word in str(expected).split()]
    toy = (np.arange(form(base).rows) + 1)[:, None] * np.array([1, -0.1])
    assert toy[found].sum(0) == pytest.approx([total, -0.1 * int(total)])


def test_rows_of_states() -> None:
    binary = form(2, "robust")
    assert (binary.rows, form(3, "robust").rows, form(10, "robust").rows) == (38, 36, 52)
    assert (form(2).rows, form(3).rows, form(10).rows) == (20, 21, 40)
    of_45 = [1, 3, 7, 10, 12, 16, 18, 21, 24, 27]
    nothing = [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]
    assert rows(binary, 45) == [[*of_45, 30]]
    assert rows(binary, NULL_ID) == [[*nothing, 33]]
    above, below = State.ABOVE * Q + 1023, State.BELOW * Q
    assert rows(binary, above)[0] == [*(3 * k + 1 for k in range(10)), 31]
    assert rows(binary, below)[0] == [*(3 * k for k in range(10)), 32]
    assert rows(binary, State.NEGATIVE * Q + 45)[0] == [*of_45, 34]
    assert rows(binary, State.NEGATIVE_ABOVE * Q + 1023)[0][-1] == 35


def test_without_states_a_missing_number_is_the_lowest() -> None:
    assert rows(form(3), NULL_ID, State.ABOVE * Q + 1023) == rows(form(3), 0, 1023)


@pytest.mark.parametrize(
    ("base", "width", "distances"),
    [(2, 10, (2, 4, 7, 1, 8)), (3, 9, (1, 5, 1, 6, 6)), (10, 4, (1, 3, 1, 3, 3))],
)
def test_distances_of_the_worked_pairs(base: int, width: int, distances: tuple[int, ...]) -> None:
    """Binary alone says that 63 is nearer to 575 than to 64; the ternary digits put it right."""
    pairs = ((45, 46), (45, 957), (63, 64), (63, 575), (64, 575))
    found = tuple(
        int((digits(np.array([a]), base, width) != digits(np.array([b]), base, width)).sum())
        for a, b in pairs
    )
    assert found == distances


@pytest.mark.parametrize(
    ("base", "mean", "single"), [(2, 1.9902, 0.5), (3, 1.4966, 0.667), (10, 1.1105, 0.9)]
)
def test_digits_that_change_from_one_level_to_the_next(
    base: int, mean: float, single: float
) -> None:
    written = digits(np.arange(Q), base, WIDTHS[base])
    changed = (written[1:] != written[:-1]).sum(1)
    assert changed.mean() == pytest.approx(mean, abs=5e-5)
    assert (changed == 1).mean() == pytest.approx(single, abs=2e-3)
    assert changed.max() <= WIDTHS[base]
    trailing = np.array([_trailing(n, base) for n in range(Q - 1)])
    assert (changed == 1 + trailing).all()


def _trailing(n: int, base: int) -> int:
    count = 0
    while n % base == base - 1:
        n, count = n // base, count + 1
    return count


def indicators(of: DigitForm) -> np.ndarray:
    """(Q, R) which rows each level looks up."""
    found = np.zeros((of.levels, of.rows))
    np.put_along_axis(found, of.rows_of(np.arange(of.levels)), 1, axis=1)
    return found


def test_rank() -> None:
    """Ternary and decimal ranks are below (b - 1) K + 1: their top digit never exceeds 1."""
    each = [indicators(form(base)) for base in (2, 3, 10)]
    assert [np.linalg.matrix_rank(one) for one in each] == [11, 14, 29]
    joint = np.concatenate(each, axis=1)
    assert np.linalg.matrix_rank(joint) == 49
    assert np.linalg.matrix_rank(np.concatenate([joint, np.ones((Q, 1))], axis=1)) == 49


def test_levels_with_equal_digits_are_alike() -> None:
    """Over independent rows, E <e(n), e(n')> is the variance times the number of equal digits."""
    rng = np.random.default_rng(0)
    of = form(3)
    table = rng.normal(size=(of.rows, 40_000))
    for a, b in ((45, 46), (45, 957), (63, 575)):
        left, right = (table[rows(of, n)[0]].sum(0) for n in (a, b))
        equal = (digits(np.array([a]), 3, 7) == digits(np.array([b]), 3, 7)).sum()
        assert (left * right).mean() == pytest.approx(equal, abs=0.15)


@given(st.integers(2, 40), st.integers(2, 3000), st.data())
@settings(derandomize=True, max_examples=100, deadline=None)
def test_digits_write_the_level(base: int, levels: int, data: st.DataObject) -> None:
    width = digits_needed(levels, base)
    assert base**width >= levels > (base ** (width - 1) if width > 1 else 0)
    n = np.array(data.draw(st.lists(st.integers(0, levels - 1), min_size=1)))
    written = digits(n, base, width)
    assert (written @ base ** np.arange(width) == n).all()
    assert written.min() >= 0
    assert written.max() < base


@given(st.integers(2, 12), st.integers(2, 500), st.sampled_from(["robust", "paper"]), st.data())
@settings(derandomize=True, max_examples=100, deadline=None)
def test_a_row_of_each_position_inside_the_number(
    base: int, levels: int, mode: str, data: st.DataObject
) -> None:
    of = form(base, mode, levels)
    codes = data.draw(st.lists(st.integers(0, 6 * levels - 1) | st.just(NULL_ID), min_size=1))
    first = data.draw(st.integers(0, 1000))
    encoder = encoder_of(of, first)
    found, _ = encoder(np.array(codes))
    shaped = found.reshape(len(codes), of.bag) - first
    stride = base if mode == "paper" else base + 1
    positions = shaped // stride
    assert (positions[:, : of.width] == np.arange(of.width)).all()
    if mode == "robust":
        assert (shaped[:, -1] >= of.width * stride).all()
        assert (shaped[:, -1] < of.rows).all()


def test_listed_and_computed_rows_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.array([0, 3 * Q + 7, NULL_ID, Q + 1023, 511])
    for mode in ("robust", "paper"):
        listed = form(3, mode).rows_of(codes)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_LISTED_LEVELS", 1)
            assert form(3, mode).rows_of(codes).tolist() == listed.tolist()


def test_an_encoder_counts_what_has_no_level_of_its_own() -> None:
    encoder = encoder_of(form(2, "robust"), 7)
    codes: Ints = np.array([[5, NULL_ID], [Q + 1023, State.NEGATIVE * Q]])
    found, unknown = encoder(codes)
    assert found.shape == (2, 22)
    assert unknown is not None
    assert unknown.tolist() == [[False, True], [True, False]]
    assert encoder(np.array([3, 4]))[1] is None
    assert found.min() >= 7
