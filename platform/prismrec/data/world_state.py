"""What a synthetic world remembers from one slot of time to the next.

Legend: n rows, U users, P = HISTORY_LENGTH.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HISTORY_LENGTH = 50
SHOWN_LENGTH = 8

Ints = NDArray[np.int64]


class Rings:
    """For every owner the last `length` integers written, in several fields alike.

    Args:
        num_owners: owners 0..num_owners-1.
        length: entries kept of each.
        num_fields: integers of an entry.
    """

    def __init__(self, num_owners: int, length: int, num_fields: int) -> None:
        self.length = length
        self.count = np.zeros(num_owners, np.int64)
        self._fields = np.zeros((num_fields, num_owners, length), np.int32)

    def append(self, owners: Ints, *fields: Ints) -> None:
        """Add entries, one per row; rows of one owner in the order they stand in."""
        order = np.argsort(owners, kind="stable")
        sorted_owners = owners[order]
        first = np.searchsorted(sorted_owners, sorted_owners, side="left")
        past_last = np.searchsorted(sorted_owners, sorted_owners, side="right")
        within = np.arange(len(owners)) - first
        stays = past_last - first - within <= self.length
        slots = (self.count[sorted_owners] + within) % self.length
        for store, values in zip(self._fields, fields, strict=True):
            store[sorted_owners[stays], slots[stays]] = values[order][stays]
        np.add.at(self.count, owners, 1)

    def lengths(self, owners: Ints) -> Ints:
        """(n,) entries kept of each owner."""
        return np.minimum(self.count[owners], self.length)

    def newest_first(self, owners: Ints, width: int) -> list[NDArray[np.int32]]:
        """Each field as (n, width), newest entry first; past an owner's length it is arbitrary."""
        slots = (self.count[owners][:, None] - 1 - np.arange(width)) % self.length
        return [store[owners[:, None], slots] for store in self._fields]

    def pick(self, owners: Ints, back: Ints) -> NDArray[np.int32]:
        """(n,) the first field of the entry `back` steps before the newest one."""
        return self._fields[0][owners, (self.count[owners] - 1 - back) % self.length]


class PairCounts:
    """How often each pair of a user and an item has been seen; memory grows with the pairs."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)

    def add(self, keys: Ints) -> Ints:
        """Count the rows' keys, in their order, and give how often each was seen before its row.

        >>> counts = PairCounts()
        >>> counts.add(np.array([5, 3, 5])), counts.add(np.array([3, 5, 4]))
        (array([0, 0, 1]), array([1, 2, 0]))
        """
        order = np.argsort(keys, kind="stable")
        fresh, cell, times = np.unique(keys, return_inverse=True, return_counts=True)
        starts = np.cumsum(times) - times
        within = np.empty(len(keys), np.int64)
        within[order] = np.arange(len(keys)) - np.repeat(starts, times)
        at = np.searchsorted(self._keys, fresh)
        known = np.zeros(len(fresh), bool)
        inside = at < len(self._keys)
        known[inside] = self._keys[at[inside]] == fresh[inside]
        before = np.zeros(len(fresh), np.int64)
        before[known] = self._counts[at[known]]
        self._counts[at[known]] += times[known]
        self._keys = np.insert(self._keys, at[~known], fresh[~known])
        self._counts = np.insert(self._counts, at[~known], times[~known])
        return before[cell] + within


@dataclass
class WorldState:
    """Histories, shown items and interests at one moment.

    Args:
        histories: liked or finished exposures of each user: item, second.
        shown: items shown to each user.
        seen: how often each user saw each item.
        interest: (U, K), drifting from day to day.
    """

    histories: Rings
    shown: Rings
    seen: PairCounts
    interest: NDArray[np.float64]

    @classmethod
    def at_birth(cls, interest: NDArray[np.float64]) -> WorldState:
        """Nobody has seen anything."""
        users = len(interest)
        return cls(
            histories=Rings(users, HISTORY_LENGTH, 2),
            shown=Rings(users, SHOWN_LENGTH, 1),
            seen=PairCounts(),
            interest=interest.copy(),
        )

    def drift(self, rng: np.random.Generator, persistence: float) -> None:
        """One day's change of interests; their variance stays 1."""
        noise = rng.standard_normal(self.interest.shape)
        self.interest = persistence * self.interest + np.sqrt(1 - persistence**2) * noise
