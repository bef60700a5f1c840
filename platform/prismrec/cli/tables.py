"""`prismrec tables`: the tables of a checkpoint, out of it and into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson

app = typer.Typer(
    help="Tables of a checkpoint: list, export, import, and what changed since a step.",
    epilog="Example: prismrec tables list out/runs/demo-20261120-155834",
    no_args_is_help=True,
)

Source = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="A checkpoint, or the directory of a run: its best checkpoint, else its newest.",
    ),
]
Table = Annotated[str | None, typer.Option("--table", help="One table; all if not given.")]
Set = Annotated[str | None, typer.Option("--set", help="One set; all if not given.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to make: OUT/TABLE/SET/*.parquet.")]


@app.command("list", epilog="Example: prismrec tables list out/runs/demo-20261120-155834 --json")
def list_tables(source: Source, as_json: AsJson = False) -> None:
    """Tables and sets with rows, width, type and bytes."""
    from prismrec.checkpoint.directory import find_checkpoint
    from prismrec.checkpoint.tables import CheckpointTables

    with CheckpointTables(find_checkpoint(source)) as tables:
        facts = [each.to_json() for each in tables.facts()]
        document = {"checkpoint": str(tables.reader.path), "step": tables.step, "tables": facts}
    if as_json:
        output.print_json(document)
        return
    output.print_table(
        ["table", "set", "rows", "width", "type", "bytes", "ids", "touched"],
        [
            [
                *(each[name] for name in ("table", "set", "rows", "width", "type")),
                each["weight_bytes"] + each["state_bytes"],
                each["ids"],
                "known" if each["touched"] else "",
            ]
            for each in facts
        ],
        f"{document['checkpoint']}, step {document['step']}",
    )


@app.command(
    epilog="Example: prismrec tables export out/runs/demo-20261120-155834 --table item --out out/item"
)
def export(
    source: Source, out: Out, table: Table = None, set_name: Set = None, as_json: AsJson = False
) -> None:
    """Write vectors as Parquet: `id` (null for unknown ids), `row`, `vector`."""
    _write(source, out, (table, set_name), None, as_json)


@app.command(
    epilog="Example: prismrec tables delta out/runs/demo-20261120-155834 --since 1000 --out out/delta"
)
def delta(
    source: Source,
    out: Out,
    since: Annotated[int, typer.Option("--since", help="A step; those after it count.", min=0)],
    table: Table = None,
    set_name: Set = None,
    as_json: AsJson = False,
) -> None:
    """Write the vectors that training touched since a step, as `export` writes all of them.

    Needs a run with `embedding.track_touched = true`.
    """
    _write(source, out, (table, set_name), since, as_json)


@app.command(
    "import",
    epilog="Example: prismrec tables import out/old item.parquet --table item --set set0 --out out/new",
)
def import_(
    source: Source,
    vectors: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Parquet with columns id and vector, or a directory."),
    ],
    table: Annotated[str, typer.Option("--table", help="The table.")],
    set_name: Annotated[str, typer.Option("--set", help="The set.")],
    out: Annotated[Path, typer.Option("--out", help="The checkpoint to make.")],
) -> None:
    """Copy a checkpoint, with the vectors of a file in one set of one table."""
    from prismrec.checkpoint.directory import find_checkpoint
    from prismrec.checkpoint.importing import import_vectors
    from prismrec.checkpoint.tables import CheckpointTables

    with CheckpointTables(find_checkpoint(source)) as tables:
        tables.chosen(table, set_name)
        with output.waiting("copying"):
            found = import_vectors(tables, table, set_name, vectors, out)
    output.note(
        f"{found.rows:,} of {found.of:,} rows of {table}/{set_name} have a vector of the file now; "
        f"{found.vectors - found.rows:,} of its {found.vectors:,} vectors have no row"
    )
    output.note(f"checkpoint {out}")


def _write(
    source: Path, out: Path, names: tuple[str | None, str | None], since: int | None, as_json: bool
) -> None:
    from prismrec.checkpoint.directory import find_checkpoint
    from prismrec.checkpoint.exchange import export_tables
    from prismrec.checkpoint.tables import CheckpointTables

    with CheckpointTables(find_checkpoint(source)) as tables:
        chosen = tables.chosen(*names)
        with output.progress("writing", "rows") as progress:
            written = export_tables(tables, chosen, out, progress, since)
        path, step = tables.reader.path, tables.step
    if as_json:
        output.print_json(
            {
                "checkpoint": str(path),
                "step": step,
                "since": since,
                "written": [each.to_json() for each in written],
            }
        )
        return
    rows = [[each.table, each.set_name, each.rows, each.of] for each in written]
    output.print_table(["table", "set", "vectors written", "of"], rows, f"{path}, step {step}")
    for each in written:
        if "id" not in each.keys:
            output.note(f"{each.table}/{each.set_name}: ids share rows, so these have no id")
