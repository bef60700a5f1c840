"""Writers that are killed at random moments of their saves, and the process that goes on after each."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import torch

from prismrec.checkpoint import Checkpointer, Retention, capture, latest, read_dense, verify

KILLS, ROWS = 15, 60_000


def _write(directory: Path, attempt: int) -> None:
    """Save on and on, every number of a checkpoint being its step."""
    torch.set_num_threads(1)
    newest = latest(directory)
    step = 0 if newest is None else int(read_dense(newest)["a"][0])
    saver = Checkpointer(directory, 0, 1, f"start-{attempt}", Retention(keep_last=2), 5)
    while True:
        step += 1
        parts = {name: torch.full((ROWS,), float(step)) for name in "abcd"}
        saver.save(step, capture([], parts, {}, {}), {"step": step})
        saver.wait()


def test_the_newest_checkpoint_is_whole_whenever_the_writer_dies(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    moments, before, pieces = random.Random(7), 0, 0
    for attempt in range(KILLS):
        writer = fork.Process(target=_write, args=(tmp_path, attempt), daemon=True)
        writer.start()
        assert writer.pid is not None
        deadline = time.monotonic() + 60
        while (now := latest(tmp_path)) is None or int(now.name[5:13]) <= before:
            assert time.monotonic() < deadline, "nothing was saved"
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        pieces += bool(list(tmp_path.glob("*.tmp-*")))
        newest = latest(tmp_path)
        assert newest is not None
        step = verify(newest).step
        assert step > before, "what was saved stays"
        weights = read_dense(newest)
        assert sorted(weights) == list("abcd")
        assert all(bool((each == step).all()) for each in weights.values())
        before = step
    assert pieces > 0, "no writer was killed in the middle of a save"
