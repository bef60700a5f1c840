"""Splits of a rank, and the stream of batches that knows which step is done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from prismrec.config import UserError
from prismrec.data.ledger import Ledger
from prismrec.data.source import open_data
from prismrec.train.feed import Feed, Splits
from prismrec.train.process_group import Ranks
from prismrec.train.state import TrainState
from tests.helpers.runs import NUM_ITEMS, ROWS, make_recipe, write_rows

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
EPOCH = 21
"""Steps of 16 rows that 327 rows take in 4 lanes: the longest lane has 82."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("feed") / "rows")


def splits_of(data: Path, *changes: str, ranks: Ranks = ALONE) -> Splits:
    recipe, source = make_recipe(data, *changes), open_data(data)
    return Splits(recipe, source, ranks)


def test_the_length_of_a_run(data: Path) -> None:
    assert splits_of(data, "train.steps=5").total_steps() == 5
    assert splits_of(data, "train.steps=500").total_steps() == 2 * EPOCH
    assert splits_of(data, "train={epochs=3}").total_steps() == 3 * EPOCH


def test_when_the_validation_rows_are_due(data: Path) -> None:
    def due(*changes: str) -> list[int]:
        splits = splits_of(data, *changes)
        return [s for s in range(1, splits.total_steps() + 1) if splits.evaluates_after(s)]

    assert due("train={epochs=2}", "evaluate={}") == [EPOCH, 2 * EPOCH]
    assert due("train.steps=10", "evaluate.every_steps=4") == [4, 8, 10]
    assert due("train.steps=10", "evaluate={}") == [10]
    assert due("train.steps=10", "data.splits={train=['fold == 0']}") == []


def test_lanes_are_shared_out(data: Path) -> None:
    second = splits_of(data, ranks=Ranks(1, 2, 1, 2, torch.device("cpu")))
    assert second.owned(second.train) == range(2, 4)
    assert second.train.batch_rows == 8


def test_rows_that_are_held_out(data: Path) -> None:
    train = "train=['fold == 0']"
    assert splits_of(data).held_out().num_rows == ROWS["test"]
    valid = splits_of(data, f"data.splits={{{train}, valid=['fold == 1']}}")
    assert valid.held_out().num_rows == ROWS["valid"]
    trained_on = splits_of(data, f"data.splits={{{train}}}").held_out()
    assert trained_on.num_rows == ROWS["train"]
    batch, _ = next(trained_on.epoch())
    first = pq.read_table(data / "0-train.parquet").column("y").fill_null(0).to_pylist()[:4]
    assert batch.dense[:4, 1].tolist() == pytest.approx(first), "as the files lie, not shuffled"


def test_how_often_training_sees_each_row_of_a_table(data: Path) -> None:
    frequency = splits_of(data, "evaluate.frequency_of='item'").frequency()
    items = pq.read_table(data / "0-train.parquet").column("item").to_pylist()
    seen = Counter(item if item in range(NUM_ITEMS) else NUM_ITEMS for item in items)
    assert seen[NUM_ITEMS] > 0
    assert frequency is not None
    assert frequency.tolist() == [seen[row] for row in range(NUM_ITEMS + 1)]
    assert splits_of(data).frequency() is None
    with pytest.raises(UserError, match="'tags' is not a sparse feature with one id per row,"):
        splits_of(data, "evaluate.frequency_of='tags'").frequency()


def test_the_state_follows_the_steps_and_not_the_batches_taken_ahead(data: Path) -> None:
    splits, state, ledger = splits_of(data), TrainState(), Ledger()
    with Feed(splits, state, 30) as feed:
        for _ in range(3):
            next(feed)
        assert (state.step, state.offsets) == (0, [])
        assert feed.take(state, ledger) == 16
    assert (state.step, state.rows_seen, state.epoch) == (1, 16, 0)
    assert state.offsets == [4, 4, 4, 4]
    assert ledger.ranges(0) == (((0, 4),),) * 4


def test_the_last_step_of_an_epoch_and_the_first_of_the_next(data: Path) -> None:
    splits, ledger = splits_of(data), Ledger()
    state = TrainState(step=20, rows_seen=320, offsets=[80, 80, 80, 80])
    with Feed(splits, state, 22) as feed:
        batches = list(feed)
        assert len(batches) == 2, "the run ends at step 22"
        assert feed.take(state, ledger) == 2 + 2 + 2 + 1
        assert (state.epoch, state.offsets, state.rows_seen) == (1, [], ROWS["train"])
        assert (batches[0].weights[:, 0] > 0).sum() == 7
        assert feed.take(state, ledger) == 16
    assert (state.step, state.epoch, state.offsets) == (22, 1, [4, 4, 4, 4])
    assert ledger.ranges(0) == (((80, 82),), ((80, 82),), ((80, 82),), ((80, 81),))


def test_a_feed_from_a_state_goes_on_where_it_was(data: Path) -> None:
    splits = splits_of(data)
    with Feed(splits, TrainState(), 6) as feed:
        whole = [batch.dense for batch in feed]
    with Feed(splits, TrainState(step=4, offsets=[16, 16, 16, 16]), 6) as feed:
        rest = [batch.dense for batch in feed]
    assert [torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True)] == [True, True]
    assert not torch.equal(whole[0], whole[1])


def test_nobody_waits_at_the_end(data: Path) -> None:
    with Feed(splits_of(data), TrainState(), 1) as feed:
        list(feed)
        assert not feed.is_waiting


def test_the_time_spent_waiting_is_told_once(data: Path) -> None:
    with Feed(splits_of(data), TrainState(), 6) as feed:
        next(feed)
        assert feed.waited() > 0
        assert feed.waited() == 0
