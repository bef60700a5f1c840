"""Real gloo ranks with a deadline, for tests of everything that communicates."""

from __future__ import annotations

import datetime
import multiprocessing as mp
import os
import pickle
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120
) -> list[Any]:
    """Call `fn(*args)` on every rank of a gloo group and return what each rank returned, by rank.

    `fn` must be importable (module level). Each rank has one thread and the same seed.

    Raises:
        AssertionError: a rank raised (its traceback is in the message), died, or did not
            return within `timeout_s` seconds (the silent ranks are named).
    """
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = os.path.join(directory, "rendezvous")
        ranks = [
            context.Process(
                target=_run, args=(fn, rank, world_size, rendezvous, results, args), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            return _collect(ranks, results, time.monotonic() + timeout_s, timeout_s)
        finally:
            for process in ranks:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()


def _collect(ranks: list[Any], results: Any, deadline: float, timeout_s: float) -> list[Any]:
    returned: dict[int, Any] = {}
    while len(returned) < len(ranks):
        silent = [rank for rank in range(len(ranks)) if rank not in returned]
        try:
            rank, ok, value = results.get(timeout=0.2)
        except queue.Empty:
            dead = [r for r in silent if ranks[r].exitcode not in (None, 0)]
            assert not dead, f"ranks {dead} died with {[ranks[r].exitcode for r in dead]}"
            assert time.monotonic() < deadline, f"ranks {silent} silent after {timeout_s} s"
            continue
        assert ok, f"rank {rank} raised:\n{value}"
        returned[rank] = pickle.loads(value)
    return [returned[rank] for rank in range(len(ranks))]


def _run(fn: Any, rank: int, world_size: int, rendezvous: str, results: Any, args: Any) -> None:
    try:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
        os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        torch.manual_seed(0)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=60),
        )
        value = fn(*args)
        dist.barrier()
        results.put((rank, True, pickle.dumps(value)))  # by value: the process ends
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - whatever it was, the test must see it
        results.put((rank, False, traceback.format_exc()))
