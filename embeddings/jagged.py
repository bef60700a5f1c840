"""Operations on rows of unequal length that lie one after another: softmax, sums and products by row.

Notation: B rows, row b holds the values offsets[b] to offsets[b + 1] - 1; T values in all. A value may
have further axes behind the first. Sums are taken in float32 at least, whatever the type of the values.
A row without values gives zeros, and sends no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SetSequence:
    """A sequence of a batch as the embedding sets see it.

    Args:
        offsets: (B + 1,) int64, where each row's behaviours begin.
        positions: (T,) int64, counted from the newest, which has 1.
        intervals: (T,) int64, None where no time is known.
        behaviours: by set, (T, sum of widths) vectors of the columns that it covers side by side.
    """

    offsets: Tensor
    positions: Tensor
    intervals: Tensor | None
    behaviours: list[Tensor]


def offsets_of(lengths: Tensor) -> Tensor:
    """Where rows of the given lengths (B,) begin and end: (B + 1,) int64, the first 0.

    >>> offsets_of(torch.tensor([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    ends = lengths.long().cumsum(0)
    return torch.cat([ends.new_zeros(1), ends])


def row_of(offsets: Tensor, count: int) -> Tensor:
    """The row that each of T = `count` values belongs to, (T,) int64.

    >>> row_of(torch.tensor([0, 2, 2, 5]), 5).tolist()
    [0, 0, 2, 2, 2]
    """
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    # Told the number of values, it need not be asked of the device.
    return rows.repeat_interleave(offsets.diff(), output_size=count)


def newest_first(offsets: Tensor, count: int) -> Tensor:
    """Positions counted from the end of each row, (T,) int64: its last value has 1, its first n_b.

    That is the target-relative position of behaviours that go from the oldest to the newest.

    >>> newest_first(torch.tensor([0, 3, 3, 4]), 4).tolist()
    [3, 2, 1, 1]
    """
    ends = offsets[1:].index_select(0, row_of(offsets, count))
    return ends - torch.arange(count, device=offsets.device)


def seg_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax over the values of each row.

    Args:
        scores: (T, ...), each of the further axes by itself; -inf takes a value out, but not all of a row.
        offsets: (B + 1,).

    Returns:
        (T, ...) weights that add up to 1 in each row.
    """
    scores = _widened(scores)
    rows = row_of(offsets, len(scores))
    shape = (len(offsets) - 1, *scores.shape[1:])
    largest = scores.new_full(shape, -torch.inf)
    index = rows.view(-1, *[1] * (scores.dim() - 1)).expand_as(scores)
    # Any number gives the same weights, so that no gradient has to pass the largest one.
    largest = largest.scatter_reduce(0, index, scores.detach(), "amax")
    powers = (scores - largest.index_select(0, rows)).exp()
    sums = scores.new_zeros(shape).index_add(0, rows, powers)
    return powers / sums.index_select(0, rows)


def seg_wsum(weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """Weighted sum of the values of each row.

    Args:
        weights: (T, ...).
        values: (T, ..., d).
        offsets: (B + 1,).

    Returns:
        (B, ..., d).
    """
    weighted = _widened(weights).unsqueeze(-1) * _widened(values)
    sums = weighted.new_zeros(len(offsets) - 1, *weighted.shape[1:])
    return sums.index_add(0, row_of(offsets, len(values)), weighted)


def seg_dot(keys: Tensor, queries: Tensor, offsets: Tensor) -> Tensor:
    """Inner product of each value with its row's query.

    Args:
        keys: (T, ..., d).
        queries: (B, ..., d).
        offsets: (B + 1,).

    Returns:
        (T, ...).
    """
    of_values = queries.index_select(0, row_of(offsets, len(keys)))
    return (_widened(keys) * _widened(of_values)).sum(-1)


def seg_mean_weights(offsets: Tensor, count: int) -> Tensor:
    """(T,) float32 weights 1 / n_b, with which `seg_wsum` averages each row."""
    sizes = offsets.diff().to(torch.float32)
    return sizes.reciprocal().index_select(0, row_of(offsets, count))


def seg_topk(scores: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Which values are among the k largest of their row; of equal ones the later come first.

    Args:
        scores: (T,).
        offsets: (B + 1,).
        k: at least 1. A row with fewer values keeps all of them.

    Returns:
        (T,) bool.
    """
    count = len(scores)
    rows = row_of(offsets, count)
    latest_first = torch.arange(count - 1, -1, -1, device=scores.device)
    order = latest_first[scores.detach()[latest_first].argsort(descending=True, stable=True)]
    order = order[rows[order].argsort(stable=True)]
    ranks = torch.arange(count, device=scores.device) - offsets[:-1].index_select(0, rows)
    return torch.zeros_like(rows, dtype=torch.bool).index_copy(0, order, ranks < k)


def to_padded(values: Tensor, offsets: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Rows side by side, the first value of each on the left; only the last `length` values are kept.

    Args:
        values: (T, ...).
        offsets: (B + 1,).
        length: L.

    Returns:
        (B, L, ...) with zeros behind the values, and (B, L) bool, where there is one.
    """
    starts = torch.maximum(offsets[:-1], offsets[1:] - length)
    places = starts.unsqueeze(1) + torch.arange(length, device=offsets.device)
    mask = places < offsets[1:].unsqueeze(1)
    if not len(values):
        return values.new_zeros(*mask.shape, *values.shape[1:]), mask
    padded = values[torch.where(mask, places, 0)]
    return padded * mask.view(*mask.shape, *[1] * (values.dim() - 1)), mask


def from_padded(padded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The values of rows that lie side by side, padded on either side, and their offsets.

    Waits for the device, which has to tell how many values there are.

    Args:
        padded: (B, L, ...), anything where there is no value.
        mask: (B, L) bool, where there is one.
    """
    return padded[mask], offsets_of(mask.sum(1))


def _widened(x: Tensor) -> Tensor:
    """At least float32, as sums need it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
