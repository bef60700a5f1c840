"""Calibration bins: the vector, ties, and a loop over unit weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.train.metrics import calibration_curve, expected_calibration_error

Y = np.array([1, 0, 1, 0, 0, 1])
P = np.array([0.9, 0.8, 0.7, 0.7, 0.2, 0.1])
no_deadline = settings(derandomize=True, deadline=None, max_examples=60)


def test_the_vector_in_two_bins_of_equal_width():
    assert expected_calibration_error(P, Y, bins=2) == pytest.approx(0.3, abs=1e-12)


def test_the_vector_in_two_bins_of_equal_mass():
    # The published value cuts between the two rows at 0.7, the clicked one into the upper bin.
    apart = P + np.array([0, 0, 1e-12, 0, 0, 0])
    error = expected_calibration_error(apart, Y, bins=2, equal_mass=True)
    assert error == pytest.approx(0.0666666667, abs=1e-10)


def test_rows_tied_across_a_cut_are_shared_out_alike():
    # Below the cut: .1, .2 and half of both rows at .7; |1.5 - 1.0| + |1.5 - 2.4| over 6 rows.
    curve = calibration_curve(P, Y, bins=2)
    np.testing.assert_allclose(curve.weight, [3, 3])
    np.testing.assert_allclose(curve.predicted, [1.0, 2.4])
    np.testing.assert_allclose(curve.observed, [1.5, 1.5])
    assert curve.error == pytest.approx(1.4 / 6, abs=1e-15)


def test_the_ends_of_the_unit_interval_fall_into_the_first_and_last_bin():
    curve = calibration_curve([0.0, 1.0, 0.5], [0, 1, 1], bins=4, equal_mass=False)
    assert curve.weight.tolist() == [1, 0, 1, 1]
    predicted, observed = curve.points
    assert predicted.tolist() == [0.0, 0.5, 1.0]
    assert observed.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("bins", [1, 3, 100])
@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_base_rate_as_a_constant_has_no_error(bins, equal_mass):
    error = expected_calibration_error([0.4] * 5, [0, 1, 0, 0, 1], None, bins, equal_mass)
    assert error == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_no_rows_and_nan_have_no_value(equal_mass):
    assert math.isnan(expected_calibration_error([], [], equal_mass=equal_mass))
    assert math.isnan(expected_calibration_error([0.1, math.nan], [0, 1], equal_mass=equal_mass))


@no_deadline
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=20
    ),
    st.integers(1, 7),
)
def test_equal_mass_equals_filling_bins_unit_by_unit(drawn, bins):
    grade, label, weight = (np.array(column, float) for column in zip(*drawn, strict=True))
    p = grade / 8
    # Rows of weight w are w units; each is split into `bins` crumbs, so cuts fall between crumbs,
    # and within one score every crumb carries the mean residual of that score.
    crumbs = []
    for value in np.unique(p):
        inside = p == value
        units = weight[inside].sum()
        if units:
            residual = (weight * (label - p))[inside].sum() / units
            crumbs += [residual / bins] * int(units * bins)
    if not crumbs:
        expected = math.nan
    else:
        total = weight.sum()
        expected = np.abs(np.reshape(crumbs, (bins, -1)).sum(axis=1)).sum() / total
    found = expected_calibration_error(p, label, weight, bins, equal_mass=True)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@no_deadline
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 1), st.integers(1, 3)), min_size=1, max_size=20
    ),
    st.integers(1, 7),
    st.booleans(),
)
def test_bins_lose_nothing_and_never_exceed_the_error_of_single_rows(drawn, bins, equal_mass):
    grade, label, weight = (np.array(column, float) for column in zip(*drawn, strict=True))
    p = grade / 8
    curve = calibration_curve(p, label, weight, bins, equal_mass)
    assert curve.weight.sum() == pytest.approx(weight.sum())
    assert curve.predicted.sum() == pytest.approx((weight * p).sum())
    assert curve.observed.sum() == pytest.approx((weight * label).sum())
    bias = abs((weight * (label - p)).sum()) / weight.sum()
    assert bias - 1e-12 <= curve.error <= (weight * abs(label - p)).sum() / weight.sum() + 1e-12
