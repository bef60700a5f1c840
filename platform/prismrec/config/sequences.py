"""Recipe sections of sequences: what a user did before the row, in order, and what it is matched with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from prismrec.config.section import Section

Buckets = Literal["log2min", "hstu_ln", "sqrt60"]


class Behaviour(Section):
    """One list column of a sequence: an id for each behaviour, the oldest first."""

    column: str
    """List column of ids."""
    target: str
    """Sparse feature with one id a row that the behaviours are matched with; they look up its table."""


class SequenceFeature(Section):
    """What happened before a row, from the oldest behaviour to the newest, in columns of equal length."""

    name: str = Field(pattern=r"^[A-Za-z][\w-]*$")
    """Name of the sequence."""
    behaviours: tuple[Behaviour, ...]
    """`{column = "history_items", target = "item_id"}`, one for each side of a behaviour; their vectors lie
    side by side."""
    gaps: str | None = None
    """List column with the seconds from each behaviour to its row. A behaviour without a gap above 0 is left
    out: it is not known to be earlier."""
    times: str | None = None
    """List column of integers with the time of each behaviour, in the unit of `features.time`; instead of
    `gaps`."""
    time_unit: Literal["s", "ms"] = "s"
    """Unit of `times` and of `features.time`."""
    max_length: int = Field(default=50, ge=1)
    """Behaviours that are kept, the newest."""
    buckets: Buckets = "log2min"
    """How gaps become intervals: `floor(log2(1 + minutes))`, `floor(ln(seconds) / 0.301)` or
    `floor(sqrt(minutes))`."""
    num_buckets: int = Field(default=32, ge=2)
    """Intervals that are told apart; longer gaps share the last."""
    num_positions: int | None = Field(default=None, ge=1)
    """Positions, counted from the newest behaviour, that are told apart; older ones share the last.
    `max_length` if not given."""

    @property
    def has_gaps(self) -> bool:
        """Whether the time from each behaviour to its row is known."""
        return self.gaps is not None or self.times is not None

    @property
    def positions(self) -> int:
        """Positions that are told apart."""
        return self.num_positions or self.max_length

    @property
    def columns(self) -> list[str]:
        """List columns that the sequence is made of."""
        names = [each.column for each in self.behaviours]
        return names + [name for name in (self.gaps, self.times) if name is not None]

    def key(self, behaviour: Behaviour) -> str:
        """Name of a column of behaviours in the batch.

        >>> one = Behaviour(column="history_items", target="item_id")
        >>> SequenceFeature(name="history", behaviours=(one,)).key(one)
        'history/history_items'
        """
        return f"{self.name}/{behaviour.column}"

    @property
    def interval_key(self) -> str:
        """Name of the intervals in the batch; no column can have it."""
        return f"{self.name}/"

    @field_validator("behaviours", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("behaviours")
    @classmethod
    def _some(cls, value: tuple[Behaviour, ...]) -> tuple[Behaviour, ...]:
        if not value:
            raise ValueError("at least one column of behaviours is needed")
        columns = [each.column for each in value]
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value
