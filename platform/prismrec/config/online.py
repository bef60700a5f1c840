"""Recipe section of a stream that is trained on window by window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from prismrec.config.data import FeaturesSection
from prismrec.config.section import Section


class OnlineSection(Section):
    """How `prismrec online` cuts a stream of files into windows, and what it publishes."""

    window: int = Field(ge=1)
    """Length of a window, in the unit of `features.time`; windows begin at its multiples."""
    lateness: int = Field(default=0, ge=0)
    """How far past a window's end the newest time of the stream must be before the window is taken as
    complete, in the unit of `features.time`."""
    late: Literal["train", "skip"] = "train"
    """Rows that arrive after their window was trained on: trained on before the next window, or left out."""
    poll_s: float = Field(default=2.0, gt=0)
    """Seconds between two looks for new files."""
    idle_s: float | None = Field(default=None, gt=0)
    """End the run when no new file has come for this many seconds, after training on all that is there;
    the run waits for ever if not given."""
    max_windows: int | None = Field(default=None, ge=1)
    """End the run after this many windows, those before a resume among them."""
    publish_every: int = Field(default=1, ge=0)
    """Windows from one version in the registry to the next; 0 registers none."""
    metric: str | None = None
    """`task/auc`-style name that a version must be better by to become `champion`; `evaluate.metric`
    if not given."""
    min_gain: float = 0.0
    """Smallest gain over the champion, on rows that neither has seen; 0 lets an equal one pass."""
    deltas: bool = False
    """Write the vectors that training touched since the version before, with every version; needs
    `embedding.track_touched`."""


def online_problems(
    section: OnlineSection | None, features: FeaturesSection, *, track_touched: bool
) -> Iterator[str]:
    """What a stream lacks elsewhere in the recipe."""
    if section is None:
        return
    if features.time is None:
        yield "features.time: [online] cuts windows by the column that holds the time; name it"
    if section.deltas and not track_touched:
        yield (
            "embedding.track_touched: online.deltas = true writes the rows that were touched; set it "
            "to true"
        )
