"""The processes that measure: all cases of one number of ranks, one after the other."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.embeddings.cases import Case

SLOW_MS, SLOW_WINDOWS = 500, 3
"""A way whose step takes longer gets this many windows at most."""
_PATIENCE_S = 600


@dataclass(frozen=True, slots=True)
class Plan:
    """What the processes do.

    Args:
        groups: cases that share their modules.
        curve: a case for every number of sets, only ours, in turns with each other; or none.
        windows: of each peer.
        seconds: length of a window.
        threads: cores of all processes together.
        copied: bytes of a buffer that is copied to see what the memory can do; 0 leaves it out.
        only: names of the peers that are measured; all if there is none.
    """

    groups: tuple[tuple[Case, ...], ...]
    curve: tuple[Case, ...]
    windows: int
    seconds: float
    threads: int
    copied: int = 0
    only: tuple[str, ...] = ()

    @property
    def cases(self) -> list[Case]:
        """All of them."""
        return [*(case for group in self.groups for case in group), *self.curve]


def measured(plan: Plan, ranks: int) -> Iterator[dict[str, Any]]:
    """The results, each as soon as rank 0 has it.

    Raises:
        RuntimeError: a process failed; its traceback is in the message.
    """
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    os.environ["OMP_NUM_THREADS"] = str(max(1, plan.threads // ranks))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            context.Process(
                target=_process, args=(rank, ranks, directory, plan, results), daemon=True
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        try:
            while (result := _next(results, processes)) is not None:
                yield result
        finally:
            for process in processes:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()


def _next(results: Any, processes: Sequence[Any]) -> dict[str, Any] | None:
    for _ in range(_PATIENCE_S):
        try:
            result = results.get(timeout=1)
        except queue.Empty:
            if any(each.exitcode for each in processes):
                codes = [each.exitcode for each in processes]
                raise RuntimeError(f"measuring processes ended with {codes}") from None
            continue
        if isinstance(result, str):
            raise RuntimeError(f"a measuring process failed:\n{result}")
        return result  # type: ignore[no-any-return]
    raise RuntimeError(f"nothing was measured for {_PATIENCE_S} s")


def _process(rank: int, ranks: int, directory: str, plan: Plan, results: Any) -> None:
    try:
        from benchmarks.embeddings.worker import Place, run

        run(Place(rank, ranks, directory), plan, results.put if rank == 0 else _drop)
        if rank == 0:
            results.put(None)
    except BaseException:
        results.put(traceback.format_exc())
        raise


def _drop(result: dict[str, Any]) -> None:
    """Rank 0 says it."""
