"""Which rows of the tables training has touched, and when: one number per row, kept where the row is.

TorchRec's own delta tracker keeps every batch's ids until somebody reads them, knows one table per
feature and leaves data_parallel tables out; its record does not survive another plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.types import ShardingEnv2D
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import NEVER, LocalShard


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one shard of a physical table; `steps` is a view of its lookup's record."""

    row: int
    col: int
    cols: int
    steps: Tensor
    is_replicated: bool


class TouchedRows:
    """The step that touched each row of this rank's shards last.

    A row is touched by a step when its id is in the step's batch, whatever its gradient. One number
    is written for every id that a lookup reads, on the device of the table and without waiting for it.

    Args:
        model: the sharded model; its lookups are watched from now on.
        spec: what its tables are.
        device: where they are.
    """

    def __init__(self, model: nn.Module, spec: EmbeddingSpec, device: torch.device) -> None:
        self._device = device
        self._in_use = _most_looked_up(spec)
        self._places = {
            (physical.table.name, name): (physical.name, columns[0])
            for physical in physical_tables(spec)
            for name, columns in physical.slices.items()
        }
        self._step: int | None = None
        self._blocks: dict[str, list[_Block]] = {}
        self._replicated: list[Tensor] = []
        env = getattr(model, "_env", None)
        self._copies = env.replica_pg if isinstance(env, ShardingEnv2D) else None
        self._sharded: list[Tensor] = []
        for lookup, is_replicated in _lookups(model):
            for kernel in lookup._emb_modules:
                self._watch(kernel, is_replicated)

    def begin(self, step: int) -> None:
        """Lookups from now on belong to a training step.

        Args:
            step: steps done once it is over, from 1.
        """
        self._step = step

    def end(self) -> None:
        """Lookups from now on train nothing."""
        self._step = None

    def attach(self, shards: list[LocalShard]) -> None:
        """Give every shard the record of its rows, a view."""
        for shard in shards:
            name, start = self._places[shard.table, shard.set_name]
            for block in self._blocks[name]:
                if (
                    block.row == shard.row
                    and block.col <= start + shard.col < block.col + block.cols
                ):
                    shard.touched = block.steps

    def merge(self) -> None:
        """Let every replica of a table know what all of them have seen.

        Replicas are data_parallel tables, and the copies that groups of ranks hold.

        Collective: every rank calls it.
        """
        for steps in self._replicated:
            dist.all_reduce(steps, dist.ReduceOp.MAX)
        for steps in self._sharded if self._copies is not None else ():
            dist.all_reduce(steps, dist.ReduceOp.MAX, group=self._copies)

    @property
    def num_bytes(self) -> int:
        """Memory of this rank's records."""
        records = [*self._replicated, *self._sharded]
        return sum(each.numel() * each.element_size() for each in records)

    def rows_in_use(self, rank: int, ranks_per_copy: int) -> tuple[list[str], Tensor]:
        """Rows for known ids that training has touched, where an id's rows are fixed; see `merge`.

        A row that lies on several ranks counts on one of them. Where sets have features of their
        own, it is the rows of the set that most features look up.

        Args:
            rank: this process.
            ranks_per_copy: ranks that hold the tables together.

        Returns:
            The tables, and (T,) their rows on this rank, whose sum over the ranks is all.
        """
        counts = []
        for physical in self._in_use:
            count = torch.zeros((), dtype=torch.int64, device=self._device)
            for block in self._blocks.get(physical.name, ()):
                if block.col == 0 and rank < (1 if block.is_replicated else ranks_per_copy):
                    known = block.steps[: max(0, physical.table.known_rows - block.row)]
                    count += (known != NEVER).sum()
            counts.append(count)
        empty = torch.zeros(0, dtype=torch.int64, device=self._device)
        names = [each.table.name for each in self._in_use]
        return names, torch.stack(counts) if counts else empty

    def _watch(self, kernel: Any, is_replicated: bool) -> None:
        """Keep a record for the tables of one lookup kernel, all in one vector."""
        tables = kernel.config.embedding_tables
        num_rows = sum(table.local_rows for table in tables)
        steps = torch.full((num_rows,), NEVER, dtype=torch.int32, device=self._device)
        starts, first = [], 0
        for table in tables:
            facts = table.local_metadata
            row, col = facts.shard_offsets if facts is not None else (0, 0)
            part = steps[first : first + table.local_rows]
            block = _Block(row, col, table.local_cols, part, is_replicated)
            self._blocks.setdefault(table.name, []).append(block)
            starts += [first] * len(table.feature_names)
            first += table.local_rows
        (self._replicated if is_replicated else self._sharded).append(steps)
        of_feature = torch.tensor(starts, device=self._device)

        def record(_: nn.Module, arguments: tuple[KeyedJaggedTensor, ...]) -> None:
            if self._step is not None:
                steps.index_fill_(0, _places_of(arguments[0], of_feature), self._step)

        kernel.register_forward_pre_hook(record)


def _most_looked_up(spec: EmbeddingSpec) -> list[PhysicalTable]:
    """Of every table whose ids have their rows for good, the part that most features look up."""
    found: dict[str, PhysicalTable] = {}
    for physical in physical_tables(spec):
        name = physical.table.name
        if not physical.table.is_managed and (
            name not in found or len(physical.features) > len(found[name].features)
        ):
            found[name] = physical
    return list(found.values())


def _lookups(model: nn.Module) -> Iterator[tuple[Any, bool]]:
    """The lookups of every sharded collection, and whether each is replicated."""
    for module in model.modules():
        for lookup in getattr(module, "_lookups", ()):
            is_replicated = isinstance(lookup, nn.parallel.DistributedDataParallel)
            yield (lookup.module if is_replicated else lookup), is_replicated


def _places_of(features: KeyedJaggedTensor, starts: Tensor) -> Tensor:
    """Where the ids of a lookup are in its record.

    Args:
        features: F features of B rows each.
        starts: (F,) where the rows of each feature's table begin.
    """
    ids: Tensor = features.values().long()
    if len(starts) == 1:
        return ids
    ends = features.offsets()[:: features.stride()]
    return ids + torch.repeat_interleave(starts, ends.diff(), output_size=ids.numel())
