"""Batches for the loop: readers of the splits, and the stream that knows which step is done."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from prismrec.config import Recipe, UserError
from prismrec.data.batch import Batch
from prismrec.data.encode.codes import CodeEncoder
from prismrec.data.encode.encoders import Encoder
from prismrec.data.encode.numbers.encoders import NumberEncoder
from prismrec.data.encode.tables import encoders_of
from prismrec.data.lanes import ReaderState, Share
from prismrec.data.ledger import Ledger
from prismrec.data.lookup import id_frequency
from prismrec.data.reader import Reader
from prismrec.data.source import DataSource
from prismrec.train.process_group import Ranks
from prismrec.train.state import TrainState


@dataclass(frozen=True, slots=True)
class IdCounts:
    """Ids of some batches.

    Args:
        seen: ids by feature.
        unknown: those of them that no row of the table stands for.
        missing: those of the unknown that are missing.
        tables: the table of every feature whose ids have their rows for good.
    """

    seen: dict[str, int]
    unknown: dict[str, int]
    missing: dict[str, int]
    tables: dict[str, str]

    def metrics(self) -> dict[str, float]:
        """Shares of a table's ids, for tables with ids.

        `ids/TABLE/unknown` is the sum of `ids/TABLE/missing` and `ids/TABLE/out_of_range`.
        """
        seen: Counter[str] = Counter()
        unknown: Counter[str] = Counter()
        missing: Counter[str] = Counter()
        for feature, table in self.tables.items():
            seen[table] += self.seen[feature]
            unknown[table] += self.unknown[feature]
            missing[table] += self.missing[feature]
        shares = {}
        for table, n in seen.items():
            if n:
                shares[f"ids/{table}/unknown"] = unknown[table] / n
                shares[f"ids/{table}/missing"] = missing[table] / n
                shares[f"ids/{table}/out_of_range"] = (unknown[table] - missing[table]) / n
        return shares


class RunRows(Protocol):
    """The rows of a run, as far as its checkpoints have to know them again."""

    @property
    def source(self) -> DataSource:
        """The data set: its schema and fingerprint."""

    @property
    def ranks(self) -> Ranks:
        """This process among the others."""

    @property
    def digest(self) -> str:
        """Equal where the same rows lie in the same lanes."""

    def skipped(self) -> list[dict[str, Any]]:
        """What this rank passed over so far: split, file, row group, rows and reason of each."""


class Splits:
    """The rows of one rank in every split of the recipe.

    Args:
        recipe: data, features and tasks.
        source: the data set.
        ranks: which lanes are ours.
        encoders: those of `encoders_of`, where they are made already.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: DataSource,
        ranks: Ranks,
        encoders: Mapping[str, Encoder] | None = None,
    ) -> None:
        self.source = source
        self._recipe = recipe
        self.ranks = ranks
        self.on_batch: Callable[[], None] = lambda: None
        """Called for every batch that is evaluated."""
        self._share = Share(ranks.rank, ranks.world_size)
        self.encoders = encoders or encoders_of(recipe, source.schema)
        """By field that is looked up, from its ids or codes to rows of its table."""
        self.train = self._reader("train", training=True)
        """Reader of the training rows."""
        self._others = {
            split: self._reader(split, training=False)
            for split in ("valid", "test")
            if getattr(recipe.data.splits, split) is not None
        }

    @property
    def digest(self) -> str:
        """Equal where the same training rows lie in the same lanes."""
        return self.train.digest

    def skipped(self) -> list[dict[str, Any]]:
        """What this rank passed over so far: split, file, row group, rows and reason of each."""
        readers = {"train": self.train, **self._others}
        return [
            {"split": split, **each.to_json()}
            for split, reader in readers.items()
            for each in reader.skipped
        ]

    def agree(self) -> None:
        """Refuse ranks that would read different rows under the same numbers.

        Collective: every rank calls it.

        Raises:
            UserError: they do; it names the split.
        """
        for split, reader in {"train": self.train, **self._others}.items():
            number = int(reader.digest[:15], 16)
            both = torch.tensor([number, -number], device=self.ranks.device)
            most, least = self.ranks.max(both).tolist()
            if most != -least:
                raise UserError(
                    f"data.splits.{split}: the ranks do not see the same rows in "
                    f"{self.source.path}: files differ between machines, or a row group can be read "
                    "on one of them only; give all machines the same files and remove "
                    "~/.cache/prismrec/counts on each"
                )

    def owned(self, reader: Reader) -> range:
        """Lanes that this rank reads."""
        return reader.lanes.owned(self._share)

    def has(self, split: str) -> bool:
        """Whether the recipe names this split."""
        return split in self._others

    def evaluates_after(self, step: int) -> bool:
        """Whether the validation rows are due after this step; after the last one they always are."""
        every = self._recipe.evaluate.every_steps or self.train.num_steps
        return self.has("valid") and (step % every == 0 or step == self.total_steps())

    def total_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.train.num_steps * self._recipe.train.epochs
        return min(steps, self._recipe.train.steps or steps)

    def batches(self, split: str) -> Iterator[Batch]:
        """All batches of a split but train, in the order of the files; the same number on every rank."""
        for batch, _ in self._others[split].epoch():
            self.on_batch()
            yield batch

    def id_counts(self) -> IdCounts:
        """What all ranks' training batches so far, since this start, had for ids.

        Collective: every rank calls it.
        """
        train = self.train
        counted = (train.seen_ids, train.unknown_ids, train.missing_ids)
        counts = [list(each.values()) for each in counted]
        totals = self.ranks.sum(torch.tensor(counts, device=self.ranks.device)).tolist()
        seen, unknown, missing = (dict(zip(train.seen_ids, each, strict=True)) for each in totals)
        features = self._recipe.features
        tables = {each.name: each.table_name for each in features.lookups}
        tables |= {each.key: each.table for each in features.behaviours}
        tables = {
            key: table
            for key, table in tables.items()
            if not isinstance(self.encoders[key], CodeEncoder)
        }
        return IdCounts(seen, unknown, missing, tables)

    def held_out(self) -> Reader:
        """Reader of rows that were not trained on, or of the training rows where all were."""
        for split in ("test", "valid"):
            if split in self._others:
                return self._others[split]
        return self._reader("train", training=False)

    def frequency(self) -> Tensor | None:
        """How often training sees each row of the table of `evaluate.frequency_of`.

        Collective: every rank calls it.

        Raises:
            UserError: the recipe names no feature with one id per row.
        """
        feature = self._recipe.evaluate.frequency_of
        if feature is None:
            return None
        single = {
            each.feature
            for each in self.train.columns.singles
            if each.encoder.rows_per_id == 1
            and not isinstance(each.encoder, CodeEncoder | NumberEncoder)
        }
        if feature not in single:
            raise UserError(
                f"evaluate.frequency_of: '{feature}' is not a sparse feature with one id per row, "
                f"which has one row for good; such are {', '.join(sorted(single))}"
            )
        counts = id_frequency(
            self.source, self._recipe, feature, self.encoders[feature], self._share
        )
        return self.ranks.sum(torch.from_numpy(counts))

    def _reader(self, split: str, *, training: bool) -> Reader:
        return Reader(self.source, self._recipe, split, self.encoders, self._share, training)


