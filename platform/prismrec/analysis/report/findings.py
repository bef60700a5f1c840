"""A part of a chapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismrec.analysis.report.chapter import Plot


@dataclass(frozen=True, slots=True)
class Findings:
    """What a part of an analysis found; `a + b` has what stands in a first.

    Args:
        summary: in plain words, the most telling first.
        plots: in the order of reading.
        missing: why something of it is not there.
    """

    summary: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    missing: Sequence[str] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            (*self.summary, *other.summary),
            (*self.plots, *other.plots),
            (*self.missing, *other.missing),
        )
