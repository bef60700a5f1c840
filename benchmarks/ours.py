"""Measured program: the training loop itself, with its reader, over the benchmark's rows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

from benchmarks.channel import Channel
from benchmarks.train_data import BATCH, recipe
from prismrec.config import Recipe
from prismrec.data.source import DataSource, open_data
from prismrec.embeddings.collection import build_collection
from prismrec.embeddings.plan import Sharder, table_bytes
from prismrec.models import spec_of
from prismrec.train.loop import Session, train
from prismrec.train.process_group import process_group
from prismrec.train.run_files import RunFiles


class _Done(BaseException):
    """No more windows are wanted."""


class Stopwatch:
    """A tracker that hears of every window's end and lets the loop go on when it is asked to.

    Args:
        channel: to the benchmark.
        facts: said once, after the first windows, which warm up.
        warm_up: their number.
    """

    def __init__(self, channel: Channel, facts: dict[str, Any], warm_up: int = 2) -> None:
        self._channel = channel
        self._facts = facts
        self._left = warm_up
        self._start = self._start_cpu = 0.0

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """A window has ended: say what it took, then wait for the next request."""
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._start_cpu
        self._left -= 1
        if self._left > 0:
            return
        if self._left == 0:
            self._channel.say(ready=True, **self._facts)
        else:
            self._channel.say(seconds=seconds, cpu=cpu)
        if not self._channel.is_asked():
            raise _Done
        self._start, self._start_cpu = time.perf_counter(), time.process_time()

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Facts of the run: not needed here."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Files of the run: not needed here."""

    def close(self) -> None:
        """Nothing waits."""


class _Holder(nn.Module):
    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables


def _estimates(chosen: Recipe, source: DataSource) -> dict[str, int]:
    """Bytes the planner counts for the only rank, and bytes of tables with optimizer state alone."""
    spec = spec_of(chosen, source.schema)
    holder = _Holder(build_collection(spec, torch.device("meta")))
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, compute_device="cpu", hbm_cap=0, ddr_cap=1 << 50),
        batch_size=BATCH,
        constraints={
            table.name: ParameterConstraints(sharding_types=["table_wise"]) for table in spec.tables
        },
    )
    planner.plan(holder, [Sharder()])
    storages = [shard.storage for option in planner._best_plan or [] for shard in option.shards]
    planned = sum(storage.ddr for storage in storages if storage is not None)
    return {"planner_bytes": planned, "table_bytes": table_bytes(spec)}


def main() -> None:
    """Train until nobody asks for more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--steps", type=int, required=True)
    asked = parser.parse_args()
    channel = Channel()
    chosen = recipe(asked.data, asked.precision, asked.steps)
    source = open_data(chosen.data.path)
    facts: dict[str, Any] = _estimates(chosen, source)
    with TemporaryDirectory() as directory, process_group("cpu") as ranks:
        facts["before_bytes"] = psutil.Process().memory_info().rss
        session = Session(ranks, RunFiles(Path(directory)), Stopwatch(channel, facts), "bench")
        try:
            train(chosen, source, session)
        except _Done:
            return


if __name__ == "__main__":
    main()
