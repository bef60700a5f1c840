"""`prismrec data build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, is_verbose

EXAMPLE = "Example: prismrec data build shop.toml --out out/shop"


def build(  # noqa: PLR0913 - the options of a command are its arguments
    context: typer.Context,
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="TOML file that says what is built of what.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    address: Annotated[
        str | None, typer.Option("--address", help="A running Ray cluster; embedded without it.")
    ] = None,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="Work in this process instead of on Ray.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a data set at --out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a data set of Parquet files: join tables, give ids, split by time, sort, fit."""
    from prismrec.data.building.plan import load_plan
    from prismrec.jobs.data_build import Where, run_build

    where = Where(not no_ray, address, is_verbose(context))
    with output.stages() as tell:
        document = run_build(load_plan(plan), out, where, tell, overwrite=overwrite)
    if as_json:
        output.print_json(document)
        return
    rows = [(name, f"{count:,} rows") for name, count in document["splits"].items()]
    for each in document["joins"]:
        told = f"{each['how']} ({each['why']})"
        if each["unmatched"] is not None:
            told += f", {each['unmatched']:,} rows without a match"
        rows.append((f"joined {each['table']}", told))
    rows += [(f"ids of {name}", f"{count:,}") for name, count in document["vocabularies"].items()]
    rows += [(f"fitted {name}", path) for name, path in document["fitted"].items()]
    how = "dealt out by time first" if document["sorted"] else "read in their order"
    rows.append(("rows", f"{document['rows']:,}, {how}"))
    rows.append(("files", f"{document['files']:,} with {document['row_groups']:,} row groups"))
    output.print_table((document["name"], "built"), rows)
    output.note(f"{document['rows']:,} rows are in {out} after {document['seconds']} s")
