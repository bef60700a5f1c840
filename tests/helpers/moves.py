"""Checkpoints of trained tables moved between placements, layouts and numbers of ranks.

All of it happens on four gloo ranks: the first one, two or all of them are a world of their own.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _remote_device
from torch.distributed.device_mesh import DeviceMesh
from torchrec.distributed import comm
from torchrec.distributed.types import ShardingEnv, ShardingEnv2D, ShardingPlan

from prismrec.checkpoint import (
    Checkpointer,
    capture,
    merge_conversions,
    restore,
    table_shapes,
)
from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings import access
from prismrec.embeddings.collection import SetViews, build_collection
from prismrec.embeddings.plan.expand import TablePlace, sharding_plan, strips
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec
from prismrec.embeddings.sharder import Sharder, shard_tables
from prismrec.embeddings.shards import LocalShard
from tests.helpers.sharded import BATCH, draw, kjt, loss_of, places, together
from tests.helpers.tables import make_spec

STEPS = 3
"""Steps before the checkpoint."""

TOLERANCE = 1e-6
"""Largest relative difference of a loss: ranks add up gradients in another order."""


@dataclass(frozen=True)
class Form:
    """How the tables lie.

    Args:
        layout: "packed", "separate" or "spread".
        kind: of placement; `uneven` cuts columns so that a strip has a part of a set and another set.
        world_size: 1, 2 or 4; four ranks that hold one copy pretend to be on two machines.
        copies: of the tables, each on as many ranks.
    """

    layout: str
    kind: str
    world_size: int
    copies: int = 1

    def __str__(self) -> str:
        times = f"x{self.copies}" if self.copies > 1 else ""
        return f"{self.layout}-{self.kind}-{self.ranks}{times}"

    @property
    def ranks(self) -> int:
        """Ranks that hold one copy."""
        return self.world_size // self.copies

    @property
    def hosts(self) -> int:
        """Machines of a copy."""
        return 2 if self.ranks == 4 else 1


@dataclass(frozen=True)
class Move:
    """A checkpoint made in one form and restored in another, of tables with one kind of optimizer."""

    optimizer: str
    source: Form
    target: Form

    def __str__(self) -> str:
        return f"{self.optimizer}: {self.source} -> {self.target}"


def spec_of(optimizer: str, layout: str) -> EmbeddingSpec:
    """Tables with one optimizer, or `own`: sets with types, optimizers and features of their own.

    Tables of 5 rows among them: cut by rows, the last of four ranks has none of it.
    """
    rule = {"name": "adagrad" if optimizer == "own" else optimizer, "learning_rate": 0.1}
    common = TableOptimizer.model_validate(rule)
    spec = make_spec(layout)
    tables = tuple(replace(table, optimizer=common) for table in spec.tables)
    spec = replace(spec, tables=tables, allow_coupled_sets=True)
    if optimizer != "own":
        return spec
    alone = TableOptimizer(name="rowwise_adagrad", learning_rate=0.1)
    sets = (
        EmbeddingSet("wide", 8, 0.1),
        EmbeddingSet("half", 8, 0.1, ("user", "item"), data_type="fp16", optimizer=alone),
        EmbeddingSet("narrow", 4, 0.2, ("item", "history", "tag")),
    )
    return replace(spec, sets=sets)


def run_moves(moves: Sequence[Move], directory: str) -> list[str]:
    """What went wrong on this rank; `run_ranks`' function on four ranks.

    Collective: every rank calls it.
    """
    worlds = _Worlds()
    problems = []
    for optimizer in dict.fromkeys(move.optimizer for move in moves):
        mine = [move for move in moves if move.optimizer == optimizer]
        for form in dict.fromkeys(move.source for move in mine):
            if worlds.enter(form):
                _make(worlds, optimizer, form, Path(directory))
            worlds.meet()
        for form in dict.fromkeys(move.target for move in mine):
            if worlds.enter(form):
                tables = _Tables(worlds, optimizer, form)
                for move in mine:
                    if move.target == form:
                        problems += [f"{move}: {each}" for each in _moved(tables, move, directory)]
            worlds.meet()
    return problems


class _Worlds:
    """The first 1, 2 or 4 ranks as worlds of their own, in turn."""

    def __init__(self) -> None:

        self._rank = dist.get_rank()
        patient = datetime.timedelta(minutes=10)  # the ranks outside of a world wait for it
        self.groups = {size: dist.new_group(range(size), patient) for size in (1, 2, 4)}
        alone = [dist.new_group([rank]) for rank in range(4)]
        pairs = {peers: dist.new_group(peers) for peers in ((0, 1), (2, 3), (0, 2), (1, 3))}
        beside = next(group for peers, group in pairs.items() if peers == self._host())
        across = next(group for peers, group in pairs.items() if peers == self._other_host())
        mine = alone[self._rank]
        self.copies = DeviceMesh("cpu", [[0, 2], [1, 3]], mesh_dim_names=("replicate", "shard"))
        # TorchRec's groups of the ranks of a machine, and of the n-th ranks of all machines.
        self._of_hosts = {1: (mine, mine), 2: (beside, mine), 4: (beside, across)}

    def _host(self) -> tuple[int, int]:
        first = self._rank // 2 * 2
        return first, first + 1

    def _other_host(self) -> tuple[int, int]:
        return self._rank % 2, self._rank % 2 + 2

    def enter(self, form: Form) -> bool:
        """Be a rank of a form's world; whether this rank is one."""
        if self._rank >= form.world_size:
            return False
        comm._INTRA_PG, comm._CROSS_PG = self._of_hosts[form.world_size]
        os.environ["LOCAL_WORLD_SIZE"] = str(form.world_size // form.hosts)
        return True

    def meet(self) -> None:
        """Wait for all four."""

        dist.barrier(self.groups[4])


class _Tables:
    """Tables of one form on this rank, initialised and ready for a step.

    Collective: every rank of the form's world makes one.
    """

    def __init__(self, worlds: _Worlds, optimizer: str, form: Form) -> None:

        self.form, self.spec = form, spec_of(optimizer, form.layout)
        self.rank, self.group = dist.get_rank(), worlds.groups[form.world_size]
        holder = torch.nn.ModuleDict({"tables": build_collection(self.spec, torch.device("meta"))})
        placed = placed_of(self.spec, form)
        plan = sharding_plan(holder, placed, "cpu", form.ranks // form.hosts)
        env = ShardingEnv(form.world_size, self.rank)  # with a group it would make more of them
        env.process_group = self.group
        if form.copies > 1:
            env = self._env_of_copies(worlds.copies, plan)
        self._share = BATCH // form.ranks
        self._first = env.rank * self._share  # all copies get the same rows, and stay the same
        self.sharded = shard_tables(holder, self.spec, plan, torch.device("cpu"), Sharder(), env)
        self._views = SetViews(self.spec)
        access.initialize(self.shards(), self.spec)

    def _env_of_copies(self, mesh: DeviceMesh, plan: ShardingPlan) -> ShardingEnv2D:
        """The ranks of this rank's copy, put into a plan for the first so many ranks."""
        copies = self.form.copies

        def own(rank: int) -> int:
            return rank * copies + self.rank % copies

        for module in plan.plan.values():
            for sharding in module.values():  # type: ignore[attr-defined]
                sharding.ranks = [own(rank) for rank in sharding.ranks]
                for shard in sharding.sharding_spec.shards:
                    shard.placement = _remote_device(f"rank:{own(shard.placement.rank())}/cpu")
        everyone = dist.group.WORLD
        assert everyone is not None
        return ShardingEnv2D(mesh.get_group("shard"), mesh.get_group("replicate"), everyone, mesh)

    def shards(self) -> list[LocalShard]:
        """This rank's blocks."""

        return access.local_shards(
            self.sharded.dmp, self.spec, self.rank, self.sharded.plain_states()
        )

    def step(self, number: int) -> float:
        """Train on a batch; its loss over all ranks, before the update."""

        batch = kjt(self.spec, draw(self.spec, number), self._first, self._share)
        sets = [each.float() for each in self._views(self.sharded.dmp.module["tables"](batch))]
        for each in self.sharded.plain:
            each.zero_grad()
        loss = loss_of(sets, self._first)
        (loss * self.form.ranks).backward()  # TorchRec takes the mean over the ranks
        for each in self.sharded.plain:
            each.step()
        doubled = [each.detach().double() for each in sets]
        total = loss_of(doubled, self._first)
        dist.all_reduce(total, group=self.group)
        return float(total) / self.form.copies


def placed_of(spec: EmbeddingSpec, form: Form) -> list[TablePlace]:
    """Where every table of a form is."""
    kind = "column_wise" if form.kind == "uneven" else form.kind
    placed = places(spec, form.ranks, form.hosts, kind)
    if form.kind != "uneven":
        return placed
    return [_uneven(place, index, form.ranks) for index, place in enumerate(placed)]


def _uneven(place: TablePlace, index: int, ranks: int) -> TablePlace:
    """Two strips, the first one of four columns."""
    width = place.strips[-1].col + place.strips[-1].cols
    widths = (4, width - 4) if width > 4 else (4,)
    on = [((index + part) % ranks, 1) for part in range(len(widths))]
    return replace(place, strips=strips(widths, on))


def _make(worlds: _Worlds, optimizer: str, form: Form, directory: Path) -> None:
    """Train, save, note what every block holds, and go on for two steps.

    Collective: every rank of the form's world calls it.
    """

    tables = _Tables(worlds, optimizer, form)
    for number in range(STEPS):
        tables.step(number)
    place = directory / f"{optimizer}-{form}"
    saver = Checkpointer(place, tables.rank, form.world_size, "test", timeout_s=50)
    saver.save(STEPS, capture(tables.shards(), {}, {}, {}), {})
    blocks = [
        (shard.key, shard.row, shard.col, shard.weight.clone(), dict(shard.states))
        for shard in tables.shards()
        if not shard.is_replica
    ]
    copied = [(*block[:4], {k: v.clone() for k, v in block[4].items()}) for block in blocks]
    saver.wait()
    losses = [tables.step(STEPS), tables.step(STEPS + 1)]
    torch.save({"blocks": copied, "losses": losses}, place / f"truth-{tables.rank}.pt")


def _moved(tables: _Tables, move: Move, directory: str) -> list[str]:
    """Restore a checkpoint and compare everything with what its source held and did next."""

    place = Path(directory) / f"{move.optimizer}-{move.source}"
    shards = tables.shards()
    for shard in shards:
        for tensor in (shard.weight, *shard.states.values()):
            tensor.fill_(torch.nan)
    shapes = table_shapes(tables.spec)
    restored = restore(place / f"step-{STEPS:08d}", shards, {}, {}, {}, shapes)
    truth, losses = _truth(place, move.source.world_size, shapes)
    problems = _differences(tables.shards(), truth)
    found: list[Any] = [None] * move.target.world_size
    dist.all_gather_object(found, restored.conversions, group=tables.group)
    told = {each.tensor for each in merge_conversions(c for part in found for c in part)}
    expected = converted(move)
    if told != expected:
        problems.append(f"converted {sorted(told)}, not {sorted(expected)}")
    now = [tables.step(STEPS), tables.step(STEPS + 1)]
    for ahead in range(1 if expected else 2):  # state that was converted makes other steps
        if abs(now[ahead] - losses[ahead]) > TOLERANCE * abs(losses[ahead]):
            problems.append(f"loss {ahead} steps on is {now[ahead]}, not {losses[ahead]}")
    return problems


def _truth(
    place: Path, world_size: int, shapes: dict[str, tuple[int, int]]
) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    """Every weight and state of a source by set, a row-wise one written out for every column."""
    whole: dict[str, dict[str, Tensor]] = {key: {} for key in shapes}
    losses: list[float] = []
    for rank in range(world_size):
        content = torch.load(place / f"truth-{rank}.pt", weights_only=True)
        losses = content["losses"]
        for key, row, col, weight, states in content["blocks"]:
            rows, cols = weight.shape
            for name, values in {"weight": weight, **states}.items():
                fresh = torch.full(shapes[key], torch.nan, dtype=torch.float64)
                target = whole[key].setdefault(name, fresh)[row : row + rows, col : col + cols]
                assert bool(target.isnan().all()), f"{key}/{name} was told twice"
                target.copy_(values[:, None] if values.ndim == 1 else values)
    assert not any(bool(t.isnan().any()) for names in whole.values() for t in names.values())
    return whole, losses


def _differences(shards: list[LocalShard], truth: dict[str, dict[str, Tensor]]) -> list[str]:
    """Blocks that do not hold what they should: the same numbers, or the mean over a shard's columns."""
    wrong = []
    shared: dict[int, list[tuple[LocalShard, Tensor]]] = {}
    row_wise: dict[int, Tensor] = {}
    for shard in shards:
        rows, cols = shard.weight.shape
        block = slice(shard.row, shard.row + rows), slice(shard.col, shard.col + cols)
        if {"weight", *shard.states} != truth[shard.key].keys():
            wrong.append(f"{shard.key} has {sorted(shard.states)}")
        for name, tensor in {"weight": shard.weight, **shard.states}.items():
            expected = truth[shard.key][name][block]
            if tensor.ndim == 1:
                shared.setdefault(id(tensor), []).append((shard, expected))
                row_wise[id(tensor)] = tensor
            elif not torch.equal(tensor.double(), expected):
                wrong.append(f"{shard.key}/{name} at {shard.row}, {shard.col}")
    for memory, parts in shared.items():
        mean = torch.cat([expected for _, expected in parts], 1).mean(1)
        if not torch.allclose(row_wise[memory].double(), mean, rtol=1e-7, atol=0):
            wrong.append(f"row-wise state of {[shard.key for shard, _ in parts]}")
    return wrong


def converted(move: Move) -> set[str]:
    """The row-wise states whose numbers stand for other columns in the target than in the source."""
    cuts = []
    for form in (move.source, move.target):
        spec = spec_of(move.optimizer, form.layout)
        shared = together(spec, placed_of(spec, form))
        cuts.append({frozenset(pieces) for pieces in shared if _is_row_wise(spec, pieces[0][0])})
    return {f"{key}/accumulator" for pieces in cuts[1] - cuts[0] for key, _, _ in pieces}


def _is_row_wise(spec: EmbeddingSpec, key: str) -> bool:
    table_name, _, set_name = key.partition("/")
    table = next(each for each in spec.tables if each.name == table_name)
    of_set = next(each for each in spec.sets if each.name == set_name)
    return spec.form(table, of_set).optimizer.name == "rowwise_adagrad"
