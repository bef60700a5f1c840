"""Row groups and files that cannot be decoded: an error, or rows that count for nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from prismrec.config import UserError
from prismrec.data.filters import count_rows, row_filter
from prismrec.data.ledger import Ledger
from prismrec.data.skipped import Skipped
from prismrec.data.source import open_data
from tests.helpers.damage import damage
from tests.unit.data import small

ROWS, GROUP = 45, 7


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of 20 and 25 rows; row group 1 of the second, keys 27 to 33, cannot be decoded."""
    directory = small.write(tmp_path / "rows", [20, 25], GROUP)
    damage(directory / "part-1.parquet", 1, "item")
    return directory


@pytest.mark.parametrize("order", ["file", "shuffle", "time"])
@pytest.mark.parametrize("world", [1, 2])
def test_as_many_weightless_rows_stand_for_a_row_group(data: Path, order: str, world: int) -> None:
    whole = small.reader(small.write(data.parent / "whole", [20, 25], GROUP), order=order)
    seen: dict[int, float] = {}
    named: set[tuple[str, int, int]] = set()
    blank = steps = 0
    for rank in range(world):
        reader = small.reader(data, rank, world, order=order, on_bad_file="skip")
        assert reader.num_steps == whole.num_steps
        end = (0,) * 4
        for batch, state in reader.epoch():
            end = state.offsets
            steps += rank == 0
            weight, valid = batch.weights[:, 0], batch.valid[:, 0]
            counts = (weight > 0).numpy()
            assert not valid[~counts].any()
            seen |= dict(
                zip(batch.group[counts].tolist(), batch.labels[counts, 0].tolist(), strict=True)
            )
            blank += int(((weight == 0) & (batch.group == -1)).sum())
            assert batch.dense[~counts & (batch.group == -1).numpy()].abs().sum() == 0
        assert reader.missing_ids == reader.unknown_ids == {"item": 0}
        assert reader.missing_values == {"price": 0}
        named |= {(each.file, each.row_group, each.rows) for each in reader.skipped}
        assert end == whole.lanes.after((0,) * 4, whole.num_steps)
    assert named == {("part-1.parquet", 1, 7)}
    lost = set(range(27, 34))
    assert set(seen) == set(range(ROWS)) - lost, "and every other row is there"
    assert all(label == (key % 3 == 0) for key, label in seen.items())
    assert blank >= len(lost), "padding may copy such a row"
    assert steps == whole.num_steps


def test_a_row_group_of_a_split_stands_with_the_rows_that_were_counted(data: Path) -> None:
    chosen = {"splits": {"train": ["key != 30"]}}  # the column of the filter can be read
    reader = small.reader(data, on_bad_file="skip", **chosen)
    assert reader.num_rows == ROWS - 1
    list(reader.epoch())
    assert [each.rows for each in reader.skipped] == [6]
    places = [reader.rows_at(0, lane, 0, n) for lane, n in enumerate(reader.lanes.lengths)]
    assert sum(len(files) for files, _, _ in places) == ROWS - 1


def test_a_filter_that_cannot_be_read_takes_every_row_and_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = small.write(tmp_path / "rows", [21], GROUP)
    damage(directory / "part-0.parquet", 1, "item")
    source = open_data(directory)
    rows = row_filter(["item != 3", "item != 9"], source, "split")
    with pytest.raises(
        UserError, match=r"row group 1: cannot be decoded .* data\.on_bad_file = 'skip'"
    ):
        count_rows(source, rows)
    skipped = Skipped(source)
    with caplog.at_level(logging.WARNING):
        assert count_rows(source, rows, skipped).tolist() == [6, 7, 7]
    (said,) = caplog.messages
    assert said.startswith("part-0.parquet: row group 1: cannot be decoded (")
    assert 1 in skipped
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_file_that_is_away_is_never_passed_over(data: Path) -> None:
    reader = small.reader(data, on_bad_file="skip")
    (data / "part-0.parquet").unlink()
    with pytest.raises(UserError, match=r"part-0\.parquet: row group 0: cannot be decoded"):
        list(reader.epoch())


def test_a_file_without_its_end_is_left_out_and_named(tmp_path: Path) -> None:
    directory = small.write(tmp_path / "rows", [20, 25], GROUP)
    cut = directory / "part-1.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"part-1\.parquet: not a Parquet file .*on_bad_file = 'skip'"
    ):
        open_data(directory)
    source = open_data(directory, skip_bad=True)
    assert source.num_rows == 20
    assert list(source.left_out) == ["part-1.parquet"]
    (directory / "part-0.parquet").unlink()
    with pytest.raises(UserError, match="none of its 1 files is a Parquet file"):
        open_data(directory, skip_bad=True)


def test_the_ledger_names_what_counts_for_nothing() -> None:
    ledger = Ledger()
    ledger.add(0, (0, 0), (3, 2))
    assert "skipped" not in ledger.to_json()
    ledger.skip("part-1.parquet", 1, 7)
    again = Ledger.from_json(ledger.to_json())
    assert again.skipped == {("part-1.parquet", 1): 7}
    assert again.epochs == (0,)
    assert again.num_rows == 5


def test_ranks_with_other_rows_in_their_lanes_have_another_digest(tmp_path: Path) -> None:
    directory = small.write(tmp_path / "rows", [20, 25], GROUP)
    same = [small.reader(directory, rank, 2).digest for rank in range(2)]
    assert same[0] == same[1]
    assert small.reader(directory, splits={"train": ["key != 30"]}).digest != same[0]
    assert np.unique([len(each) for each in same]).tolist() == [16]
