"""Levels of numbers: worked values, states, and what holds for any number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.numbers.quantise import Levels, State, split_codes

Q = 1024


def of(levels: Levels, *values: float) -> list[tuple[int, int]]:
    """(state, level) of each value."""
    state, level = split_codes(levels(np.array(values)), levels.levels)
    return list(zip(state.tolist(), level.tolist(), strict=True))


def test_logarithmic_levels() -> None:
    levels = Levels("log1p", Q, 0.0, 1e6)
    values = (0, 1, 2, 10, 100, 1000, 1e4, 1e5, 1e6)
    expected = [0, 51, 81, 178, 342, 512, 682, 853, 1023]
    assert of(levels, *values) == [(State.OK, level) for level in expected]
    assert of(levels, 1e9) == [(State.ABOVE, 1023)]


def test_even_levels_and_states() -> None:
    levels = Levels("linear", Q, 0.0, 1.0)
    found = of(levels, math.nan, math.inf, -math.inf, -3, 0, 0.5, 1, 2)
    assert found == [(3, 0), (1, 1023), (2, 0), (2, 0), (0, 0), (0, 512), (0, 1023), (1, 1023)]
    assert levels(np.array([math.nan])).tolist() == [NULL_ID]


def test_cosine_levels() -> None:
    levels = Levels("cosine", Q, -1.0, 1.0)
    values = (-1, -0.5, 0, 0.123, 0.5, 0.999, 1)
    assert of(levels, *values) == [(0, n) for n in (0, 256, 512, 574, 767, 1022, 1023)]
    assert of(levels, 1.0000001) == [(State.ABOVE, 1023)]


def test_halves_go_up() -> None:
    """With three levels from 0 to 2 the value is the level; 0.5 and 1.5 lie in the middle."""
    assert of(Levels("linear", 3, 0.0, 2.0), 0.5, 1.5, 0.49, 1.49) == [
        (0, 1),
        (0, 2),
        (0, 0),
        (0, 1),
    ]


def test_asinh_levels_by_the_formula() -> None:
    levels = Levels("asinh", Q, -1e4, 1e4, unit=10.0)
    for value in (-1e4, -37.5, 0.0, 2.0, 9e3):
        share = (math.asinh(value / 10) + math.asinh(1e3)) / (2 * math.asinh(1e3))
        assert of(levels, value) == [(0, math.floor(share * 1023 + 0.5))]
    assert of(levels, 0.0) == [(0, 512)]


def test_whole_numbers_are_their_own_levels() -> None:
    levels = Levels("count", 2**20, 16_000_000.0, 17_000_000.0)
    assert of(levels, 16_777_216, 16_777_217, 16_777_217.9) == [
        (0, 777216),
        (0, 777217),
        (0, 777217),
    ]


def test_ranks_by_boundaries() -> None:
    """Four boundaries, five levels: the level is the number of boundaries not above the value."""
    levels = Levels("cdf", 5, 0.0, 10.0, boundaries=np.array([1.0, 2.0, 2.0, 9.0]))
    assert of(levels, 0, 0.99, 1, 2, 8.9, 9, 10) == [(0, n) for n in (0, 0, 1, 3, 3, 4, 4)]
    assert of(levels, 11, -1) == [(State.ABOVE, 4), (State.BELOW, 0)]


def test_a_sign_is_a_state() -> None:
    levels = Levels("linear", 11, 0.0, 10.0, has_sign=True)
    found = of(levels, 3, -3, -0.0, 12, -12, -math.inf, math.nan)
    assert found == [(0, 3), (4, 3), (0, 0), (1, 10), (5, 10), (5, 10), (3, 0)]


KINDS = st.sampled_from(["linear", "log1p", "asinh", "count", "cdf"])
FINITE = st.floats(-1e9, 1e9)


def drawn(kind: str, low: float, width: float) -> Levels:
    boundaries = np.linspace(low, low + width, 63) if kind == "cdf" else None
    low = math.floor(low) if kind == "count" else low
    count = 64 if kind != "count" else math.ceil(width) + 2
    return Levels(kind, count, low, low + width, 2.5, boundaries)  # type: ignore[arg-type]


@given(KINDS, st.floats(-1e4, 1e4), st.floats(1e-2, 1e4), st.lists(FINITE, min_size=2))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_levels_rise_with_the_value_and_stay_inside(
    kind: str, low: float, width: float, values: list[float]
) -> None:
    levels = drawn(kind, low, width)
    rising = np.sort(np.array(values))
    state, level = split_codes(levels(rising), levels.levels)
    assert (np.diff(level) >= 0).all()
    assert level.min() >= 0
    assert level.max() < levels.levels
    assert ((state == State.ABOVE) == (rising > levels.high)).all()
    assert ((state == State.BELOW) == (rising < levels.low)).all()
    inside = state == State.OK
    clipped = split_codes(levels(np.clip(rising, levels.low, levels.high)), levels.levels)[1]
    assert clipped[inside].tolist() == level[inside].tolist()
    top = levels.levels - 1 if kind != "count" else int(levels.high - levels.low)
    assert (level[state == State.ABOVE] == top).all()
    assert (level[state == State.BELOW] == 0).all()


@given(KINDS, st.lists(st.floats(), min_size=1))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_any_float_has_a_code_in_range(kind: str, values: list[float]) -> None:
    levels = drawn(kind, -3.0, 50.0)
    codes = levels(np.array(values))
    missing = np.isnan(values)
    assert (codes[missing] == NULL_ID).all()
    assert (codes[~missing] >= 0).all()
    assert (codes[~missing] < 6 * levels.levels).all()


@pytest.mark.parametrize("kind", ["linear", "log1p", "asinh"])
def test_the_ends_of_the_range_are_the_ends_of_the_levels(kind: str) -> None:
    assert of(Levels(kind, 77, -2.0, 9.0), -2.0, 9.0) == [(0, 0), (0, 76)]  # type: ignore[arg-type]
