"""Recipe section of the calibration that is fitted when training has ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prismrec.config.section import Section


class CalibrationSection(Section):
    """A rising map of each task's logits, fitted on the rows of `data.splits.valid`.

    It is the last thing done to a logit, in the final test as in the exported model.
    """

    method: Literal["isotonic", "platt", "temperature"]
    """`isotonic`: any rising map; `platt`: a slope and an offset; `temperature`: a slope."""
    bins: int = Field(default=10_000, ge=10, le=1_000_000)
    """Bins of equal width over the logits -20 to 20, whose sums the map is fitted to."""
