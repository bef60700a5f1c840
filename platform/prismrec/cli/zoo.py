"""`prismrec zoo`: the named systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson

EXAMPLE = "Example: prismrec zoo --recipes kuairand --data out/kuairand"


def zoo(
    recipes: Annotated[
        str, typer.Option(help="Folder of jobs/recipes that the sizes are of: world or kuairand.")
    ] = "world",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data set that gives the numbers of ids; that of the recipes if not given."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every named system: what it is, its recipe, its parameters there, and its paper."""
    from prismrec.jobs.systems import sizes

    with output.waiting("Building every system"):
        rows = [size.row() for size in sizes(recipes, data)]
    if as_json:
        output.print_json(rows)
        return
    output.print_table(
        ("system", "what it is", "dense", "in tables", "source"),
        [[r["name"], r["line"], r["dense"], r["table"], r["source"]] for r in rows],
    )
    output.note(f"recipes: jobs/recipes/{recipes}/SYSTEM.toml")
