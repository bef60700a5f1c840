"""Ranks as the search fills them: milliseconds and free bytes of each, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.price import Option, Piece

Ranks = tuple[tuple[int, int], ...]
"""First rank and number of ranks of each strip."""

_HOSTS_TRIED = 4
"""Hosts, the idlest first, that a table of the kind table_column_wise is tried on."""


class Cluster:
    """What the tables placed so far take of each rank.

    Args:
        placement: the machines.
    """

    def __init__(self, placement: Placement) -> None:
        world = placement.world_size
        self.ms: NDArray[np.float64] = np.zeros(world)
        self.device: NDArray[np.int64] = np.full(world, placement.device_room)
        self.host: NDArray[np.int64] = np.full(world, placement.host_room)
        self._local = placement.local_world_size
        self._hosts = placement.num_hosts

    @property
    def has_room(self) -> bool:
        """Whether what lies on the ranks fits."""
        return bool(self.device.min() >= 0 and self.host.min() >= 0)

    def put(self, option: Option, ranks: Ranks, sign: int = 1) -> None:
        """Place a table, or with `sign = -1` take it away."""
        for piece, (first, count) in zip(option.pieces, ranks, strict=True):
            self._put(piece, first, count, sign)

    def _put(self, piece: Piece, first: int, count: int, sign: int = 1) -> None:
        held = slice(first, first + count)
        self.ms[held] += sign * piece.ms
        self.device[held] -= sign * piece.device
        self.host[held] -= sign * piece.host

    def find(self, option: Option) -> Ranks | None:
        """The ranks on which a table would end first, or None where it does not fit."""
        if option.cut.kind in ("data_parallel", "row_wise"):
            fits = self._fits(option.pieces[0]).all()
            return ((0, len(self.ms)),) if fits else None
        if option.cut.kind == "table_column_wise":
            return self._on_one_host(option)
        found, width = [0] * len(option.pieces), option.ranks
        placed: list[int] = []
        strips = _Strips(option.cut.widths)
        for index in _largest_first(option.pieces):
            first = self._idlest(option.pieces[index], width, strips.barred(index))
            if first is None:
                break
            found[index] = strips.put(index, first)
            self._put(option.pieces[index], first, width)
            placed.append(index)
        for index in placed:
            self._put(option.pieces[index], found[index], width, -1)
        return tuple((first, width) for first in found) if len(placed) == len(found) else None

    def _fits(self, piece: Piece) -> NDArray[np.bool_]:
        fits: NDArray[np.bool_] = (self.device >= piece.device) & (self.host >= piece.host)
        return fits

    def _idlest(self, piece: Piece, width: int, barred: list[int]) -> int | None:
        """First of the `width` ranks that have the least to do of those with room for a piece."""
        ms, fits = self.ms, self._fits(piece)
        fits[barred] = False
        if width > 1:
            fits = np.all(fits.reshape(self._hosts, width), axis=1)
            ms = ms.reshape(self._hosts, width).max(1)
        index = int(np.argmin(np.where(fits, ms, np.inf)))
        return index * width if fits[index] else None

    def _on_one_host(self, option: Option) -> Ranks | None:
        local = self._local
        order = np.argsort(self.ms.reshape(self._hosts, local).mean(1), kind="stable")
        best, least = None, np.inf
        tried = 0
        for host in order:
            found = self._within(option, int(host) * local)
            if found is None:
                continue
            ranks, ends = found
            if ends < least:
                best, least = ranks, ends
            tried += 1
            if tried == _HOSTS_TRIED:
                break
        return best

    def _within(self, option: Option, start: int) -> tuple[Ranks, float] | None:
        """Ranks of one host for the strips of a table, and when the last of them ends."""
        held = slice(start, start + self._local)
        ms, device, host = self.ms[held].copy(), self.device[held].copy(), self.host[held].copy()
        found = [0] * len(option.pieces)
        strips = _Strips(option.cut.widths)
        for index in _largest_first(option.pieces):
            piece = option.pieces[index]
            fits = (device >= piece.device) & (host >= piece.host)
            fits[strips.barred(index)] = False
            rank = strips.put(index, int(np.argmin(np.where(fits, ms, np.inf))))
            if not fits[rank]:
                return None
            ms[rank] += piece.ms
            device[rank] -= piece.device
            host[rank] -= piece.host
            found[index] = start + rank
        return tuple((rank, 1) for rank in found), float(ms.max())


class _Strips:
    """Strips of one table on the first of their ranks: on one rank they must be equally wide.

    Args:
        widths: of the strips from left to right.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        self._widths = widths
        self._on: dict[int, int] = {}
        self._may_meet = len(set(widths)) == 1

    def barred(self, index: int) -> list[int]:
        """Ranks that hold strips of another width than this one's."""
        if self._may_meet:
            return []
        return [rank for rank, width in self._on.items() if width != self._widths[index]]

    def put(self, index: int, rank: int) -> int:
        """Note a strip's rank and give it back."""
        self._on[rank] = self._widths[index]
        return rank


def _largest_first(pieces: tuple[Piece, ...]) -> list[int]:
    return sorted(range(len(pieces)), key=lambda index: -pieces[index].ms)
