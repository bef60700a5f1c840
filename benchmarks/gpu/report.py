"""The page of a GPU run, from the JSON of one call or of several.

    python -m benchmarks.gpu.report out/first/gpu.json out/second/gpu.json --out benchmarks/results/h200

Of a part that ran in several calls, the last that has results counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import sentence
from benchmarks.result import write

Document = dict[str, Any]
"""`machine`, `device`, `driver`, `size`, `commands`, and `parts`: by name `title`, `status`, `seconds`, `log`
and what the part found, see `Results.document`."""


def markdown(document: Document) -> str:
    """The whole page; what has run so far if it is not over."""
    parts = document["parts"]
    pieces = [_head(document), summary(document)]
    for part in parts.values():
        pieces.append(f"## {part['title']}")
        if part["status"] != "done":
            pieces.append(f"{part['status']}." + _log(part["log"]))
        pieces += [_table(table) for table in part["tables"]]
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def merged(documents: Sequence[Document]) -> Document:
    """One document of several calls.

    Raises:
        ValueError: they are of different commits, devices or sizes.
    """
    for key in ("device", "size", "commit"):
        values = sorted({_fact(each, key) for each in documents})
        if len(values) > 1:
            raise ValueError(f"the calls differ in their {key}: {', '.join(values)}")
    parts: dict[str, Any] = {}
    for document in documents:
        for name, part in document["parts"].items():
            if name not in parts or part["tables"]:
                parts[name] = part
    commands = [command for each in documents for command in each["commands"]]
    return {**documents[-1], "commands": commands, "parts": parts}


def _fact(document: Document, key: str) -> str:
    return str(document["machine"]["commit"] if key == "commit" else document[key])


def _head(document: Document) -> str:
    where = f"{document['device']}, driver {document['driver']}"
    if document["size"] == "trial":
        where += ". A trial at small sizes: the numbers say nothing"
    commands = "\n".join(document["commands"])
    return (
        f"# One run on {document['device']}\n\n{sentence(document['machine'])}. {where}.\n\n"
        f"```bash\n{commands}\n```"
    )


def summary(document: Document) -> str:
    """What every part came to, and the goals."""
    parts = document["parts"]
    lines = [
        f"| {name} | {part['status']} | {part['seconds']:.0f} |" for name, part in parts.items()
    ]
    pieces = [lined(["part", "came to", "seconds"], lines), _goals(parts)]
    return "\n\n".join(piece for piece in pieces if piece)


def _goals(parts: dict[str, Any]) -> str:
    lines = [
        f"| {goal['text']} | {goal['wanted']:,.2f} | {goal['got']:,.2f} | {'yes' if goal['met'] else 'no'} |"
        for part in parts.values()
        for goal in part["goals"]
    ]
    if not lines:
        return ""
    return "## Goals\n\n" + lined(["goal", "at least", "measured", "reached"], lines)


def _table(table: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in table["rows"]]
    note = f"{table['note']}\n\n" if table["note"] else ""
    return f"### {table['title']}\n\n{note}" + lined(table["columns"], lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")


def _log(text: str) -> str:
    return f" The end of its log:\n\n```text\n{text.replace('```', '')}\n```" if text else ""


def lined(heading: Sequence[str], lines: Iterable[str]) -> str:
    """A table of lines that are ready."""
    return "\n".join(["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading), *lines])


def main(given_arguments: Sequence[str] | None = None) -> None:
    """Write the page and the JSON of some calls as one, and a chart of the tables if they were measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calls", type=Path, nargs="+", help="gpu.json of each call, in their order")
    parser.add_argument(
        "--out", type=Path, required=True, help="write OUT.json, OUT.md and OUT.svg"
    )
    given = parser.parse_args(given_arguments)
    document = merged([json.loads(path.read_text()) for path in given.calls])
    write(given.out, document, markdown(document))
    tables = document["parts"].get("tables", {}).get("facts", {}).get("document")
    if tables and tables["rows"]:
        from benchmarks.embeddings.chart import svg  # torch is not needed for the rest

        given.out.with_suffix(".svg").write_text(svg(tables))
    print(markdown(document))


if __name__ == "__main__":
    main()
