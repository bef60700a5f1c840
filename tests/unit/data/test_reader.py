import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import UserError
from prismrec.data.ledger import Ledger
from tests.unit.data import small

ORDERS = ("file", "shuffle", "time")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small.write(tmp_path / "data", [40, 33, 30], group_rows=9)  # 103 rows


@pytest.mark.parametrize("order", ORDERS)
def test_every_row_once_and_the_same_steps_at_any_world_size(data: Path, order: str) -> None:
    alone = small.keys_by_step(data, order=order)
    assert sorted(small.flat(alone)) == list(range(103))
    for world_size in (2, 4):
        together = small.keys_by_step(data, world_size, order=order)
        # Ranks own consecutive lanes, so their batches side by side are the batch of one rank.
        assert [[sum(step, [])] for step in together] == alone


def test_file_order_takes_a_share_of_every_lane(data: Path) -> None:
    steps = small.keys_by_step(data)  # lanes begin at rows 0, 26, 52 and 78
    assert steps[0] == [[0, 1, 2, 3, 26, 27, 28, 29, 52, 53, 54, 55, 78, 79, 80, 81]]
    assert len(steps) == 7
    assert steps[6] == [[24, 25, 50, 51, 76, 77, 102]]


def test_time_order_puts_batches_in_time(tmp_path: Path) -> None:
    directory = small.write(tmp_path / "data", [40, 33, 30], group_rows=9)
    (directory / "part-0.parquet").rename(directory / "part-9.parquet")
    steps = small.keys_by_step(directory, order="time")
    for number, step in enumerate(steps):
        assert step == [list(range(16 * number, min(103, 16 * number + 16)))]


def test_a_shuffle_depends_on_seed_and_epoch_only(data: Path) -> None:
    once = small.keys_by_step(data, order="shuffle")
    assert small.keys_by_step(data, order="shuffle") == once
    assert small.keys_by_step(data, order="shuffle", epoch=1) != once
    assert small.keys_by_step(data, order="shuffle", seed=2) != once
    first_lane = [key for step in once for key in step[0][:4] if key < 26]
    assert sorted(first_lane) == list(range(26))
    assert first_lane != list(range(26))


def test_evaluation_reads_as_the_files_lie(data: Path) -> None:
    chosen: dict[str, Any] = {"training": False, "split": "valid", "splits": {"valid": []}}
    assert small.keys_by_step(data, order="shuffle", **chosen) == small.keys_by_step(data)


@pytest.mark.parametrize("order", ORDERS)
def test_resume_of_two_ranks_on_one_loses_and_repeats_nothing(data: Path, order: str) -> None:
    ledger, seen = Ledger(), []
    state = None
    for rank in range(2):
        batches = small.reader(data, rank, 2, order=order).epoch(3)
        for _ in range(3):
            batch, state = next(batches)
            seen += batch.group.tolist()
        batches.close()
    assert state is not None
    ledger.add(3, (0, 0, 0, 0), state.offsets)
    resumed = small.reader(data, order=order)
    rest = list(resumed.epoch(state.epoch, state.offsets))
    seen += [key for batch, _ in rest for key in batch.group[batch.weights[:, 0] > 0].tolist()]
    assert sorted(seen) == list(range(103))
    assert len(rest) == 4
    ledger.add(3, state.offsets, rest[-1][1].offsets)
    assert ledger.ranges(3) == tuple(((0, size),) for size in resumed.lanes.lengths)
    assert list(resumed.epoch(3, rest[-1][1].offsets)) == []


@pytest.mark.parametrize("order", ORDERS)
def test_ledger_positions_name_the_rows_that_were_read(data: Path, order: str) -> None:
    chosen: dict[str, Any] = {"order": order, "splits": {"train": ["key != 5", "key < 90"]}}
    reader = small.reader(data, **chosen)
    files = [pq.ParquetFile(data / f"part-{n}.parquet") for n in range(3)]
    before = (0, 0, 0, 0)
    for batch, state in reader.epoch(1):
        read = batch.group.reshape(4, 4).tolist()
        for lane in range(4):
            where = reader.rows_at(1, lane, before[lane], state.offsets[lane])
            keys = [
                files[file].read_row_group(group).column("key")[row].as_py()
                for file, group, row in zip(*(part.tolist() for part in where), strict=True)
            ]
            assert keys == read[lane][: len(keys)]
        before = state.offsets
    assert sum(before) == 89


def test_padding_is_the_last_row_of_a_lane_with_no_weight(data: Path) -> None:
    batch = [batch for batch, _ in small.reader(data).epoch()][-1]
    assert batch.num_rows == 16
    assert batch.group.tolist() == [24, 25, 25, 25, 50, 51, 51, 51, 76, 77, 77, 77] + [102] * 4
    expected = [1, 1, 0, 0] * 3 + [1, 0, 0, 0]
    assert batch.weights[:, 0].tolist() == expected
    assert batch.valid[:, 0].tolist() == expected
    assert batch.sparse.values().tolist() == [key % 50 for key in batch.group.tolist()]


