"""How the rows of a split are shared out to lanes, lanes to ranks, and rows to steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prismrec.config import UserError


@dataclass(frozen=True)
class Share:
    """Which part of the lanes this process reads.

    Args:
        rank: 0..world_size-1.
        world_size: ranks that read together.
    """

    rank: int = 0
    world_size: int = 1


ALONE = Share()
"""The share of a process that reads everything."""


@dataclass(frozen=True)
class ReaderState:
    """Where reading goes on, for any number of ranks.

    Args:
        epoch: passes over the rows that came before.
        offsets: rows of this epoch taken from every lane, of all ranks.
    """

    epoch: int
    offsets: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {"epoch": self.epoch, "offsets": list(self.offsets)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ReaderState:
        """The state that `to_json` gave."""
        return cls(int(value["epoch"]), tuple(int(offset) for offset in value["offsets"]))


@dataclass(frozen=True)
class Lanes:
    """The lanes of one split.

    A step takes `step_rows` rows from every lane. Lanes are consecutive pieces of equal size, or,
    when `dealt`, row g belongs to lane (g // step_rows) % num_lanes, which puts the s-th
    `num_lanes * step_rows` rows into step s.

    Args:
        num_rows: rows of the split, after its filter.
        num_lanes: L.
        step_rows: rows a lane gives to a step.
        dealt: rows are dealt out instead of cut.

    >>> Lanes(10, 4, 2).lengths
    (3, 3, 2, 2)
    >>> Lanes(10, 4, 2, dealt=True).lengths
    (4, 2, 2, 2)
    """

    num_rows: int
    num_lanes: int
    step_rows: int
    dealt: bool = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of every lane."""
        if self.dealt:
            return self._dealt(self.num_rows)
        size, more = divmod(self.num_rows, self.num_lanes)
        return tuple(size + (lane < more) for lane in range(self.num_lanes))

    def start(self, lane: int) -> int:
        """First row of a lane that was cut."""
        size, more = divmod(self.num_rows, self.num_lanes)
        return lane * size + min(lane, more)

    def owned(self, share: Share) -> range:
        """Lanes of one rank.

        Raises:
            UserError: the lanes cannot be shared out evenly.
        """
        each, rest = divmod(self.num_lanes, share.world_size)
        if rest:
            raise UserError(
                f"data.lanes: {self.num_lanes} lanes cannot be shared out to {share.world_size} "
                f"ranks; {(each + 1) * share.world_size} lanes can"
            )
        return range(share.rank * each, (share.rank + 1) * each)

    def check(self, offsets: Sequence[int]) -> None:
        """Refuse offsets that these lanes cannot have reached.

        Raises:
            UserError: there are more or fewer than lanes, one is past the end of its lane, or
                rows were dealt in portions of another size.
        """
        if len(offsets) != self.num_lanes:
            raise UserError(
                f"data.lanes: the state to resume from has {len(offsets)} lanes and the recipe "
                f"{self.num_lanes}; resume with data.lanes = {len(offsets)}"
            )
        far = [n for n, (o, size) in enumerate(zip(offsets, self.lengths, strict=True)) if o > size]
        if far:
            raise UserError(
                f"lane {far[0]}: the state to resume from is at row {offsets[far[0]]} of "
                f"{self.lengths[far[0]]}; resume with the data and filters of the first run"
            )
        if self.dealt and tuple(offsets) != self._dealt(sum(offsets)):
            raise UserError(
                "data.global_batch_size: with data.order = 'time' an epoch is finished with the "
                "batch size it was begun with; resume with that one"
            )

    def steps(self, offsets: Sequence[int]) -> int:
        """Steps from `offsets` to the end of the epoch, the same for every rank."""
        if self.dealt:
            return -(-(self.num_rows - sum(offsets)) // (self.num_lanes * self.step_rows))
        left = max(size - o for size, o in zip(self.lengths, offsets, strict=True))
        return -(-left // self.step_rows)

    def after(self, offsets: Sequence[int], steps: int) -> tuple[int, ...]:
        """Offsets `steps` steps after `offsets`."""
        if self.dealt:
            taken = sum(offsets) + steps * self.num_lanes * self.step_rows
            return self._dealt(min(taken, self.num_rows))
        pairs = zip(self.lengths, offsets, strict=True)
        return tuple(min(size, offset + steps * self.step_rows) for size, offset in pairs)

    def _dealt(self, rows: int) -> tuple[int, ...]:
        """How many of the first `rows` rows every lane was dealt."""
        rounds, rest = divmod(rows, self.num_lanes * self.step_rows)
        return tuple(
            rounds * self.step_rows + min(self.step_rows, max(0, rest - lane * self.step_rows))
            for lane in range(self.num_lanes)
        )
