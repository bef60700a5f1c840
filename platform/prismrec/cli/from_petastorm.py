"""`prismrec data import-petastorm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, is_verbose

EXAMPLE = "Example: prismrec data import-petastorm /data/clicks out/clicks --trust"


def import_petastorm(  # noqa: PLR0913 - the options of a command are its arguments
    context: typer.Context,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Directory that petastorm wrote, or plain Parquet.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")],
    schema: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of the columns to take and their kinds; all, by type, without."
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Read the schema that petastorm stored as a Python pickle. Reading it runs any code "
            "its author put there, with your rights: say so for data of people you trust only.",
        ),
    ] = False,
    readers: Annotated[int, typer.Option(help="Processes that read.", min=1)] = 1,
    address: Annotated[
        str | None, typer.Option("--address", help="A running Ray cluster; embedded without it.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a data set at OUT.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a petastorm data set with petastorm, in an environment of its own, into a data set."""
    from prismrec.config import UserError
    from prismrec.data.schema import DataSchema
    from prismrec.jobs import from_petastorm

    given = None
    if schema is not None:
        if not schema.is_file():
            raise UserError(f"--schema: {schema}: no such file")
        given = DataSchema.parse(schema.read_text(), f"--schema: {schema}")
    options = from_petastorm.ImportOptions(
        given, trust, readers, address, overwrite, is_verbose(context)
    )
    with output.waiting("petastorm reads"):
        document = from_petastorm.import_petastorm(url, out, options, output.note)
    if as_json:
        output.print_json(document)
        return
    rows = [
        (name, each["kind"], each["type"], "x".join(map(str, each["shape"] or [])))
        for name, each in document["columns"].items()
    ]
    output.print_table(("column", "kind", "type", "shape"), rows)
    for name, why in document["left_out"].items():
        output.note(f"{name} is left out: {why}")
    output.note(f"{document['rows']:,} rows are in {out}")
