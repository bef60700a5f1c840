"""What the project asks of the results, and whether they do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""One of the results: a case, a peer and its numbers."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that some rows have to reach.

    Args:
        text: what is asked for.
        least: the number.
        applies: whether a row is held to it.
        value: the row's number.
    """

    text: str
    least: float
    applies: Callable[[Row], bool]
    value: Callable[[Row], float]

    def line(self, rows: Sequence[Row]) -> str | None:
        """Best and worst row, and how many reach it, as a line of a table; None where none is held to it."""
        held = [row for row in rows if self.applies(row)]
        if not held:
            return None
        values = [self.value(row) for row in held]
        worst = held[values.index(min(values))]
        met = sum(value >= self.least for value in values)
        return (
            f"| {self.text} | {self.least:.2f} | {min(values):.2f} | {max(values):.2f} "
            f"| {met} of {len(held)} | {case_text(worst)} |"
        )


def case_text(row: Row) -> str:
    """A row's case in a few words."""
    case = row["case"]
    where = "" if case["ranks"] == 1 else f", {row['kind']}"
    return f"K = {case['k']}, {case['width']} wide, bags of {case['bag']}, {case['ids']}{where}"


def goals(document: dict[str, Any]) -> list[Goal]:
    """The goals that apply to a device."""
    if document["device"] == "cuda":
        return _cuda_goals(float(document["copy_gb_per_s"]))

    def is_four(row: Row, ranks: int) -> bool:
        case = row["case"]
        shape = (case["k"], case["width"], case["ranks"])
        return bool(row["peer"] == "ebc" and shape == (4, 16, ranks))

    def ratio(row: Row) -> float:
        return float(row["ratio"])

    return [
        Goal(
            f"FBGEMM's kernel over ours, {layout}",
            1 / 1.05,
            lambda row, peer=peer: row["peer"] == peer,  # type: ignore[misc]
            ratio,
        )
        for layout, peer in (("packed", "tbe"), ("separate", "tbe_separate"))
    ] + [
        Goal(
            f"K tables over packed, K = 4, 16 wide, {ranks} rank{'s' if ranks > 1 else ''}",
            least,
            lambda row, ranks=ranks: is_four(row, ranks),  # type: ignore[misc]
            ratio,
        )
        for ranks, least in ((1, 1.6), (2, 1.25))
    ]


def _cuda_goals(copied: float) -> list[Goal]:
    def is_wide(row: Row) -> bool:
        case = row["case"]
        is_shape = (case["width"], case["bag"], row["batch"]) == (128, 1, 65_536)
        return bool(row["peer"] == "ours" and is_shape and row.get("data_type") != "fp16")

    def is_separate(row: Row) -> bool:
        case = row["case"]
        return bool(row["peer"] == "ours_separate" and (case["k"], case["width"]) == (4, 16))

    return [
        Goal(
            "FBGEMM's kernel over ours, packed",
            1 / 1.03,
            lambda row: bool(row["peer"] == "tbe"),
            lambda row: float(row["ratio"]),
        ),
        Goal(
            "forward over a copy, 128 wide",
            0.75,
            is_wide,
            lambda row: rate(row, "forward_") / copied,
        ),
        Goal("whole step over a copy, 128 wide", 0.6, is_wide, lambda row: rate(row) / copied),
        Goal(
            "separate over packed, K = 4, 16 wide",
            2.0,
            is_separate,
            lambda row: float(row["ratio"]),
        ),
    ]


def rate(row: Row, part: str = "") -> float:
    """GB/s of the least bytes that a row's step, or a part of it, has to move."""
    return float(row[f"{part}bytes"] / row[f"{part}milliseconds"] / 1e6)
