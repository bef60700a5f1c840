from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.world_state import PairCounts, Rings

BLOCKS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=6)


@settings(derandomize=True, deadline=None)
@given(BLOCKS)
def test_rings_keep_the_last_entries_of_each_owner(blocks: list[list[int]]) -> None:
    rings = Rings(num_owners=4, length=5, num_fields=2)
    kept: dict[int, list[int]] = {owner: [] for owner in range(4)}
    number = 0
    for block in blocks:
        values = np.arange(number, number + len(block))
        number += len(block)
        rings.append(np.array(block, np.int64), values, 10 * values)
        for owner, value in zip(block, values.tolist(), strict=True):
            kept[owner].append(value)
    owners = np.arange(4)
    lengths = rings.lengths(owners)
    first, second = rings.newest_first(owners, 5)
    for owner in owners:
        expected = kept[owner][::-1][:5]
        assert lengths[owner] == len(expected)
        assert first[owner, : len(expected)].tolist() == expected
        assert second[owner, : len(expected)].tolist() == [10 * value for value in expected]
        for back, value in enumerate(expected):
            assert rings.pick(np.array([owner]), np.array([back])).tolist() == [value]


@settings(derandomize=True, deadline=None)
@given(BLOCKS)
def test_pair_counts_equal_a_dictionary(blocks: list[list[int]]) -> None:
    counts, seen = PairCounts(), dict.fromkeys(range(4), 0)
    for block in blocks:
        before = []
        for key in block:
            before.append(seen[key])
            seen[key] += 1
        assert counts.add(np.array(block, np.int64)).tolist() == before
