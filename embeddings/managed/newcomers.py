"""Ids without a row, remembered between two admissions.

Notation: n different ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EMPTY = torch.iinfo(torch.int64).max
"""Stands for no id; greater than every code."""

_MIN_FRESH = 1 << 20
"""Ids that are kept as they come before they are counted, which waits for the device."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Different ids and how they were seen.

    Args:
        codes: (n,) int64, ascending unless it is said otherwise.
        counts: (n,) int64 how often each was seen.
        last_seen: (n,) int64 step at which it was last seen.
    """

    codes: Tensor
    counts: Tensor
    last_seen: Tensor

    def part(self, start: int, stop: int) -> Seen:
        """Those from `start` to `stop`, the end not among them."""
        here = slice(start, stop)
        return Seen(self.codes[here], self.counts[here], self.last_seen[here])

    def where(self, chosen: Tensor) -> Seen:
        """Those that a mask or indices choose."""
        return Seen(self.codes[chosen], self.counts[chosen], self.last_seen[chosen])

    def to(self, device: torch.device) -> Seen:
        """The same on another device."""
        return Seen(self.codes.to(device), self.counts.to(device), self.last_seen.to(device))

    def by_count(self) -> Seen:
        """The most frequent first, those of equal count by their codes."""
        return self.where(torch.argsort(self.counts, descending=True, stable=True))


def no_ids(device: torch.device) -> Seen:
    """Nothing seen."""
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Seen(none, none, none)


class Newcomers:
    """Counts ids without a row.

    Args:
        limit: different ids that are remembered; where there are more, the least frequent are
            forgotten and their lookups counted as dropped.
        device: where they lie.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self._limit = limit
        self._device = device
        self._seen = no_ids(device)
        self._fresh: list[tuple[Tensor, int]] = []
        self._num_fresh = 0
        self._dropped = 0

    def add(self, codes: Tensor, step: int) -> None:
        """Count ids seen in a step; `EMPTY` is none."""
        self._fresh.append((codes, step))
        self._num_fresh += codes.numel()
        if self._num_fresh > max(2 * self._limit, _MIN_FRESH):
            self.seen()

    def merge(self, seen: Seen) -> None:
        """Count ids that were seen elsewhere."""
        self._seen = _merged([self.seen(), seen])
        self._forget()

    def clear(self) -> None:
        """Forget everything."""
        self._seen, self._fresh, self._num_fresh = no_ids(self._device), [], 0

    def seen(self) -> Seen:
        """All that were seen and are remembered."""
        if self._fresh:
            codes = torch.cat([codes for codes, _ in self._fresh])
            steps = torch.cat([torch.full_like(codes, step) for codes, step in self._fresh])
            there = codes != EMPTY
            fresh = Seen(codes[there], torch.ones_like(codes[there]), steps[there])
            self._fresh, self._num_fresh = [], 0
            self._seen = _merged([self._seen, fresh])
            self._forget()
        return self._seen

    def take(self, min_count: int) -> Seen:
        """Those seen at least `min_count` times; all of them are forgotten."""
        seen = self.seen()
        self._seen = no_ids(self._device)
        return seen.where(seen.counts >= min_count)

    def take_dropped(self) -> int:
        """Lookups of ids that were forgotten before they were taken, since the last call."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def _forget(self) -> None:
        if len(self._seen.codes) <= self._limit:
            return
        ranked = torch.argsort(self._seen.counts, descending=True, stable=True)
        self._dropped += int(self._seen.counts[ranked[self._limit :]].sum())
        self._seen = self._seen.where(ranked[: self._limit].sort().values)


def _merged(parts: list[Seen]) -> Seen:
    codes, inverse = torch.unique(torch.cat([each.codes for each in parts]), return_inverse=True)
    counts = torch.zeros_like(codes)
    counts.index_add_(0, inverse, torch.cat([each.counts for each in parts]))
    last_seen = torch.zeros_like(codes)
    steps = torch.cat([each.last_seen for each in parts])
    last_seen.scatter_reduce_(0, inverse, steps, "amax")
    return Seen(codes, counts, last_seen)
