"""`prismrec analyze`: the report on one or several trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson
from prismrec.cli.run import DataPath, Uri
from prismrec.config.train import DEFAULT_TRACKING_URI as DEFAULT_URI

EXAMPLE = "Example: prismrec analyze models:/ctr@champion models:/ctr/2 --data out/kuairand --out out/report"


def analyze(  # noqa: PLR0913 - the options of a command are its arguments
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="One or several of: models:/NAME@ALIAS, models:/NAME/VERSION, a run id, a directory.",
        ),
    ],
    data: DataPath,
    out: Annotated[
        Path, typer.Option("--out", help="Directory for report.html and the numbers.")
    ] = Path("out/analysis"),
    split: Annotated[
        str, typer.Option("--split", help="Rows to look at: train, valid, test, or all.")
    ] = "test",
    rows: Annotated[int, typer.Option("--rows", help="At most so many rows.", min=100)] = 50_000,
    chapter: Annotated[
        list[str] | None, typer.Option("--chapter", help="Only this chapter; may be repeated.")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", help="Field of the user; the recipe's group if not given."),
    ] = None,
    item: Annotated[
        str | None, typer.Option("--item", help="Field of the item; the largest if not given.")
    ] = None,
    target: Annotated[
        int | None, typer.Option("--target", help="Target category whose histories are drawn.")
    ] = None,
    uri: Uri = DEFAULT_URI,
    as_json: AsJson = False,
) -> None:
    """Show collapse, entanglement and correlation of trained models, as a page to open."""
    from prismrec.jobs.analyze import Request, analyze

    request = Request(
        models=tuple(models),
        data=data,
        out=out,
        split=split,
        rows=rows,
        chapters=tuple(chapter or ()),
        fields=(user, item),
        target=target,
        uri=uri,
    )
    with output.stages() as progress:
        document = analyze(request, progress)
    if as_json:
        output.print_json(document)
        return
    for found in document["chapters"].values():
        for sentence in (*found["summary"], *found["missing"]):
            output.print_text(f"{sentence}\n")
    output.note(f"{document['report']} in {document['seconds']:.0f} s")
