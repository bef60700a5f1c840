"""One whole checkpoint of one rank: 26 tables with their optimizer state, saved as a run saves them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from prismrec.checkpoint import Checkpointer, capture
from prismrec.embeddings.shards import LocalShard

TABLES, DIM = 26, 16


def save_once(directory: Path, rows: int) -> tuple[float, float, int]:
    """Write a checkpoint of 26 tables x 16 with element-wise state.

    Args:
        directory: where; emptied before.
        rows: of each table.

    Returns:
        Seconds that training would stand still (the copy in memory), seconds until the checkpoint is whole
        and on disk, and its bytes.
    """
    shutil.rmtree(directory, ignore_errors=True)
    shards = [
        LocalShard(
            f"table_{n}",
            "main",
            rows,
            DIM,
            0,
            0,
            torch.rand(rows, DIM),
            {"accumulator": torch.rand(rows, DIM)},
        )
        for n in range(TABLES)
    ]
    saver = Checkpointer(directory, 0, 1, "bench")
    start = time.perf_counter()
    snapshot = capture(shards, {"w": torch.ones(3)}, {}, {})
    copied = time.perf_counter() - start
    saver.save(1, snapshot, {})
    path = saver.wait()
    seconds = time.perf_counter() - start
    assert path is not None
    size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return copied, seconds, size
