"""What of a run's first weights came from elsewhere: counted, told, and refused where it must be whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prismrec.config import UserError

Kind = Literal["table", "table state", "dense", "dense state"]
_MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Match:
    """One tensor that was to be filled.

    Args:
        kind: what it is.
        name: `table/set`, `table/set/state`, or the name of a dense parameter; an empty text for
            something of the source that has no use here.
        source: what filled it, or an empty text.
        matched: rows of a table, or numbers of a dense tensor, that were filled.
        here: how many there are of these.
        there: how many the source has.
        note: why some were not.
        is_wanted: whether everything of it was asked for.
    """

    kind: Kind
    name: str
    source: str
    matched: int
    here: int
    there: int
    note: str = ""
    is_wanted: bool = True


@dataclass(frozen=True, slots=True)
class Matches:
    """The tensors that one thing was to fill.

    Args:
        title: `warm_start` or `pretrained`.
        source: where from, in words.
        each: the tensors.
    """

    title: str
    source: str
    each: tuple[Match, ...]

    def refuse_partial(self, key: str) -> None:
        """Refuse anything that was asked for and is not filled completely.

        Raises:
            UserError: naming what is missing.
        """
        wrong = [
            f"{match.name} ({match.matched:,} of {match.here:,}{_reason(match)})"
            for match in self.each
            if match.is_wanted and match.matched < match.here
        ]
        if wrong:
            listed = wrong[:_MAX_LISTED]
            if len(wrong) > len(listed):
                listed.append(f"and {len(wrong) - len(listed)} more")
            raise UserError(
                f"{key}: not everything has a match in {self.source}: {'; '.join(listed)}; map the "
                f'names, leave tables and sets out by "", or set strict = false'
            )

    def to_text(self) -> str:
        """A table with a line for every tensor."""
        head = ("", "from", "matched", "here", "there", "")
        rows = [
            (
                m.name or "-",
                "same" if m.source == m.name else m.source or "-",
                *(f"{n:,}" for n in (m.matched, m.here, m.there)),
                m.note,
            )
            for m in self.each
        ]
        widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(width) if at in (2, 3, 4) else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        ]
        return "\n".join([f"{self.title.replace('_', ' ')}: {self.source}", *lines]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """What the run's `run.json` keeps."""
        return {"source": self.source, "matches": [asdict(match) for match in self.each]}

    def metrics(self) -> dict[str, float]:
        """By name: of each table the share of its rows that were filled and of the source's that were
        taken, and the share of the numbers of all dense tensors.
        """
        found = {}
        for match in self.each:
            if match.kind == "table" and match.here:
                found[f"{self.title}/{match.name}/share_of_rows"] = match.matched / match.here
                if match.there:
                    share = match.matched / match.there
                    found[f"{self.title}/{match.name}/share_of_source"] = share
        dense = [match for match in self.each if match.kind == "dense" and match.here]
        if dense:
            share = sum(match.matched for match in dense) / sum(match.here for match in dense)
            found[f"{self.title}/dense/share_of_numbers"] = share
        return found


def all_matches(parts: Sequence[Matches]) -> str:
    """The tables of several as one text."""
    return "\n".join(part.to_text() for part in parts)


def _reason(match: Match) -> str:
    return f", {match.note}" if match.note else ""
