"""Tables of a specification on gloo ranks: placed by hand, trained on given bags, read back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prismrec.analysis.spectra import Spectrum
from prismrec.config.train import Schedule
from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.plan.expand import TablePlace, even_widths, strips
from prismrec.embeddings.plan.rules import set_strips
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from tests.helpers.tables import Bags, Piece, Weights

BATCH = 8
"""Rows of a step over all ranks."""


@dataclass(frozen=True)
class Case:
    """One training of a few steps.

    Args:
        spec: sets and tables; each table's `sharding` says where it goes, the layout `spread` that
            it is cut between its sets.
        steps: number of steps.
        batch: rows of a step over all ranks.
        hosts: machines that the ranks pretend to be on; the same in all cases of a call.
        ranks_per_copy: ranks that hold the tables together; None for all of them.
        sync_every: steps from one average of the copies to the next.
        schedule: factor on the learning rates.
        clip_norm: largest norm of the gradient of the dense weights, of which there are none.
        bags: of each step, without weights; those of `draw` if there are none.
        device: "cpu" or "cuda"; what is found comes back to the CPU.
    """

    spec: EmbeddingSpec
    steps: int = 5
    batch: int = BATCH
    hosts: int = 1
    ranks_per_copy: int | None = None
    sync_every: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    clip_norm: float | None = None
    bags: Sequence[Bags] = ()
    device: str = "cpu"


@dataclass
class Trained:
    """What one rank saw.

    Args:
        outputs: by step, the tensors (B, N_m, d_m) of the sets.
        shards: this rank's blocks at the end.
        spectra: what it says of all ranks' sets then, by `table/set`.
    """

    outputs: list[list[Tensor]] = field(default_factory=list)
    shards: list[LocalShard] = field(default_factory=list)
    spectra: dict[str, Spectrum] = field(default_factory=dict)


def places(
    spec: EmbeddingSpec, world_size: int, hosts: int, kind: str | None = None
) -> list[TablePlace]:
    """Every table placed as it says, each beginning one rank (or host) after the one before.

    Args:
        spec: sets and tables.
        world_size: number of ranks.
        hosts: machines that they are on.
        kind: placement of all tables, instead of what each says.
    """
    found = []
    for index, physical in enumerate(physical_tables(spec)):
        of_table = kind or physical.table.sharding
        found.append(
            TablePlace(
                physical.name,
                of_table,
                _kernel(physical, of_table),
                physical.table.rows,
                strips(*_cut(physical, of_table, index, world_size // hosts, hosts)),
                0.5 if physical.table.kernel == "fused_uvm_caching" else None,
            )
        )
    return found


def together(spec: EmbeddingSpec, placed: Sequence[TablePlace]) -> list[list[Piece]]:
    """What lies in one shard's row, for the reference's row-wise accumulators."""
    by_name = {place.name: place for place in placed}
    found = []
    for physical in physical_tables(spec):
        for strip in by_name[physical.name].strips:
            stop = strip.col + strip.cols
            pieces = [
                (f"{physical.table.name}/{name}", max(0, strip.col - low), min(stop, high) - low)
                for name, (low, high) in physical.slices.items()
                if low < stop and high > strip.col
            ]
            found.append(pieces)
    return found


def draw(spec: EmbeddingSpec, step: int, batch: int = BATCH) -> tuple[Bags, Weights | None]:
    """Bags of a global batch: ids at both ends of the range, repeats, empty bags, several ids."""
    generator = torch.Generator().manual_seed(step)
    bags: Bags = {}
    weights: Weights = {}
    for field_name in spec.fields:
        rows = spec.table_of(field_name).rows
        lengths = torch.randint(0, 4, (batch,), generator=generator).tolist()
        bags[field_name] = [
            torch.randint(0, rows, (n,), generator=generator).tolist() for n in lengths
        ]
        bags[field_name][step % batch] = [0, rows - 1, 0]
        bags[field_name][(step + 1) % batch] = []
        weights[field_name] = [
            (torch.rand(len(ids), generator=generator) + 0.5).tolist() for ids in bags[field_name]
        ]
    return bags, weights if spec.is_weighted else None


def loss_of(sets: list[Tensor], start: int, batch: int = BATCH) -> Tensor:
    """A sum over rows, so that the ranks' gradients add up to those of the whole batch."""
    total = sets[0].new_zeros(())
    for m, x in enumerate(sets):
        count = x[0].numel()
        factor = torch.cos(torch.arange(count, dtype=torch.double) * (m + 1)).to(x)
        rows = (
            torch.arange(start + 1, start + 1 + x.shape[0], dtype=x.dtype, device=x.device) / batch
        )
        scores = (x.flatten(1) * factor).sum(1) / count**0.5
        total = total + ((scores - (m + 1) * rows) ** 2).sum()
    return total


def train_cases(cases: Sequence[Case]) -> list[Trained]:
    """Train each on this rank's share of the batches, `run_ranks`' function.

    Collective: every rank calls it.
    """
    return [train_case(case) for case in cases]


