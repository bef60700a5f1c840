"""Collectives on host arrays: sums, tables of all ranks, and rows sent to the rank that owns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from prismrec.train.metrics.arrays import Floats, Ints, mix64

_SAMPLES_PER_RANK = 1024


class Ranks:
    """The processes that hold the rows; this process alone where no group is initialised.

    Args:
        process_group: a group that carries CPU tensors (gloo); the default group if None.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self._group = process_group
        self.size = dist.get_world_size(process_group) if joined else 1
        self.rank = dist.get_rank(process_group) if joined else 0

    def sum(self, local: Floats) -> Floats:
        """Sum over ranks of arrays of equal shape, in float64. Collective: every rank calls it."""
        if self.size == 1:
            return local
        total = torch.tensor(local, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.numpy()

    def stack(self, local: NDArray[Any]) -> NDArray[Any]:
        """Arrays of equal shape and type of all ranks, in rank order: (W, ...).

        Collective: every rank calls it.
        """
        if self.size == 1:
            return local[None]
        mine = torch.from_numpy(np.ascontiguousarray(local))
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self._group)
        return torch.stack(parts).numpy()

    def union(self, ids: Ints) -> Ints:
        """Every id that some rank has, ascending. Collective: every rank calls it."""
        mine = np.unique(ids)
        if self.size == 1:
            return mine
        sizes = self.stack(np.array([mine.size], np.int64))[:, 0]
        padded = np.zeros(int(sizes.max()), np.int64)
        padded[: mine.size] = mine
        parts = self.stack(padded)
        return np.unique(np.concatenate([part[:n] for part, n in zip(parts, sizes, strict=True)]))

    def exchange(
        self, columns: Sequence[NDArray[Any]], destination: Ints
    ) -> tuple[NDArray[Any], ...]:
        """Send every row to the rank named for it; the rows this rank gets, in rank order.

        Collective: every rank calls it, with the same number and types of columns; a rank may
        have no rows.

        Args:
            columns: arrays (n,), parallel.
            destination: (n,) rank of each row.
        """
        if self.size == 1:
            return tuple(columns)
        # 16-bit keys take numpy's radix sort, which is several times faster here.
        order = np.argsort(destination.astype(np.uint16), kind="stable")
        sent = np.bincount(destination, minlength=self.size)
        received = self.stack(sent)[:, self.rank].tolist()
        results = []
        for column in columns:
            outgoing = torch.from_numpy(column[order])
            incoming = torch.empty(sum(received), dtype=outgoing.dtype)
            dist.all_to_all_single(incoming, outgoing, received, sent.tolist(), group=self._group)
            results.append(incoming.numpy())
        return tuple(results)

    def owner_by_score(self, scores: Floats) -> Ints:
        """Rank for each row such that rank r has lower scores than r + 1 and about as many rows.

        Rows of equal score go to one rank. Collective: every rank calls it.
        """
        if self.size == 1:
            return np.zeros(scores.size, np.int64)
        samples = np.zeros((2, _SAMPLES_PER_RANK))
        if scores.size:
            places = (np.arange(_SAMPLES_PER_RANK) + 0.5) * scores.size / _SAMPLES_PER_RANK
            samples[0] = np.sort(scores)[places.astype(np.int64)]
            samples[1] = scores.size / _SAMPLES_PER_RANK
        values, rows = np.moveaxis(self.stack(samples), 1, 0).reshape(2, -1)
        order = np.argsort(values)
        cumulative = np.cumsum(rows[order])
        shares = cumulative[-1] * np.arange(1, self.size) / self.size
        splitters = values[order][np.searchsorted(cumulative, shares)]
        return np.searchsorted(splitters, scores, side="right")

    def owner_by_id(self, ids: Ints) -> Ints:
        """Rank for each row by a hash of its id; rows of equal id go to one rank."""
        return (mix64(ids) % np.uint64(self.size)).astype(np.int64)
