"""A rank that hangs: stacks of all ranks, what they were at, and an end instead of silence.

Every rank has a thread that writes down, a few times in each timeout, that it lives and how far its rank is.
When its own rank has not moved on for `train.hang_timeout_s` seconds, the thread writes the stacks of its
process and the newest batch into the rank's log. The lowest rank that lives compares what all ranks wrote, says
which of them did not arrive, and ends its process; whoever started the workers ends or restarts the others. A
process that was stopped is killed, if it is on the same machine: nobody else could end it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import TracebackType

import psutil

from prismrec.train.feed import Feed
from prismrec.train.process_group import Ranks
from prismrec.train.quiet import tell
from prismrec.train.run_files import RunFiles, write_whole

_log = logging.getLogger(__name__)

EXIT_CODE = 70
"""Of a process that its watchdog ended."""
_BEATS = 8
"""Signs of life in each timeout."""
_OTHERS_WAIT = 4
"""Timeouts after which a rank ends that nobody has ended."""
_WAITING = "waiting for data"


@dataclass(frozen=True, slots=True)
class Sign:
    """What a rank last wrote about itself.

    Args:
        rank: whose it is.
        host: name of its machine.
        pid: of its process.
        started: when that process began, in seconds since 1970.
        beat: how many signs there were before; it stands still when the process does.
        step: steps done.
        at: what the rank is at, in words.
        is_stuck: whether it has not moved on for the whole timeout.
    """

    rank: int
    host: str
    pid: int
    started: float
    beat: int
    step: int
    at: str
    is_stuck: bool


class Watchdog:
    """Watches this rank from a thread while the context lasts.

    Args:
        ranks: this process among the others.
        files: the run's directory, which all ranks see.
        timeout_s: seconds without progress after which the rank counts as hung; 0 watches nothing.
    """

    def __init__(self, ranks: Ranks, files: RunFiles, timeout_s: float) -> None:
        self._ranks, self._files, self._timeout_s = ranks, files, timeout_s
        self._feed: Feed | None = None
        self._moved = time.monotonic()
        self._step, self._at, self._beat, self._is_paused = 0, "a step", 0, True
        self._ended = threading.Event()
        process = psutil.Process()
        self._who = (socket.gethostname(), process.pid, process.create_time())
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._timeout_s:
            if self._ranks.is_first:
                self._files.hang.unlink(missing_ok=True)
            self._files.sign(0).parent.mkdir(exist_ok=True)
            self._thread = threading.Thread(
                target=self._watch, args=(self._timeout_s,), name="prismrec-watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def follow(self, feed: Feed) -> None:
        """Begin to watch.

        Args:
            feed: the training batches, which know the newest one and whether the loop waits for it.
        """
        self._feed = feed
        self.begin()

    def begin(self) -> None:
        """Begin to watch without a feed: no training batch is asked for yet."""
        self._moved, self._is_paused = time.monotonic(), False

    def moved(self, step: int, at: str = "a step") -> None:
        """This rank has got on.

        Args:
            step: steps done.
            at: what it does next, in words.
        """
        self._step, self._at, self._moved = step, at, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block that may last: what is in it has a time limit of its own."""
        self._is_paused = True
        try:
            yield
        finally:
            self._moved, self._is_paused = time.monotonic(), False

    def _watch(self, timeout_s: float) -> None:
        while True:
            began = time.monotonic()
            if self._ended.wait(timeout_s / _BEATS):
                return
            if time.monotonic() - began > timeout_s / 2:  # this process itself was stopped
                self._moved = time.monotonic()
            moved = self._moved
            is_stuck = not self._is_paused and time.monotonic() - moved > timeout_s
            self._write(is_stuck=is_stuck)
            if is_stuck:
                self._end(timeout_s, moved)

    def _write(self, *, is_stuck: bool) -> None:
        """Give a sign of life; a file system that is away must not end the run."""
        self._beat += 1
        is_waiting = self._feed is not None and self._feed.is_waiting
        at = _WAITING if is_waiting else self._at
        sign = Sign(self._ranks.rank, *self._who, self._beat, self._step, at, is_stuck)
        with contextlib.suppress(OSError):
            write_whole(self._files.sign(self._ranks.rank), json.dumps(asdict(sign)))

    def _end(self, timeout_s: float, moved: float) -> None:
        """Write what is known, and end the process as the lowest rank that lives.

        Returns where the rank has moved on since `moved`, or the block that is watched ends.
        """
        self._write_stacks(timeout_s)
        before = self._signs()
        if self._gets_on(2 * timeout_s / _BEATS, moved):
            return
        self._write(is_stuck=True)  # or the others would take this rank for one that is stopped
        if self._gets_on(timeout_s / _BEATS, moved):
            return
        signs = self._signs()
        alive = [rank for rank, sign in signs.items() if sign.beat > _beat(before, rank)]
        if self._ranks.rank != min([*alive, self._ranks.rank]):
            for _ in range(_OTHERS_WAIT * _BEATS):
                self._write(is_stuck=True)
                if self._gets_on(timeout_s / _BEATS, moved):
                    return
            os._exit(EXIT_CODE)
        message = self._message(timeout_s, signs, alive)
        if self._gets_on(0, moved):
            return
        self._files.write_hang(message)
        _log.error("%s", message)
        tell(message)
        self._kill_stopped(signs, alive)
        os._exit(EXIT_CODE)

    def _gets_on(self, seconds: float, moved: float) -> bool:
        """Whether within so many seconds the block ends, or this rank has moved on since `moved`."""
        return self._ended.wait(seconds) or self._is_paused or self._moved != moved

    def _message(self, timeout_s: float, signs: dict[int, Sign], alive: list[int]) -> str:
        """Which rank did not arrive, where the stacks are and what to do."""
        missing = [rank for rank in range(self._ranks.world_size) if rank not in alive]
        places: dict[str, list[int]] = {}
        for rank in alive:
            places.setdefault(signs[rank].at, []).append(rank)
        least = min((signs[rank].step for rank in alive), default=self._step)
        behind = [rank for rank in alive if signs[rank].step == least]
        if missing:
            who = f"rank {_list(missing)} gave no sign of life"
            hosts = sorted({signs[rank].host for rank in missing if rank in signs})
            who += f" (its process is stopped or gone, on {_list(hosts)})" if hosts else ""
        elif len(places) > 1 and _WAITING in places:
            who = f"rank {_list(places[_WAITING])} did not get past {_WAITING}"
        elif len(behind) < len(alive):
            who = f"rank {_list(behind)} did not arrive"
        elif len(places) > 1:
            who = "all ranks live, " + ", ".join(
                f"rank {_list(some)} at {at}" for at, some in places.items()
            )
        else:
            who = f"all ranks live, at {next(iter(places), self._at)}"
        return (
            f"the workers hang: no step was finished in {timeout_s:g} s after step {self._step}; {who}; "
            f"the stacks of every rank and its newest batch are in {self._files.log(0).parent}/rank-*.log; "
            "--resume goes on from the last checkpoint, train.hang_timeout_s allows longer steps"
        )

    def _write_stacks(self, timeout_s: float) -> None:
        """The newest batch, and the stacks of all threads of this process, into the rank's log."""
        newest = "none yet" if self._feed is None else self._feed.newest()
        with contextlib.suppress(OSError), self._files.log(self._ranks.rank).open("a") as file:
            file.write(
                f"rank {self._ranks.rank} hangs: no progress for {timeout_s:g} s after step "
                f"{self._step}, at {self._at}; newest batch: {newest}\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _signs(self) -> dict[int, Sign]:
        """What the ranks last wrote, of those that wrote."""
        found = {}
        for rank in range(self._ranks.world_size):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found[rank] = Sign(**json.loads(self._files.sign(rank).read_text()))
        return found

    def _kill_stopped(self, signs: dict[int, Sign], alive: list[int]) -> None:
        """Kill ranks of this machine that are stopped: they take no signal but that one."""
        for rank, sign in signs.items():
            if rank in alive or sign.host != self._who[0] or sign.pid == self._who[1]:
                continue
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(sign.pid)
                if abs(process.create_time() - sign.started) < 1:  # a number may be given again
                    process.kill()


def _beat(signs: dict[int, Sign], rank: int) -> int:
    return signs[rank].beat if rank in signs else -1


def _list(items: list[int] | list[str]) -> str:
    return ", ".join(str(each) for each in items)
