"""Sequences on their way from Parquet to batches: which behaviours are kept, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prismrec.config import UserError
from prismrec.config.sequences import Behaviour, SequenceFeature
from prismrec.data.batch import Batch
from prismrec.data.behaviours import read_behaviours
from prismrec.data.encode.intervals import intervals
from prismrec.data.schema import Column
from tests.unit.data import small

COLUMNS = {
    "tag": Column(kind="id", num_ids=9),
    "seen": Column(kind="ids", num_ids=small.NUM_ITEMS),
    "tags": Column(kind="ids", num_ids=9),
    "ago": Column(kind="numbers"),
    "when": Column(kind="ids"),
    "bag": Column(kind="ids", num_ids=9),
}
SEEN = [[1, 2, 3], [], [4], [5, 6, 7, 8]]
TAGS = [[1, 2, None], [], [4], [5, 6, 7, 8]]
AGO = [[7200.0, 120.0, 30.0], [], [86400.0], [9e9, 60.0, 0.0, -5.0]]
HISTORY: dict[str, Any] = {
    "name": "history",
    "behaviours": [{"column": "seen", "target": "item"}, {"column": "tags", "target": "tag"}],
}
MODEL = {"name": "dcnv2", "sequence": "tim"}
FEATURES: dict[str, Any] = {"sparse": ["item", "tag", "bag"], "group": None, "time": None}


def _directory(tmp_path: Path, **columns: Any) -> Path:
    lists = {"seen": SEEN, "tags": TAGS, "ago": AGO, "bag": [[1], [2, 3], [], [4]]} | columns
    rows = {"item": [1, 2, 3, 60], "tag": [0, 1, 2, 3], "price": [1.0, 2.0, 3.0, 4.0]}
    rows |= {"click": pa.array([1, 0, 0, 1], pa.int8())}
    rows |= {
        name: each if isinstance(each, pa.Array) else pa.array(each) for name, each in lists.items()
    }
    kinds = {name: column for name, column in COLUMNS.items() if name in rows}
    return small.write_table(tmp_path, pa.table(rows), **kinds)


def _reader(directory: Path, history: dict[str, Any], **data: Any) -> Any:
    features = FEATURES | {"sequences": [HISTORY | history]} | data.pop("features", {})
    data = {"lanes": 1, "global_batch_size": 4, "features": features, "model": MODEL} | data
    return small.reader(directory, **data)


def _first(directory: Path, **history: Any) -> Batch:
    return next(_reader(directory, history).epoch())[0]


def _lists(batch: Batch, key: str) -> list[list[int]]:
    assert batch.sequence is not None
    jagged = batch.sequence[key]
    return [each.tolist() for each in jagged.values().split(jagged.lengths().tolist())]


def test_sequences_and_their_targets_have_a_part_of_the_batch_of_their_own(tmp_path: Path) -> None:
    batch = _first(_directory(tmp_path))
    assert batch.sequence is not None
    assert batch.sequence.keys() == ["item", "tag", "history/seen", "history/tags"]
    assert batch.sequence.weights_or_none() is None
    assert _lists(batch, "item") == [[1], [2], [3], [50]]  # 60 is unknown
    assert _lists(batch, "history/seen") == SEEN
    assert _lists(batch, "history/tags") == [[1, 2, 9], [], [4], [5, 6, 7, 8]]
    assert batch.sparse.keys() == ["bag"]
    assert batch.sparse["bag"].values().tolist() == [1, 2, 3, 4]


def test_behaviours_that_are_not_earlier_are_left_out(tmp_path: Path) -> None:
    batch = _first(_directory(tmp_path), gaps="ago")
    assert _lists(batch, "history/seen") == [[1, 2, 3], [], [4], [5, 6]]
    assert _lists(batch, "history/tags") == [[1, 2, 9], [], [4], [5, 6]]
    assert _lists(batch, "history/") == [[6, 1, 0], [], [10], [27, 1]]


def test_a_leak_of_later_behaviours_changes_nothing(tmp_path: Path) -> None:
    """Whatever stands where a behaviour is not earlier than its row."""
    clean = _first(_directory(tmp_path / "clean"), gaps="ago")
    seen = [[1, 2, 3], [], [4], [5, 6, 17, 18]]
    ago = [*AGO[:3], [9e9, 60.0, -1.0, None]]
    leaking = _directory(tmp_path / "leaking", seen=seen, tags=[*TAGS[:3], [5, 6, 0, 0]], ago=ago)
    other = _first(leaking, gaps="ago")
    assert clean.sequence is not None
    assert other.sequence is not None
    assert clean.sequence.values().tolist() == other.sequence.values().tolist()
    assert clean.sequence.lengths().tolist() == other.sequence.lengths().tolist()


def test_times_of_behaviours_and_of_rows_give_the_same_gaps(tmp_path: Path) -> None:
    at = [100_000, 100_000, 100_000, None]
    when = [[92_800, 99_880, 99_970], [], [13_600], [1, 2, 3, 4]]
    directory = _directory(tmp_path, at=pa.array(at), when=when)
    history = {"times": "when", "time_unit": "s"}
    batch = next(_reader(directory, history, features={"time": "at"}).epoch())[0]
    assert _lists(batch, "history/") == [[6, 1, 0], [], [10], []]  # the last row has no time
    history["time_unit"] = "ms"
    batch = next(_reader(directory, history, features={"time": "at"}).epoch())[0]
    assert _lists(batch, "history/") == [[0, 0, 0], [], [1], []]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    batch = _first(_directory(tmp_path), max_length=2)
    assert _lists(batch, "history/seen") == [[2, 3], [], [4], [7, 8]]
    batch = _first(_directory(tmp_path), max_length=1, gaps="ago")
    assert _lists(batch, "history/seen") == [[3], [], [4], [6]]
    assert _lists(batch, "history/") == [[0], [], [10], [1]]


def test_no_behaviour_in_a_whole_batch(tmp_path: Path) -> None:
    none = pa.array([[], None, [], []], pa.list_(pa.int64()))
    batch = _first(_directory(tmp_path, seen=none, tags=none))
    assert _lists(batch, "history/seen") == [[]] * 4
    assert _lists(batch, "item") == [[1], [2], [3], [50]]


def test_several_rows_of_an_id_lie_side_by_side(tmp_path: Path) -> None:
    tables = {"item": {"ids": {"kind": "quotient_remainder", "divisor": 10}, "rows": 50}}
    batch = next(_reader(_directory(tmp_path), {}, tables=tables).epoch())[0]
    assert _lists(batch, "history/seen")[0] == [0, 6, 0, 7, 0, 8]
    assert _lists(batch, "item") == [[0, 6], [0, 7], [0, 8], [15, 15]]


def test_ids_of_behaviours_are_counted_like_others(tmp_path: Path) -> None:
    reader = _reader(_directory(tmp_path, seen=[[1, 99, 3], [], [4], [5, 6, 7, 8]]), {})
    next(reader.epoch())
    assert (reader.seen_ids["history/seen"], reader.unknown_ids["history/seen"]) == (8, 1)
    assert reader.missing_ids["history/tags"] == 1


def test_batches_do_not_depend_on_the_ranks_or_where_reading_began(tmp_path: Path) -> None:
    count = 48
    generator = np.random.default_rng(1)
    lengths = generator.integers(0, 5, count)
    seen = [generator.integers(0, 50, n).tolist() for n in lengths]
    tags = [generator.integers(0, 9, n).tolist() for n in lengths]
    rows = pa.table(
        {
            "key": np.arange(count),
            "item": np.arange(count) % 50,
            "tag": np.arange(count) % 9,
            "price": np.ones(count, np.float32),
            "click": (np.arange(count) % 2).astype(np.int8),
            "seen": pa.array(seen, pa.list_(pa.int64())),
            "tags": pa.array(tags, pa.list_(pa.int64())),
        }
    )
    kinds = {name: COLUMNS[name] for name in ("tag", "seen", "tags")}
    directory = small.write_table(tmp_path, rows, **kinds)
    for order in ("file", "shuffle"):
        found = []
        for world in (1, 2):
            by_key: dict[int, tuple[int, list[int], list[int]]] = {}
            for rank in range(world):
                reader = _reader(
                    directory,
                    {},
                    rank=rank,
                    world_size=world,
                    order=order,
                    lanes=4,
                    global_batch_size=16,
                    features={"sparse": ["item", "tag"], "group": "key"},
                )
                state = None
                for step, (batch, after) in enumerate(reader.epoch()):
                    lists = zip(
                        batch.group.tolist(),
                        _lists(batch, "history/seen"),
                        _lists(batch, "history/tags"),
                        strict=True,
                    )
                    by_key |= {key: (step, one, other) for key, one, other in lists}
                    state = state or after
                again = [b for b, _ in reader.epoch(0, state.offsets)]
                assert _lists(again[-1], "history/seen") == _lists(batch, "history/seen")
            found.append(by_key)
        assert found[0] == found[1]
        assert {key: (one, other) for key, (_, one, other) in found[0].items()} == {
            key: (seen[key], tags[key]) for key in range(count)
        }


def test_interval_vectors() -> None:
    gaps = np.array([0, 59, 60, 3600, 86400, 30 * 86400, 365 * 86400], np.float64)
    assert intervals(gaps, "log2min", 99).tolist() == [0, 0, 1, 5, 10, 15, 19]
    assert intervals(gaps, "hstu_ln", 99).tolist() == [0, 13, 13, 27, 37, 49, 57]
    assert intervals(gaps, "sqrt60", 9999).tolist() == [0, 0, 1, 7, 37, 207, 724]
    assert intervals(gaps, "log2min", 6).tolist() == [0, 0, 1, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("columns", "history", "match"),
    [
        (
            {"tags": [[1], [], [4], [5, 6, 7, 8]]},
            {},
            r"part-0.parquet: row group 0, row 0: features.sequences 'history': column 'tags' has 1 values "
            "and 'seen' has 3; each behaviour needs one in every column",
        ),
        (
            {"ago": [[1.0] * 3, [1.0], [1.0], [1.0] * 4]},
            {"gaps": "ago"},
            "row 1: features.sequences 'history': column 'ago' has 1 values and 'seen' has 0",
        ),
        (
            {},
            {"gaps": "tags"},
            "'history': column 'tags' of 'small' is of kind 'ids', but 'numbers'",
        ),
        (
            {},
            {"gaps": "agoo"},
            "'history': the data set 'small' has no column 'agoo'; did you mean",
        ),
    ],
)
def test_columns_that_do_not_fit(
    tmp_path: Path, columns: dict[str, Any], history: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        _first(_directory(tmp_path, **columns), **history)


def test_an_id_that_is_no_row_ends_the_run_where_that_is_asked_for(tmp_path: Path) -> None:
    directory = _directory(tmp_path, seen=[[1, 2, 3], [], [99], [5, 6, 7, 8]], tags=SEEN)
    tables = {"item": {"ids": {"kind": "direct", "out_of_range": "fail"}, "rows": 61}}
    with pytest.raises(
        UserError, match=r"row 2: feature 'history/seen': column 'seen' holds id 99"
    ):
        next(_reader(directory, {}, tables=tables).epoch())


def test_gaps_of_every_type_of_number_fall_into_one_interval() -> None:
    """3,779.99999 s is below 63 minutes in float64, and not in float32."""
    sequence = SequenceFeature(
        name="h", behaviours=(Behaviour(column="seen", target="item"),), gaps="ago"
    )
    for type_ in (pa.float64(), pa.float32()):
        arrays = {
            "seen": pa.array([[1, 2]], pa.list_(pa.int64())),
            "ago": pa.array([[3779.99999, 3780]], pa.list_(type_)),
        }
        _, found = read_behaviours(sequence, arrays, None, str)
        assert found.values.tolist() == [6, 6]


def test_the_newest_of_a_hundred_thousand_rows() -> None:
    sequence = SequenceFeature(
        name="h", behaviours=(Behaviour(column="seen", target="item"),), gaps="ago", max_length=3
    )
    offsets = pa.array(np.arange(0, 1_000_001, 10, dtype=np.int32))
    arrays = {
        "seen": pa.ListArray.from_arrays(offsets, pa.array(np.arange(1_000_000))),
        "ago": pa.ListArray.from_arrays(offsets, pa.array(np.arange(1_000_000) % 10 - 2.0)),
    }
    ids, gaps = read_behaviours(sequence, arrays, None, str)
    assert ids.offsets.tolist() == list(range(0, 300_001, 3))
    assert ids.values[:6].tolist() == [7, 8, 9, 17, 18, 19]
    assert gaps.values[:3].tolist() == [0, 0, 0]