class Feed:
    """The training batches from a state to the end of the run, and the state after each.

    The pipeline takes batches ahead of the steps; `take` tells which rows the step just done had.

    Args:
        splits: for the training rows.
        state: where to begin.
        total_steps: steps of the whole run.
    """

    def __init__(self, splits: Splits, state: TrainState, total_steps: int) -> None:
        self._stream = _stream(splits.train, state, total_steps)
        self._after: deque[ReaderState] = deque()
        self._lanes = splits.train.lanes
        self._waited = 0.0
        self._newest: Batch | None = None
        self.is_waiting = False
        """Whether the loop waits for a batch right now."""

    def newest(self) -> str:
        """The newest batch in words: what it holds of each feature, and up to where the lanes are read."""
        if self._newest is None:
            return "none yet"
        batch, after = self._newest, next(reversed(list(self._after)), None)
        parts = [each for each in (batch.sparse, batch.managed, batch.sequence) if each is not None]
        ids = {
            key: n
            for part in parts
            for key, n in zip(part.keys(), part.length_per_key(), strict=True)
        }
        place = "" if after is None else f", epoch {after.epoch}, lanes up to {list(after.offsets)}"
        counts = ", ".join(f"{key} {count}" for key, count in ids.items())
        return f"{batch.num_rows} rows{place}; ids: {counts}"

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        start, self.is_waiting = time.perf_counter(), True
        try:
            batch, after = next(self._stream)
        finally:
            self.is_waiting = False
        self._newest = batch
        self._waited += time.perf_counter() - start
        self._after.append(after)
        return batch

    def take(self, state: TrainState, ledger: Ledger) -> int:
        """Move the state past the step just done and return the rows of all ranks in it."""
        after = self._after.popleft()
        before = tuple(state.offsets) or (0,) * self._lanes.num_lanes
        rows = sum(after.offsets) - sum(before)
        ledger.add(after.epoch, before, after.offsets)
        is_end = self._lanes.steps(after.offsets) == 0
        state.epoch = after.epoch + is_end
        state.offsets = [] if is_end else list(after.offsets)
        state.step += 1
        state.rows_seen += rows
        return rows

    def drop(self, state: TrainState, ledger: Ledger) -> None:
        """Move the state past a step that changed nothing; the ledger knows its rows as dropped."""
        before = tuple(state.offsets) or (0,) * self._lanes.num_lanes
        after, step = self._after[0], state.step
        self.take(state, ledger)
        ledger.drop(step, after.epoch, list(zip(before, after.offsets, strict=True)))

    def waited(self) -> float:
        """Seconds spent waiting for data since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


def _stream(
    reader: Reader, state: TrainState, total_steps: int
) -> Generator[tuple[Batch, ReaderState], None, None]:
    step, epoch, offsets = state.step, state.epoch, state.offsets
    while step < total_steps:
        for batch, after in reader.epoch(epoch, offsets or None):
            yield batch, after
            step += 1
            if step == total_steps:
                return
        epoch, offsets = epoch + 1, []
