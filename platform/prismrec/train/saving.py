"""When the loop saves, what goes into a checkpoint, and going on from one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchrec

import prismrec
from prismrec.checkpoint import (
    Checkpointer,
    Conversion,
    Retention,
    best,
    capture,
    describe_conversions,
    latest,
    latest_conversions,
    merge_conversions,
    read_manifest,
    restore,
    restore_maps,
    table_shapes,
)
from prismrec.config import Recipe, UserError, dump
from prismrec.data.encode.copies import copied_files, copy_files, named_files
from prismrec.data.ledger import Ledger
from prismrec.embeddings import access
from prismrec.train.evaluate import Report
from prismrec.train.feed import RunRows
from prismrec.train.run_files import RunFiles
from prismrec.train.sentinel import RolledBack
from prismrec.train.sharding import ShardedModel
from prismrec.train.skipped_rows import SkippedRows
from prismrec.train.state import TrainState

_log = logging.getLogger(__name__)


class Saver:
    """Checkpoints of one run.

    Args:
        recipe: for the cadence; it goes into every checkpoint.
        splits: the rows, which a resumed run must meet again.
        sharded: what is saved.
        files: the run's directory.
        attempt: differs at every start of the run.
        digests: SHA-256 of the files that ids and numbers are read by, see `file_digests`.
    """

    def __init__(
        self,
        recipe: Recipe,
        splits: RunRows,
        sharded: ShardedModel,
        files: RunFiles,
        attempt: str,
        digests: Mapping[str, str],
    ) -> None:
        self._recipe = recipe
        self._splits = splits
        self._source = splits.source
        self._sharded = sharded
        self._directory = files.checkpoints
        self._run = files.directory
        self._digests = dict(digests)
        ranks = sharded.ranks
        section = recipe.checkpoint
        self._checkpointer = Checkpointer(
            files.checkpoints,
            ranks.rank,
            ranks.world_size,
            attempt,
            Retention(section.keep_last, section.keep_best),
        )
        self._every = section.every_steps
        self._saved_step: int | None = None
        self._conversions: tuple[Conversion, ...] = ()
        self.ledger = Ledger()
        self.skipped = SkippedRows(splits, is_allowed=recipe.data.on_bad_file == "skip")
        """What cannot be decoded; the ledger of every checkpoint names it."""
        self.has_resumed = False
        """Whether the weights are those of a checkpoint of this run."""
        self.beside: dict[str, Any] = {}
        """What else goes into every checkpoint, as JSON; after `resume`, what was in that one."""

    def is_due(self, step: int) -> bool:
        """Whether the recipe wants a checkpoint after this step."""
        return self._every is not None and step % self._every == 0

    def save(self, state: TrainState, report: Report | None = None) -> None:
        """Begin a checkpoint of the present weights; the loop may go on at once.

        Collective: every rank calls it at the same step.

        Args:
            state: how far the run is.
            report: the evaluation of these weights, if there was one.
        """
        sharded = self._sharded
        sharded.average_copies()
        if sharded.touched is not None:
            sharded.touched.merge()
        self.skipped.collect(self.ledger)
        self._checkpointer.wait()  # one copy in host memory at a time, as the plan counts it
        snapshot = capture(
            sharded.shards(),
            sharded.dense(),
            sharded.dense_optimizer(),
            sharded.averages(),
            sharded.managed.state(),
        )
        copies = copied_files(self._recipe, self._run).values()
        self._checkpointer.save(
            state.step,
            replace(snapshot, copies={file.name: file for file in copies}),
            self._extra(state),
            report.score if report else None,
            self._conversions,
        )
        self._saved_step = state.step

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """A block that may be rolled back, which then waits for the save under way to become whole."""
        try:
            yield
        except RolledBack:
            self._checkpointer.wait()
            raise

    def finish(self, state: TrainState) -> None:
        """Save the last step, if it is not saved yet, and return once nothing is being written.

        Collective: every rank calls it.
        """
        if self._saved_step != state.step:
            self.save(state)
        self._checkpointer.wait()

    def resume(self) -> TrainState:
        """Load the newest checkpoint of the run, or start from nothing.

        Collective: every rank calls it.

        Raises:
            UserError: the checkpoint is of other data, lanes, files or another model.
        """
        path = self._chosen(latest)
        if path is not None:
            self._check_files(path)
        if self._sharded.ranks.is_first:
            copy_files(self._recipe, self._run, self._digests)
        if path is None:
            return TrainState()
        extra = self._load(path)
        for key, ours in (
            ("fingerprint", self._source.fingerprint),
            ("lanes", self._recipe.data.lanes),
            ("seed", self._recipe.seed),
            ("rows", self._splits.digest),
        ):
            if extra.get(key, ours) != ours:  # checkpoints of earlier versions have no rows
                raise UserError(
                    f"{path}: was made with {key} {extra[key]}, this run has {ours}; the rows "
                    "already seen cannot be told apart; start a new run"
                )
        self.ledger = Ledger.from_json(extra["ledger"])
        state = TrainState.from_json(extra["state"])
        self._sharded.steps_before = extra.get("steps_before", 0)
        self._sharded.set_steps_done(state.step)
        self._saved_step = state.step
        self.beside = extra.get("beside", {})
        self.has_resumed = True
        return state

    def restore_best(self) -> Path:
        """Load the checkpoint to register and return its path.

        Collective: every rank calls it.
        """
        path = self._chosen(best) if self._recipe.checkpoint.keep_best else None
        newest = self.newest()
        if path is not None and path != newest:
            self._load(path)
        return path or newest

    def newest(self) -> Path:
        """The checkpoint that a resumed run goes on from.

        Collective: every rank calls it.

        Raises:
            UserError: there is none.
        """
        path = self._chosen(latest)
        if path is None:
            raise UserError(
                f"{self._directory}: no whole checkpoint in it, though one was saved; something "
                "removed it: start a new run"
            )
        return path

    def _chosen(self, choose: Callable[[Path], Path | None]) -> Path | None:
        """The checkpoint that rank 0 chooses: ranks may see a shared directory differently."""
        ranks = self._sharded.ranks
        chosen = choose(self._directory) if ranks.is_first else None
        name = ranks.share_text(chosen.name if chosen else "")
        return self._directory / name if name else None

    def _load(self, path: Path) -> dict[str, Any]:
        sharded = self._sharded
        maps = sharded.managed.blank()
        restore_maps(path, maps)
        restored = restore(
            path,
            sharded.shards(),
            sharded.dense(),
            sharded.dense_optimizer(),
            sharded.averages(),
            table_shapes(sharded.spec),
        )
        sharded.managed.load(maps, restored.manifest.step)
        access.drop_cached_rows(sharded.dmp)
        found: list[tuple[Conversion, ...]] = [()] * sharded.ranks.world_size
        dist.all_gather_object(found, restored.conversions)
        converted = merge_conversions(each for of_rank in found for each in of_rank)
        if converted and sharded.ranks.is_first:
            _log.warning("%s: %s", path, describe_conversions(converted))
        self._conversions = latest_conversions(restored.manifest.conversions, converted)
        return restored.manifest.extra

    def _check_files(self, path: Path) -> None:
        """Refuse a checkpoint whose rows stand for other ids than this run's."""
        then = read_manifest(path).extra.get("files", {})
        for name, file in named_files(self._recipe).items():
            if then.get(name) != self._digests[name]:
                raise UserError(
                    f"{file.where}: {file.path} is not the {file.what} that {path} was made with, so "
                    f"{file.otherwise}; put {file.copy} of that checkpoint in its place, or start a "
                    "new run"
                )

    def _extra(self, state: TrainState) -> dict[str, Any]:
        return {
            "state": state.to_json(),
            "ledger": self.ledger.to_json(),
            "beside": self.beside,
            "recipe": dump(self._recipe),
            "plan": self._sharded.plan,
            "steps_before": self._sharded.steps_before,
            "lanes": self._recipe.data.lanes,
            "seed": self._recipe.seed,
            "fingerprint": self._source.fingerprint,
            "rows": self._splits.digest,
            "schema": self._source.schema.model_dump(exclude_defaults=True),
            "files": self._digests,
            "versions": {
                "prismrec": prismrec.__version__,
                "torch": str(torch.__version__),
                "torchrec": str(torchrec.__version__),
            },
        }
