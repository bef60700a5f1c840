"""Checkpoints of really sharded tables on two gloo ranks, and of a process killed while it saves."""

from __future__ import annotations

import itertools
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from prismrec.checkpoint import (
    Checkpointer,
    capture,
    latest,
    read_dense,
    restore,
    table_shapes,
    verify,
)
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from tests.helpers.ranks import run_ranks
from tests.helpers.tables import make_spec

KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")
CASES = list(itertools.product(("packed", "separate"), KINDS))
STATE = "accumulator"


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("pickle was used")


def _sharded(spec: EmbeddingSpec) -> list[LocalShard]:
    """This rank's views into the tables of a sharded collection with element-wise Adagrad."""
    import torch.distributed as dist
    from torchrec.distributed.model_parallel import DistributedModelParallel

    from prismrec.embeddings import access
    from prismrec.embeddings import optimizers as table_optimizers
    from prismrec.embeddings.collection import build_collection, physical_tables
    from prismrec.embeddings.plan import Placement, Sharder, data_parallel_tables, plan_tables

    rank, world = dist.get_rank(), dist.get_world_size()
    holder = torch.nn.Module()
    holder.tables = build_collection(spec, torch.device("meta"))
    plan = plan_tables(holder, spec, Placement(world, world, "cpu", 2**30, 4), dist.group.WORLD)
    replicated = data_parallel_tables(plan)

    def name_of(key: str) -> str:
        return key.rpartition("embedding_bags.")[2].removesuffix(".weight")

    bags = {name_of(key): value for key, value in holder.tables.named_parameters()}
    fused = [table for table in physical_tables(spec) if table.name not in replicated]
    table_optimizers.fuse_optimizers(fused, bags)
    model = DistributedModelParallel(
        holder, device=torch.device("cpu"), plan=plan, sharders=[Sharder()]
    )
    by_name = {each.name: each for each in physical_tables(spec)}
    whole = [
        (by_name[name_of(key)], p)
        for key, p in model.named_parameters()
        if name_of(key) in replicated
    ]
    plain = next(iter(table_optimizers.plain_optimizers(whole)), None)
    return access.local_shards(model, spec, rank, plain.state if plain else {})


def _numbers(shard: LocalShard, name: str) -> torch.Tensor:
    """What a shard must hold: every element of every logical tensor has its own number."""
    start = 1000 * (1 + sorted(table_shapes(make_spec())).index(shard.key)) + 0.5 * (name == STATE)
    whole = torch.arange(shard.num_rows * shard.num_cols).view(shard.num_rows, -1) + start
    rows, cols = shard.weight.shape
    return whole[shard.row : shard.row + rows, shard.col : shard.col + cols]


def _everything_everywhere(directory: str) -> list[str]:
    """Save the tables of every case, then load each into the tables of every case."""
    tables = {case: _sharded(make_spec(*case, "adagrad")) for case in CASES}
    paths = {
        case: _save(shards, case, Path(directory) / "-".join(case))
        for case, shards in tables.items()
    }
    for name in ("load", "loads", "Unpickler"):
        setattr(pickle, name, _refuse)
    return [
        f"{source} -> {target}: {wrong}"
        for source, target in itertools.product(CASES, CASES)
        for wrong in _differences(paths[source], source, tables[target], target)
    ]


def _save(shards: list[LocalShard], case: tuple[str, str], directory: Path) -> Path:
    import torch.distributed as dist

    for shard in shards:
        assert shard.states.keys() == {STATE}
        shard.weight.copy_(_numbers(shard, "weight"))
        shard.states[STATE].copy_(_numbers(shard, STATE))
    saver = Checkpointer(directory, dist.get_rank(), 2, "test", timeout_s=30)
    saver.save(1, capture(shards, {"w": torch.ones(3)}, {}, {}), {"case": list(case)})
    # Training goes on in place, with collectives of its own.
    for shard in shards:
        shard.weight.zero_()
        shard.states[STATE].zero_()
    for _ in range(3):
        dist.all_reduce(torch.ones(1))
    path = saver.wait()
    assert path is not None
    return path


def _differences(
    path: Path, source: tuple[str, str], shards: list[LocalShard], target: tuple[str, str]
) -> list[str]:
    dense = {"w": torch.zeros(3)}
    for shard in shards:
        shard.weight.fill_(torch.nan)
        shard.states[STATE].fill_(torch.nan)
    manifest = restore(path, shards, dense, {}, {}, table_shapes(make_spec(*target)))
    assert manifest.extra == {"case": list(source)}
    assert dense["w"].tolist() == [1, 1, 1]
    return [
        f"{shard.key}/{name}"
        for shard in shards
        for name, tensor in {"weight": shard.weight, **shard.states}.items()
        if not torch.equal(tensor, _numbers(shard, name))
    ]


def test_sharded_tables_are_restored_under_every_other_plan(tmp_path: Path) -> None:
    assert run_ranks(_everything_everywhere, 2, str(tmp_path), timeout_s=240) == [[], []]
    packed = verify(tmp_path / "packed-row_wise" / "step-00000001")
    separate = verify(tmp_path / "separate-table_wise" / "step-00000001")
    assert packed.tables.keys() == separate.tables.keys() == table_shapes(make_spec()).keys()


SAVING = """
import sys, torch
from prismrec.checkpoint import Checkpointer, capture
directory = sys.argv[1]
first = Checkpointer(directory, 0, 1, "first")
first.save(1, capture([], {"w": torch.full((4,), 1.0)}, {}, {}), {})
first.wait()
# A world of two whose other rank never comes: this save lasts until the process is killed.
second = Checkpointer(directory, 0, 2, "second")
second.save(2, capture([], {"w": torch.full((1 << 24,), 2.0)}, {}, {}), {})
second.wait()
"""


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not any(_sizes(tmp_path)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [path.name for path in tmp_path.glob("*.tmp-*")] == ["step-00000002.tmp-second-1"]
    path = latest(tmp_path)
    assert path == tmp_path / "step-00000001"
    verify(path)
    assert read_dense(path)["w"].tolist() == [1, 1, 1, 1]
    again = Checkpointer(tmp_path, 0, 1, "third")
    again.save(2, capture([], {"w": torch.full((4,), 3.0)}, {}, {}), {})
    assert again.wait() == latest(tmp_path) == tmp_path / "step-00000002"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def _sizes(directory: Path) -> list[Any]:
    return [file.stat().st_size for file in directory.glob("step-00000002.tmp-*/*.safetensors")]
