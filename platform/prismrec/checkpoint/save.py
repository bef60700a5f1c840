"""Saving in the background: every rank writes its part, rank 0 makes the parts a checkpoint.

The ranks meet through the shared file system only, so that no collective runs beside training:

1. rank 0 makes `step-00001000.tmp-<save id>`; the others wait until they see it;
2. every rank writes its files there and, last, `rank-<rank>.json`;
3. rank 0 waits for all of these, writes `manifest.json` and gives the directory its name;
4. the others wait until they see that name. A rank that fails leaves `rank-<rank>.failed`.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prismrec.checkpoint.directory import (
    Retention,
    checkpoints,
    find_save,
    free_path,
    prune,
    remove_unfinished,
    unfinished_path,
)
from prismrec.checkpoint.manifest import (
    FORMAT,
    VERSION,
    Conversion,
    Manifest,
    Part,
    sync_directory,
    write_manifest,
)
from prismrec.checkpoint.parts import merge_maps, merge_tables, part_file, write_part
from prismrec.checkpoint.snapshot import Snapshot
from prismrec.config import UserError

_log = logging.getLogger(__name__)
_GRACE_S = 10.0


class Checkpointer:
    """Writes the checkpoints of one run into one directory, one at a time, in the background.

    Every rank has one, makes the same calls at the same steps, and calls `wait` before it leaves.

    Args:
        directory: shared by all ranks; made when it is missing.
        rank: of this process.
        world_size: number of ranks.
        attempt: letters, digits, `_` and `-`; the same on all ranks and another one at every
            start of the run, so that what a killed start left cannot be taken for this one's.
        retention: which checkpoints stay.
        timeout_s: longest wait for another rank, in seconds.
    """

    def __init__(
        self,
        directory: str | Path,
        rank: int,
        world_size: int,
        attempt: str,
        retention: Retention = Retention(),  # noqa: B008 - frozen
        timeout_s: float = 1800.0,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", attempt):
            raise ValueError(f"attempt must be letters, digits, '_' and '-', got {attempt!r}")
        if retention.keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {retention.keep_last}")
        self._directory = Path(directory).absolute()
        self._rank = rank
        self._world_size = world_size
        self._attempt = attempt
        self._retention = retention
        self._timeout_s = timeout_s
        self._num_saves = 0
        self._running: Future[Path] | None = None
        self._last: Path | None = None

    def save(
        self,
        step: int,
        snapshot: Snapshot,
        extra: dict[str, Any],
        metric: float | None = None,
        conversions: Sequence[Conversion] = (),
    ) -> None:
        """Begin to write a checkpoint and return; waits for the one before, if it still runs.

        Args:
            step: training steps done.
            snapshot: this rank's state, from `capture`; must not be changed afterwards.
            extra: what JSON can hold, with string keys and finite numbers, copied before this
                returns; rank 0's is kept.
            metric: the score of this state, higher is better; rank 0's is kept. None or not finite
                means not evaluated.
            conversions: how row-wise state came into its present form; rank 0's are kept.

        Raises:
            UserError: the save before this one failed; this one is not begun.
            ValueError: `extra` is not JSON.
        """
        self.wait()
        self._num_saves += 1
        is_scored = metric is not None and math.isfinite(metric)
        job = _Job(
            place=_Place(
                self._directory,
                step,
                f"{self._attempt}-{self._num_saves}",
                self._rank,
                self._world_size,
                self._timeout_s,
            ),
            snapshot=snapshot,
            extra=json.loads(json.dumps(extra, allow_nan=False)),
            metric=metric if is_scored else None,
            retention=self._retention,
            conversions=tuple(conversions),
        )
        future: Future[Path] = Future()
        # A daemon: a process that fails must not outlive its failure waiting for other ranks.
        threading.Thread(
            target=_run, args=(job, future), name=f"checkpoint-{step}", daemon=True
        ).start()
        self._running = future

    def wait(self) -> Path | None:
        """Return when no save runs: the path of the last checkpoint made here, None before any.

        On every rank the checkpoint is whole when this returns.

        Raises:
            UserError: the disk is full or refuses, or another rank failed or stayed away. Earlier
                checkpoints are untouched.
        """
        if self._running is not None:
            running, self._running = self._running, None
            self._last = running.result()
        return self._last


@dataclass(frozen=True, slots=True)
class _Place:
    """One save as one rank sees it."""

    directory: Path
    step: int
    save_id: str
    rank: int
    world_size: int
    timeout_s: float

    @property
    def unfinished(self) -> Path:
        return unfinished_path(self.directory, self.step, self.save_id)

    def part(self, rank: int) -> Path:
        return self.unfinished / part_file(rank)

    def failure(self, rank: int) -> Path:
        return self.part(rank).with_suffix(".failed")


@dataclass(frozen=True, slots=True)
class _Job:
    place: _Place
    snapshot: Snapshot
    extra: dict[str, Any]
    metric: float | None
    retention: Retention
    conversions: tuple[Conversion, ...]


def _run(job: _Job, future: Future[Path]) -> None:
    try:
        future.set_result(_save(job))
    except BaseException as error:  # noqa: BLE001 - raised by the next call of the training thread
        future.set_exception(error)


def _save(job: _Job) -> Path:
    place = job.place
    try:
        if place.rank == 0:
            place.directory.mkdir(parents=True, exist_ok=True)
            remove_unfinished(place.directory)
            place.unfinished.mkdir()
        else:
            _await(place, place.unfinished.is_dir, "rank 0 did not begin to save")
        write_part(place.unfinished, place.rank, job.snapshot, job.extra)
        return _commit(job) if place.rank == 0 else _await_commit(place)
    except OSError as error:
        _give_up(place, str(error.strerror))
        raise UserError(_refusal(place, error)) from error
    except Exception as error:
        _give_up(place, str(error))
        raise


def _commit(job: _Job) -> Path:
    place = job.place

    def is_decided() -> bool:
        ranks = range(place.world_size)
        return all(place.part(r).exists() for r in ranks) or _failures(place) != {}

    _await(place, is_decided, "not every rank wrote its part")
    _raise_failures(place)
    parts = [
        Part.model_validate_json(place.part(rank).read_bytes()) for rank in range(place.world_size)
    ]
    write_manifest(place.unfinished, _manifest(job, parts))
    for rank in range(place.world_size):
        place.part(rank).unlink()
    path = free_path(place.directory, place.step)
    place.unfinished.rename(path)
    sync_directory(place.directory)
    _log.info("checkpoint of step %d saved: %s", place.step, path)
    try:
        prune(place.directory, job.retention, path)
    except OSError as error:
        _log.warning("an old checkpoint could not be removed: %s", error)
    return path


def _manifest(job: _Job, parts: list[Part]) -> Manifest:
    place = job.place
    earlier = checkpoints(place.directory)
    try:
        return Manifest(
            format=FORMAT,
            version=VERSION,
            step=place.step,
            sequence=1 + max((manifest.sequence for _, manifest in earlier), default=0),
            save_id=place.save_id,
            world_size=place.world_size,
            metric=job.metric,
            files={name: entry for part in parts for name, entry in part.files.items()},
            tables=merge_tables(parts),
            maps=merge_maps(parts),
            dense=parts[0].dense,
            dense_optimizer=parts[0].dense_optimizer,
            ema=parts[0].ema,
            extra=parts[0].extra,
            copies=parts[0].copies,
            conversions=job.conversions,
        )
    except ValidationError as error:
        raise ValueError(
            f"the shards of all ranks do not make whole tables: {error.errors()[0]['msg']}"
        ) from error


def _await_commit(place: _Place) -> Path:
    def is_decided() -> bool:
        return place.failure(0).exists() or not place.unfinished.exists()

    _await(place, is_decided, "rank 0 did not complete the checkpoint")
    _raise_failures(place)
    # A network file system may show the new name later than it hides the old one.
    deadline = time.monotonic() + min(_GRACE_S, place.timeout_s)
    while (path := find_save(place.directory, place.step, place.save_id)) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"checkpoint of step {place.step} in {place.directory}: rank 0 gave it up; "
                f"its own message says why"
            )
        time.sleep(0.05)
    return path


def _give_up(place: _Place, reason: str) -> None:
    """Remove what this rank wrote and tell the others; rank 0 then removes the directory."""
    try:
        for file in place.unfinished.glob(f"rank-{place.rank:05d}*"):
            file.unlink(missing_ok=True)
        if place.unfinished.is_dir():
            place.failure(place.rank).write_text(reason)
    except OSError as error:
        _log.warning("the failed checkpoint %s could not be cleared: %s", place.unfinished, error)
    if place.rank == 0:
        # Until the others have stopped writing, or the directory could not be removed.
        deadline = time.monotonic() + min(_GRACE_S, place.timeout_s)
        others = set(range(1, place.world_size)) if place.unfinished.is_dir() else set()
        while others - _failures(place).keys() and time.monotonic() < deadline:
            time.sleep(0.02)
        shutil.rmtree(place.unfinished, ignore_errors=True)


def _failures(place: _Place) -> dict[int, str]:
    found = {}
    for rank in range(place.world_size):
        try:
            found[rank] = place.failure(rank).read_text()
        except OSError:
            continue
    return found


def _raise_failures(place: _Place) -> None:
    for rank, reason in _failures(place).items():
        raise UserError(
            f"checkpoint of step {place.step} in {place.directory}: rank {rank} failed: {reason}; "
            f"earlier checkpoints are untouched"
        )


def _await(place: _Place, is_done: Callable[[], bool], complaint: str) -> None:
    deadline, pause = time.monotonic() + place.timeout_s, 0.005
    while not is_done():
        if time.monotonic() > deadline:
            silent = [r for r in range(place.world_size) if not place.part(r).exists()]
            raise UserError(
                f"checkpoint of step {place.step} in {place.directory}: {complaint} within "
                f"{place.timeout_s:g} s (without a part: ranks {silent}); check that all ranks "
                f"live and see the same directory"
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _refusal(place: _Place, error: OSError) -> str:
    advice = "free space or choose another directory"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "make it writable or choose another directory"
    return (
        f"checkpoint of step {place.step} in {place.directory}: rank {place.rank} cannot write "
        f"{error.filename or place.unfinished}: {error.strerror}; {advice}; earlier checkpoints "
        f"are untouched"
    )
