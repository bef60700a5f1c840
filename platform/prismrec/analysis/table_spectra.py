"""Spectra of sharded tables where they lie: what travels is a Gram matrix, never a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from prismrec.analysis.spectra import Spectrum, gram, spectrum_of_gram
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard

_CHUNK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class RowChoice:
    """Which rows of the tables count, and how much.

    Args:
        weights: (rows,) of a table by its name, how often each row counts; 1 for tables that are
            not named. The same on every rank.
        trained_only: leave out rows that no step has moved, as far as the optimizer's state tells:
            their initial noise spans every dimension and hides a collapse.
    """

    weights: Mapping[str, Tensor] | None = None
    trained_only: bool = True

    def of(self, shard: LocalShard) -> Tensor | None:
        """(rows of the shard,) weights, or None where all rows count once."""
        chosen: Tensor | None = None
        given = (self.weights or {}).get(shard.table)
        if given is not None:
            stop = shard.row + shard.weight.shape[0]
            chosen = given[shard.row : stop].to(shard.weight.device, torch.float64)
        accumulator = shard.states.get("accumulator", shard.states.get("exp_avg_sq"))
        if self.trained_only and accumulator is not None:
            moved = _moved(accumulator)
            chosen = moved.double() if chosen is None else chosen * moved
        return chosen


def _moved(accumulator: Tensor) -> Tensor:
    """(rows,) whether anything of a row has moved, a block of rows at a time to spare memory."""
    if accumulator.dim() == 1:
        return accumulator > 0
    return torch.cat([(block > 0).any(1) for block in accumulator.split(_CHUNK_ROWS)])


def table_spectra(
    shards: Sequence[LocalShard],
    spec: EmbeddingSpec,
    choice: RowChoice | None = None,
    device: torch.device | None = None,
) -> dict[str, Spectrum]:
    """The spectrum of every set of every table, by `table/set`, on every rank.

    Sets cut by rows add up their (d, d) Gram matrices over the ranks. Of a set cut by columns the
    ranks put blocks of rows together, some ten thousand at a time.

    Collective: every rank calls it with its own shards.

    Args:
        shards: this rank's blocks.
        spec: what the tables are; the same on every rank.
        choice: which rows count; all that were trained if not given.
        device: where the ranks add up, the same on all of them; that of the first shard if not given,
            which a rank without shards cannot know.
    """
    choice = choice or RowChoice()
    by_key: dict[str, list[LocalShard]] = {}
    for shard in shards:
        if not shard.is_replica:
            by_key.setdefault(shard.key, []).append(shard)
    keys = [(t, s) for t in spec.tables for s in spec.sets_of(t)]
    if device is None:
        device = shards[0].weight.device if shards else torch.device("cpu")
    cut = _cut_by_columns([by_key.get(f"{t.name}/{s.name}", []) for t, s in keys], device)
    found = {}
    for (table, each), is_cut in zip(keys, cut, strict=True):
        key = f"{table.name}/{each.name}"
        own = by_key.get(key, [])
        if is_cut:
            total, rows = _of_column_blocks(own, table.rows, each.dim, choice, device)
        else:
            total, rows = _of_row_blocks(own, each.dim, choice, device)
        found[key] = spectrum_of_gram(total, rows)
    return found


def _of_row_blocks(
    shards: list[LocalShard], dim: int, choice: RowChoice, device: torch.device
) -> tuple[Tensor, int]:
    """Gram matrix and number of rows of a set whose blocks hold whole rows."""
    message = torch.zeros(dim * dim + 1, dtype=torch.float64, device=device)
    for shard in shards:
        weights = choice.of(shard)
        message[:-1] += gram(shard.weight, weights).reshape(-1).to(device)
        message[-1] += shard.weight.shape[0] if weights is None else int((weights > 0).sum())
    _sum(message)
    return message[:-1].view(dim, dim), int(message[-1])


def _of_column_blocks(
    shards: list[LocalShard], num_rows: int, dim: int, choice: RowChoice, device: torch.device
) -> tuple[Tensor, int]:
    """The same of a set whose rows are spread over several blocks."""
    total = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    rows = 0
    weights = [choice.of(shard) for shard in shards]
    for start in range(0, num_rows, _CHUNK_ROWS):
        size = min(_CHUNK_ROWS, num_rows - start)
        block = torch.zeros(size, dim + 1, dtype=torch.float64, device=device)
        for shard, own in zip(shards, weights, strict=True):
            low, high = max(start, shard.row), min(start + size, shard.row + shard.weight.shape[0])
            if low >= high:
                continue
            here, there = slice(low - shard.row, high - shard.row), slice(low - start, high - start)
            columns = slice(shard.col, shard.col + shard.weight.shape[1])
            block[there, columns] = shard.weight[here].double()
            # Row-wise state differs by block: a row was trained where any of its blocks says so.
            block[there, -1] = torch.maximum(
                block[there, -1],
                torch.ones_like(block[there, -1]) if own is None else own[here].to(device),
            )
        flags = block[:, -1].clone()
        block[:, -1] = 0
        _sum(block)
        _largest(flags)
        total += gram(block[:, :-1], flags)
        rows += int((flags > 0).sum())
    return total, rows


def _cut_by_columns(groups: list[list[LocalShard]], device: torch.device) -> list[bool]:
    """Of every set, whether any rank holds a block of some of its columns only."""
    flags = torch.zeros(len(groups), dtype=torch.int64, device=device)
    for at, shards in enumerate(groups):
        flags[at] = int(any(s.weight.shape[1] < s.num_cols for s in shards))
    _largest(flags)
    return [bool(flag) for flag in flags.tolist()]


def _sum(values: Tensor) -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)


def _largest(values: Tensor) -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
