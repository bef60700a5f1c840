"""Recipe section of weights against repeated exposure."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prismrec.config.section import Section


class Propensity(Section):
    """Rows shown again and again count less in training: `w = clip(e^-tau, floor, 1)`.

    e is how often the row's user is expected to have seen its item by now, this time included.
    """

    column: str
    """Numeric column: how often the item was shown to the user before, or with this time."""
    first: int = Field(default=0, ge=0, le=1)
    """Value of the column at first sight: 0 counts earlier exposures, 1 counts this one too. A
    missing or lower value stands for first sight."""
    estimator: Literal["count", "log", "fitted"] = "count"
    """`count`: e is the exposure k itself; `log`: e = 1 + scale * ln k; `fitted`: e is the mean k
    of the training rows with the same value of `by`."""
    scale: float = Field(default=1.0, ge=0)
    """Of `log`."""
    by: str | None = None
    """Id column of `fitted`."""
    prior_rows: float = Field(default=100.0, ge=0)
    """Rows of the mean over all values that every value of `fitted` starts with."""
    values: tuple[int, ...] = ()
    """Values of `by` with an expectation of their own, ascending; filled in when training starts."""
    expected: tuple[float, ...] = ()
    """What is expected for each of `values`, and last for any other value."""
    tau: float = Field(default=1.0, gt=0)
    """Strength; 1 gives an exposure the inverse of e."""
    floor: float = Field(default=0.1, gt=0, le=1)
    """Smallest weight."""
    apply_to: Literal["positives", "both"] = "positives"
    """Rows that are weighted. `positives` lowers the predicted probability, see `undo`."""
    undo: bool = False
    """Raise the probability again everywhere but in training: p = q / (q + w (1 - q)). Whoever asks
    for predictions must then give the columns."""

    @field_validator("values", "expected", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _whole(self) -> Propensity:
        if (self.by is not None) != (self.estimator == "fitted"):
            raise ValueError("`by` names the column of estimator = 'fitted', and of no other")
        if self.expected and len(self.expected) != len(self.values) + 1:
            raise ValueError(
                f"expected: {len(self.values)} values need {len(self.values) + 1} expectations, "
                f"the last one for any other value, got {len(self.expected)}"
            )
        if list(self.values) != sorted(set(self.values)):
            raise ValueError("values: must ascend, each once")
        if self.undo and self.apply_to == "both":
            raise ValueError(
                "undo: weights of both labels do not move the probability; leave it out"
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the weight of a row depends on."""
        return (self.column,) if self.by is None else (self.column, self.by)
