"""`prismrec data emissions`: what a stream shows of conversions that come late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output

EXAMPLE = (
    "Example: prismrec data emissions out/world --out out/shown --rule late_copies "
    "--delay conversion_delay --wait 21600 --attribution 259200"
)


def emissions(  # noqa: PLR0913 - the options of a command are its arguments
    log: Annotated[
        str, typer.Argument(metavar="LOG", help="A data set of impressions, each row once.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")],
    rule: Annotated[
        str,
        typer.Option("--rule", help="oracle, wait, copies, late_copies or real_negatives."),
    ],
    wait: Annotated[int, typer.Option("--wait", help="Waiting window, in the unit of the time.")],
    attribution: Annotated[
        int, typer.Option("--attribution", help="How long after its row a conversion counts.")
    ],
    delay: Annotated[
        str, typer.Option("--delay", help="Column: time from row to conversion, null for none.")
    ] = "conversion_delay",
    conversions: Annotated[
        str | None,
        typer.Option("--conversions", help="A data set of conversions, which gives the delays."),
    ] = None,
    key: Annotated[
        str, typer.Option("--key", help="With --conversions: column that joins both.")
    ] = "key",
    time: Annotated[str, typer.Option("--time", help="Time column.")] = "time",
    label: Annotated[str, typer.Option("--label", help="Name of the label made.")] = "converted",
    until: Annotated[
        int | None, typer.Option("--until", help="Leave out what is emitted after this time.")
    ] = None,
) -> None:
    """Turn a log of impressions into the rows that a stream would have shown, in their order."""
    from prismrec.data.delayed import LogColumns, Waiting, write_emissions

    windows = Waiting(wait, attribution, until)
    columns = LogColumns(time, delay, label)
    joined = None if conversions is None else (conversions, key)
    with output.waiting("emitting"):
        rows = write_emissions(log, out, rule, (columns, windows), joined)
    output.note(f"{rows:,} rows are in {out}, in the order of their emission")