def train_case(case: Case) -> Trained:
    """Train one case on this rank.

    Collective: every rank calls it.
    """
    import torch.distributed as dist

    from prismrec.analysis.table_spectra import table_spectra
    from prismrec.embeddings.access import initialize, local_shards
    from prismrec.embeddings.collection import SetViews, build_collection
    from prismrec.embeddings.communication import make_codecs
    from prismrec.embeddings.copies import TableCopies, copies_env, places_of_copy
    from prismrec.embeddings.plan.expand import sharding_plan
    from prismrec.embeddings.sharder import Sharder, shard_tables
    from prismrec.train.optimizers import Optimizers

    rank, world = dist.get_rank(), dist.get_world_size()
    local = world // case.hosts
    os.environ["LOCAL_WORLD_SIZE"] = str(local)
    spec, share, env = case.spec, case.batch // world, None
    holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    of_copy = case.ranks_per_copy or world
    placed = places(spec, of_copy, max(1, of_copy // local))
    if case.ranks_per_copy:
        env = copies_env(of_copy, case.device, min(of_copy, local))
        placed = places_of_copy(placed, rank // of_copy * of_copy)
    plan = sharding_plan(holder, placed, case.device, local)
    sharder = Sharder(make_codecs(spec.communication, share))
    sharded = shard_tables(holder, spec, plan, torch.device(case.device), sharder, env)
    optimizers = Optimizers(sharded.dmp, {}, sharded.plain, case.schedule, case.steps)
    optimizers.copies = TableCopies(sharded.dmp, env, case.sync_every) if env else None
    optimizers.clip_norm = case.clip_norm
    tables, states = sharded.dmp.module["tables"], sharded.plain_states()
    initialize(local_shards(sharded.dmp, spec, rank, states), spec)
    views, result = SetViews(spec), Trained()
    for step in range(case.steps):
        batch = (case.bags[step], None) if case.bags else draw(spec, step, case.batch)
        sets = views(tables(kjt(spec, batch, rank * share, share).to(torch.device(case.device))))
        result.outputs.append([x.detach().cpu().clone() for x in sets])
        optimizers.zero_grad()
        loss = loss_of(sets, rank * share, case.batch)
        (loss * world).backward()  # TorchRec takes the mean over the ranks
        optimizers.step()
    result.shards = local_shards(sharded.dmp, spec, rank, states)
    result.spectra = table_spectra(result.shards, spec)
    if case.device != "cpu":
        result.shards = [on_cpu(shard) for shard in result.shards]
    return result


def on_cpu(shard: LocalShard) -> LocalShard:
    """A copy of a block in host memory."""
    states = {name: state.cpu() for name, state in shard.states.items()}
    return replace(shard, weight=shard.weight.cpu(), states=states)


def kjt(spec: EmbeddingSpec, batch: tuple[Bags, Weights | None], start: int, count: int) -> Any:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    bags, weights = batch
    chosen = slice(start, start + count)
    lengths = [len(bag) for f in spec.fields for bag in bags[f][chosen]]
    values = [i for f in spec.fields for bag in bags[f][chosen] for i in bag]
    of_ids = [w for f in spec.fields for bag in weights[f][chosen] for w in bag] if weights else []
    return KeyedJaggedTensor.from_lengths_sync(
        list(spec.fields),
        torch.tensor(values, dtype=torch.int64),
        torch.tensor(lengths, dtype=torch.int32),
        torch.tensor(of_ids) if weights else None,
    )


def _kernel(physical: PhysicalTable, kind: str) -> str:
    if kind == "data_parallel":
        return "dense"
    return "fused" if physical.table.kernel == "auto" else physical.table.kernel


def _cut(
    physical: PhysicalTable, kind: str, index: int, local: int, hosts: int
) -> tuple[Sequence[int], list[tuple[int, int]]]:
    """Widths of the strips of a table's columns, and the first rank and number of ranks of each."""
    width, world_size = physical.width, local * hosts
    first = (index % hosts) * local
    if kind in ("data_parallel", "row_wise"):
        return (width,), [(0, world_size)]
    if kind == "table_row_wise":
        return (width,), [(first, local)]
    widths: tuple[int, ...]
    is_spread = physical.table.layout == "spread"
    sets = [stop - start for start, stop in physical.slices.values()]
    if is_spread and kind == "column_wise":
        widths = tuple(sets)
    elif kind == "table_wise":
        widths = (width,)
    elif kind == "column_wise":
        widths = (4,) * (width // 4) if width < 64 else even_widths(width, world_size)
    elif kind == "table_column_wise":
        even = even_widths(width, min(local, width // 4))
        widths = set_strips(sets, local) if is_spread else even
        return widths, [(first + part % local, 1) for part in range(len(widths))]
    else:
        even = even_widths(width, min(hosts, width // 4))
        widths = set_strips(sets, hosts) if is_spread else even
        return widths, [((index + part) % hosts * local, local) for part in range(len(widths))]
    return widths, [((index + part) % world_size, 1) for part in range(len(widths))]
