"""Saving while ranks train, without pickle; a process killed while it saves; a run that converts state."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prismrec.checkpoint import (
    Checkpointer,
    capture,
    latest,
    read_dense,
    read_manifest,
    restore,
    table_shapes,
    verify,
)
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import Start, alone, make_recipe, write_rows
from tests.helpers.tables import make_spec

CASES = (("packed", "row_wise"), ("separate", "column_wise"))
STATE = "accumulator"


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("pickle was used")


def _sharded(spec: EmbeddingSpec) -> tuple[Any, list[LocalShard]]:
    """Tables spread over the ranks, and this rank's views into them."""
    import torch.distributed as dist

    from prismrec.embeddings.access import local_shards
    from prismrec.embeddings.collection import build_collection
    from prismrec.embeddings.plan import sharding_plan
    from prismrec.embeddings.sharder import Sharder, shard_tables
    from tests.helpers.sharded import places

    world = dist.get_world_size()
    holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    plan = sharding_plan(holder, places(spec, world, 1), "cpu", world)
    sharded = shard_tables(holder, spec, plan, torch.device("cpu"), Sharder())
    return sharded.dmp, local_shards(sharded.dmp, spec, dist.get_rank(), {})


def _numbers(shard: LocalShard, name: str) -> torch.Tensor:
    """What a shard must hold: every element of every logical tensor has its own number."""
    start = 1000 * (1 + sorted(table_shapes(make_spec())).index(shard.key)) + 0.5 * (name == STATE)
    whole = torch.arange(shard.num_rows * shard.num_cols).view(shard.num_rows, -1) + start
    rows, cols = shard.weight.shape
    return whole[shard.row : shard.row + rows, shard.col : shard.col + cols]


def _save_and_restore(directory: str) -> list[str]:
    """Save the tables of every case, then load each into the tables of every case."""
    tables = {case: _sharded(make_spec(*case))[1] for case in CASES}
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
    restored = restore(path, shards, dense, {}, {}, table_shapes(make_spec(*target)))
    assert restored.manifest.extra == {"case": list(source)}
    assert restored.conversions == ()
    assert dense["w"].tolist() == [1, 1, 1]
    return [
        f"{shard.key}/{name}"
        for shard in shards
        for name, tensor in {"weight": shard.weight, **shard.states}.items()
        if not torch.equal(tensor, _numbers(shard, name))
    ]


def test_ranks_save_in_the_background_and_read_without_pickle(tmp_path: Path) -> None:
    assert run_ranks(_save_and_restore, 2, str(tmp_path), timeout_s=240) == [[], []]
    for case in CASES:
        manifest = verify(tmp_path / "-".join(case) / "step-00000001")
        assert manifest.tables.keys() == table_shapes(make_spec()).keys()


def test_kernels_are_told_the_steps_done() -> None:
    """Adam's and LAMB's corrections of the bias go by the number that the kernel counts itself."""
    from prismrec.embeddings.access import drop_cached_rows, lookups, set_steps_done
    from prismrec.train.process_group import process_group

    with process_group("cpu"):
        model, _ = _sharded(make_spec(sharding="table_wise"))
        set_steps_done(model, 41)
        drop_cached_rows(model)  # tables in plain memory stay as they are
        kernels = [kernel.emb_module for each in lookups(model) for kernel in each._emb_modules]
        assert kernels
        assert [(int(k.iter), int(k.iter_cpu)) for k in kernels] == [(41, 41)] * len(kernels)


def test_a_run_says_how_it_converted_its_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two sets trained side by side go on packed: one accumulator for both, a mean by width."""
    data = write_rows(tmp_path / "data")
    changes = ["embedding.optimizer.name=rowwise_adagrad", "checkpoint.keep_last=5"]
    apart = make_recipe(data, *changes, "embedding.layout=separate", "train.steps=4")
    packed = [*changes, "embedding.layout=packed", "embedding.allow_coupled_sets=true"]
    middle = make_recipe(data, *packed, "train.steps=6")
    later = make_recipe(data, *packed, "train.steps=8")
    run = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        paths = [
            each.checkpoint
            for each in alone(
                [Start(apart, run), Start(middle, run, "second"), Start(later, run, "third")]
            )
        ]
    assert caplog.text.count("row-wise optimizer state was stored for another cut") == 1
    assert "user/wide/accumulator (1 a row to 1 a row shared with narrow, mean)" in caplog.text
    assert [path.name for path in paths] == [f"step-{step:08d}" for step in (4, 6, 8)]
    first, second, third = (read_manifest(path) for path in paths)
    assert first.conversions == ()
    assert second.conversions == third.conversions
    told = json.loads((paths[1] / "manifest.json").read_text())["conversions"]
    assert next(each for each in told if each["tensor"] == "user/wide/accumulator") == {
        "tensor": "user/wide/accumulator",
        "step": 4,
        "rule": "mean",
        "before": [{"col": 0, "cols": 8, "shared_with": []}],
        "after": [{"col": 0, "cols": 8, "shared_with": ["narrow"]}],
    }
    shared = second.tables["user/wide"].tensors["accumulator"]
    assert {block.key for block in shared.blocks} == {
        block.key for block in second.tables["user/narrow"].tensors["accumulator"].blocks
    }


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
