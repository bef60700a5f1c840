from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.adapters.earlier_days import PRIOR_ROWS, lift_before, sums_before


def test_lift_by_hand() -> None:
    # Day 0: key 1 has 2 clicks of 2, key 2 has 0 of 2; everyone 2 of 4. Day 1: key 1 and new key 3.
    keys, days = np.array([1, 1, 2, 2, 1, 3]), np.array([0, 0, 0, 0, 1, 1])
    clicks = np.array([1.0, 1, 0, 0, 0, 1])
    shown, lift = lift_before(keys, days, clicks)
    assert shown.to_pylist()[:4] == lift.to_pylist()[:4] == [None] * 4
    assert shown.to_pylist()[4:] == pytest.approx([np.log(3), 0.0])
    assert lift.to_pylist()[4:] == pytest.approx(
        [(2 + PRIOR_ROWS / 2) / (2 + PRIOR_ROWS) - 0.5, 0.0]
    )


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=40
    )
)
def test_sums_equal_a_plain_loop_over_earlier_days(rows: list[tuple[int, int, int]]) -> None:
    keys, days, values = (np.array(column) for column in zip(*rows, strict=True))
    count, total = sums_before(keys, days, values.astype(float))
    for row, (key, day, _) in enumerate(rows):
        earlier = [value for other, when, value in rows if other == key and when < day]
        assert (count[row], total[row]) == (len(earlier), sum(earlier))