def test_a_lane_that_was_finished_before_the_resume_is_padded_too(tmp_path: Path) -> None:
    data = small.write(tmp_path / "data", [9])  # lanes of 5 and 4 rows
    reader = small.reader(data, lanes=2, global_batch_size=4)
    ((batch, state),) = reader.epoch(0, (4, 4))
    assert batch.group.tolist() == [4, 4, 8, 8]
    assert batch.weights[:, 0].tolist() == [1, 0, 0, 0]
    assert state.offsets == (5, 4)


def test_fewer_rows_than_one_batch_in_time_order(tmp_path: Path) -> None:
    data = small.write(tmp_path / "data", [5])
    steps = [
        next(small.reader(data, rank, 2, order="time").epoch())[0].group.tolist() for rank in (0, 1)
    ]
    assert steps == [[0, 1, 2, 3, 4, 4, 4, 4], [4] * 8]


def test_row_groups_in_memory_are_bounded_and_shared(data: Path) -> None:
    for order in ORDERS:
        reader = small.reader(data, order=order)
        assert sum(1 for _ in reader.epoch()) == 7
        assert 1 <= reader.peak_groups <= 4 + 4
        tight = small.reader(data, order=order, open_lanes=4)
        assert sum(1 for _ in tight.epoch()) == 7
        assert tight.peak_groups <= 4 + 1
    shared = small.reader(small.write(data.parent / "one", [60], group_rows=60))
    assert sum(1 for _ in shared.epoch()) == 4
    assert shared.peak_groups == 1


def test_leaving_early_ends_the_threads(data: Path) -> None:
    before = threading.active_count()
    batches = small.reader(data, prefetch=1).epoch()
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    for _ in small.reader(data).epoch():
        break
    assert threading.active_count() == before


def test_a_row_group_that_cannot_be_decoded_is_named(data: Path) -> None:
    path = data / "part-1.parquet"
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    reader = small.reader(data)
    with pytest.raises(UserError, match=r"part-1\.parquet: row group 2: cannot be decoded"):
        list(reader.epoch())
    assert threading.active_count() == 1 or not [
        thread for thread in threading.enumerate() if thread.name.startswith("prismrec")
    ]


def test_a_file_that_changed_since_it_was_counted_is_named(data: Path) -> None:
    reader = small.reader(data)
    pq.write_table(small.table(0, 40), data / "part-0.parquet", row_group_size=5)
    with pytest.raises(UserError, match="row group 0: 5 rows pass the filter and 9 did"):
        list(reader.epoch())


def test_too_few_rows_for_the_lanes(data: Path) -> None:
    with pytest.raises(UserError, match="data.lanes: the split 'train' has 3 rows for 4 lanes"):
        small.reader(data, splits={"train": ["key < 3"]})
    with pytest.raises(UserError, match="data.splits.test: the recipe does not say which rows"):
        small.reader(data, split="test")


def test_more_lanes_than_a_rank_may_hold_open(data: Path) -> None:
    chosen: dict[str, Any] = {"open_lanes": 2, "workers": 2}
    small.reader(data, 0, 2, **chosen)
    with pytest.raises(UserError, match="a rank of 1 owns 4 lanes and may hold only 2 row groups"):
        small.reader(data, **chosen)


def test_time_order_needs_sorted_rows(tmp_path: Path) -> None:
    mixed = small.write_table(tmp_path / "a", small.table(0, 7).take([1, 0, 2, 3, 4, 5, 6]))
    with pytest.raises(UserError, match="row group 0: rows are not sorted by 'at'"):
        list(small.reader(mixed, order="time").epoch())
    order = np.r_[0:6, 10, 6:10, 11:20]
    overlapping = small.write_table(tmp_path / "b", small.table(0, 20).take(order))
    with pytest.raises(UserError, match="row group 0 and part-0.parquet: row group 1 overlap"):
        small.reader(overlapping, order="time")


def test_a_resume_with_other_lanes_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match=r"resume with data\.lanes = 2"):
        next(small.reader(data).epoch(0, (0, 0)))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    files=st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(lambda rows: sum(rows) > 7),
    group_rows=st.integers(1, 12),
    lanes=st.sampled_from([2, 4, 6]),
    step_rows=st.integers(1, 5),
    shuffle_rows=st.integers(1, 20),
    order=st.sampled_from(ORDERS),
    stop=st.integers(0, 6),
)
def test_any_shape_of_data_gives_each_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[int],
    group_rows: int,
    lanes: int,
    step_rows: int,
    shuffle_rows: int,
    order: str,
    stop: int,
) -> None:
    data = small.write(tmp_path_factory.mktemp("data"), files, group_rows)
    chosen = {"lanes": lanes, "global_batch_size": lanes * step_rows, "order": order}
    chosen["shuffle_rows"] = shuffle_rows
    alone = small.keys_by_step(data, **chosen)
    assert sorted(small.flat(alone)) == list(range(sum(files)))
    pair = [small.reader(data, rank, 2, **chosen) for rank in (0, 1)]
    stop = min(stop, pair[0].num_steps)
    offsets = pair[0].lanes.after((0,) * lanes, stop)
    resumed = [list(reader.epoch(0, offsets)) for reader in pair]
    keys = [
        [key for batch, _ in step for key in batch.group[batch.weights[:, 0] > 0].tolist()]
        for step in zip(*resumed, strict=True)
    ]
    assert keys == [step[0] for step in alone[stop:]]
