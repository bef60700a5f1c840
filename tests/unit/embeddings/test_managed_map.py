"""Who has which row: hand-made cases, a plain reference, and TorchRec's own module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from prismrec.config.ids import ManagedIds
from prismrec.data.encode.codes import bucket_span, missing_code
from prismrec.embeddings.managed import newcomers
from prismrec.embeddings.managed.id_map import Change, IdMap, MapPart, score
from prismrec.embeddings.managed.newcomers import EMPTY
from tests.helpers.managed import PlainMap

CPU = torch.device("cpu")


def options(policy: str = "lfu", **others: Any) -> ManagedIds:
    return ManagedIds(kind="managed", policy=policy, **{"interval": 1, **others})


def small_map(given: ManagedIds, rows: int = 4, buckets: int = 1, limit: int = 1000) -> IdMap:
    return IdMap(given, MapPart(buckets, rows, 0, buckets), CPU, max_newcomers=limit)


def seen(id_map: IdMap, codes: list[int], step: int) -> list[int]:
    return id_map.record(torch.tensor(codes, dtype=torch.int64), step).tolist()


def owners(id_map: IdMap) -> dict[int, int]:
    """Row by id."""
    codes = id_map.codes.view(-1).tolist()
    return {code: row for row, code in enumerate(codes) if code != EMPTY}


def changes(change: Change) -> dict[int, int | None]:
    pairs = zip(change.rows.tolist(), change.codes.tolist(), strict=True)
    return {row: None if code == EMPTY else code for row, code in pairs}


def filled(given: ManagedIds, counts: list[int], last_seen: list[int], now: int) -> IdMap:
    """Ids 10, 20, 30 in rows 0, 1, 2, as often and as recently seen as it is said."""
    id_map = small_map(given)
    id_map.codes[0, :3] = torch.tensor([10, 20, 30])
    id_map.counts[0, :3] = torch.tensor(counts)
    id_map.last_seen[0, :3] = torch.tensor(last_seen)
    id_map.reindex()
    return id_map


def test_lfu_gives_the_row_of_the_rarest_to_a_more_frequent_newcomer() -> None:
    # counts (5, 1, 2) and the unknown row; newcomers 41 three times and 42 once
    id_map = filled(options("lfu"), [5, 1, 2], [1, 1, 1], 1)
    assert seen(id_map, [41, 42, 41, 41], 2) == [3, 3, 3, 3]
    assert changes(id_map.admit(2)) == {1: 41}
    assert owners(id_map) == {10: 0, 41: 1, 30: 2}
    assert id_map.counts[0].tolist() == [5, 3, 2, 4]
    counters = id_map.take_counters()
    assert (counters.lookups, int(counters.misses)) == (4, 4)
    assert (counters.admissions, counters.evictions, counters.dropped) == (1, 1, 0)


def test_lfu_leaves_rows_where_they_are_on_a_tie() -> None:
    id_map = filled(options("lfu"), [5, 1, 2], [1, 1, 1], 1)
    seen(id_map, [41, 10], 2)
    assert changes(id_map.admit(2)) == {}
    assert id_map.counts[0].tolist() == [6, 1, 2, 1]


def test_lru_scores_and_evicts_by_hand() -> None:
    ages = torch.tensor([2, 4, 9])
    assert score(options("lru"), ages * 0, ages, 10).tolist() == [-9, -7, -2]
    assert score(options("lru", decay=2.0), ages * 0, ages, 10).tolist() == [-81, -49, -4]
    id_map = filled(options("lru"), [500, 1, 1], [2, 4, 9], 9)
    seen(id_map, [41, 42], 10)
    # -9, -7, -2 against -1, -1: both newcomers win; 41 comes first and takes the first free row
    assert changes(id_map.admit(10)) == {0: 41, 1: 42}


def test_lru_keeps_what_was_seen_in_the_very_step() -> None:
    id_map = filled(options("lru"), [1, 1, 1], [9, 9, 9], 9)
    seen(id_map, [10, 20, 30, 41], 10)
    assert changes(id_map.admit(10)) == {}


def test_distance_lfu_scores_and_evicts_by_hand() -> None:
    counts, last = torch.tensor([6, 3, 2]), torch.tensor([5, 9, 10])
    assert score(options("distance_lfu"), counts, last, 10).tolist() == [1, 1.5, 2]
    assert score(options("distance_lfu", decay=2.0), counts, last, 10).tolist() == [6 / 36, 0.75, 2]
    id_map = filled(options("distance_lfu"), [6, 3, 2], [5, 9, 10], 9)
    seen(id_map, [41, 41, 42], 10)
    # 1, 1.5, 2 against 2 and 1: row 0 goes to 41; 42 ties with what has gone
    assert changes(id_map.admit(10)) == {0: 41}


def test_a_new_id_needs_min_count_within_one_interval() -> None:
    id_map = small_map(options("lfu", min_count=3, interval=2))
    seen(id_map, [7, 7, 8, 8, 8], 1)
    assert not id_map.is_due(1)
    seen(id_map, [9], 2)
    assert id_map.is_due(2)
    assert changes(id_map.admit(2)) == {0: 8}
    seen(id_map, [7], 3)  # two of an earlier interval do not count
    seen(id_map, [8, 9, 9, 9], 4)
    assert changes(id_map.admit(4)) == {1: 9}
    assert id_map.counts[0].tolist()[:2] == [4, 3]  # ids with a row count however rare they are


@pytest.mark.parametrize("policy", ["lfu", "lru", "distance_lfu"])
def test_an_id_not_seen_for_ttl_steps_loses_its_row_under_every_policy(policy: str) -> None:
    id_map = small_map(options(policy, ttl_steps=3))
    seen(id_map, [7] * 100 + [8], 1)
    id_map.admit(1)
    for step in (2, 3):
        seen(id_map, [8], step)
        assert changes(id_map.admit(step)) == {}
    seen(id_map, [8], 4)
    assert changes(id_map.admit(4)) == {0: None}
    assert owners(id_map) == {8: 1}
    assert id_map.counts[0].tolist() == [0, 5 - 1, 0, 101]
    assert id_map.take_counters().evictions == 1
    seen(id_map, [7], 5)
    assert changes(id_map.admit(5)) == {0: 7}
    assert id_map.counts[0, 0] == 1  # it starts anew


def test_a_freed_row_is_given_away_in_the_same_step() -> None:
    id_map = small_map(options("lfu", ttl_steps=2), rows=2)
    seen(id_map, [7, 7, 7], 1)
    id_map.admit(1)
    seen(id_map, [8], 3)
    assert changes(id_map.admit(3)) == {0: 8}
    assert (id_map.take_counters().evictions, id_map.rows_in_use) == (1, 1)


def test_misses_look_up_the_last_row_of_their_bucket() -> None:
    span = bucket_span(4)
    id_map = small_map(options(), rows=3, buckets=4)
    codes = torch.tensor([0, span - 1, span, 3 * span, missing_code(4)])
    rows, found = id_map.look_up(codes)
    assert rows.tolist() == [2, 2, 5, 11, 11]
    assert not found.any()


def test_a_part_of_the_buckets_knows_its_place() -> None:
    span = bucket_span(4)
    id_map = IdMap(options(), MapPart(4, 3, 2, 2), CPU)
    assert seen(id_map, [2 * span + 5, 3 * span + 5], 1) == [2, 5]
    assert changes(id_map.admit(1)) == {0: 2 * span + 5, 3: 3 * span + 5}
    assert id_map.is_ours(torch.tensor([0, 2 * span - 1, 2 * span, EMPTY])).tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_a_missing_id_never_gets_a_row() -> None:
    id_map = small_map(options(), buckets=2)
    seen(id_map, [missing_code(2)] * 9, 1)
    assert changes(id_map.admit(1)) == {}
    assert int(id_map.take_counters().misses) == 9


def test_new_ids_beyond_the_limit_are_forgotten_and_counted() -> None:
    id_map = small_map(options("lfu", interval=100), rows=10, limit=3)
    seen(id_map, [1, 1, 2, 2, 3, 3, 4], 1)
    seen(id_map, [5], 2)
    id_map.admit(100)
    assert set(owners(id_map)) == {1, 2, 3}
    assert id_map.take_counters().dropped == 2  # one of id 4, one of id 5


@st.composite
def stories(draw: st.DrawFn) -> tuple[ManagedIds, int, int, list[list[int]]]:
    """Options, buckets, rows of a bucket, and the ids of every step."""
    chosen = options(
        draw(st.sampled_from(["lfu", "lru", "distance_lfu"])),
        decay=draw(st.sampled_from([0.5, 1.0, 2.0])),
        interval=draw(st.integers(1, 3)),
        min_count=draw(st.integers(1, 3)),
        ttl_steps=draw(st.none() | st.integers(1, 6)),
    )
    buckets, rows = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    span = bucket_span(buckets)
    pool = [bucket * span + k for bucket in range(buckets) for k in (0, 1, 5, 17, span // 2)]
    pool += [missing_code(buckets)]
    steps = draw(st.lists(st.lists(st.sampled_from(pool), max_size=12), min_size=1, max_size=12))
    return chosen, buckets, rows, steps


@settings(derandomize=True, max_examples=150, deadline=None)
@given(stories())
def test_the_map_is_that_of_the_plain_reference(
    story: tuple[ManagedIds, int, int, list[list[int]]],
) -> None:
    chosen, buckets, rows, steps = story
    id_map, plain = small_map(chosen, rows, buckets), PlainMap(chosen, buckets, rows)
    everything = torch.tensor(sorted({code for codes in steps for code in codes}) or [0])
    for step, codes in enumerate(steps, 1):
        before = owners(id_map)
        assert seen(id_map, codes, step) == [plain.look_up(code) for code in codes]
        plain.record(codes, step)
        if id_map.is_due(step):
            change = changes(id_map.admit(step))
            plain.admit(step)
            after = owners(id_map)
            moved = {code for code in before.keys() & after.keys() if before[code] != after[code]}
            assert not moved, "an id keeps its row for as long as it has one"
            assert change == {
                row: next((code for code, at in after.items() if at == row), None)
                for row in {*before.values(), *after.values()}
                if {c for c, at in before.items() if at == row}
                != {c for c, at in after.items() if at == row}
            }
        assert owners(id_map) == plain.row
        assert len(set(plain.row.values())) == len(plain.row), "a row has one owner at most"
        for code, row in plain.row.items():
            assert id_map.counts.view(-1)[row] == plain.count[code]
            assert id_map.last_seen.view(-1)[row] == plain.last[code]
        state = [each.clone() for each in (id_map.codes, id_map.counts, id_map.last_seen)]
        found, _ = id_map.look_up(everything)
        assert found.tolist() == [plain.look_up(code) for code in everything.tolist()]
        for each, copy in zip((id_map.codes, id_map.counts, id_map.last_seen), state, strict=True):
            assert torch.equal(each, copy), "looking up changes nothing"


POLICIES = {
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
    "distance_lfu": DistanceLFU_EvictionPolicy,
}


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_ids_have_rows_as_in_torchrecs_module(policy: str, interval: int) -> None:
    """Where nothing rests on what theirs lacks: no threshold, no time to live, no overflow."""
    rows = 17
    theirs = MCHManagedCollisionModule(
        rows, CPU, POLICIES[policy](), interval, input_hash_size=missing_code(1) + 1
    )
    ours = small_map(options(policy, interval=interval), rows)
    generator = torch.Generator().manual_seed(3)
    for step in range(1, 41):
        size = 40 if step == 1 else 30  # theirs takes 1.25 times as many as in the first step
        codes = (torch.rand(size, generator=generator).pow(3) * 60).long() + step
        codes *= 1_000_003
        codes = codes[torch.randperm(size, generator=generator)]
        theirs({"t": JaggedTensor(codes, lengths=torch.ones(size, dtype=torch.int64))})
        ours.record(codes, step)
        if ours.is_due(step):
            ours.admit(step)
        held = set(theirs._mch_sorted_raw_ids.tolist()) - {EMPTY}
        assert set(owners(ours)) == held
    assert len(held) == rows - 1
    assert ours.take_counters().evictions > 5


def test_new_ids_are_counted_now_and_then_when_many_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting early changes nothing, except that ids may have been forgotten in between."""
    monkeypatch.setattr(newcomers, "_MIN_FRESH", 4)
    often, once = (small_map(options("lfu", interval=9), rows=3, limit=n) for n in (2, 1000))
    for id_map in (often, once):
        for step, codes in enumerate(([1, 1, 1, 2, 2], [3, 4, 4, 1, 1], [3, 2, 2, 2, 5]), 1):
            seen(id_map, codes, step)
        id_map.admit(9)
    assert owners(once) == {1: 0, 2: 1}
    assert set(owners(often)) == {1, 2}
    assert [each.take_counters().dropped for each in (often, once)] == [1 + 2 + 1 + 1, 0]
    assert often.counts.sum() == once.counts.sum() == 15 + 10
