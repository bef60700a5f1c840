"""`prismrec data`: make, prepare and look at data sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from prismrec.cli import build, emissions, from_petastorm, output, semantic_ids
from prismrec.cli.options import AsJson, Overrides, RecipePath

app = typer.Typer(
    help="Make, prepare and look at data sets.",
    epilog="Example: prismrec data synth out/demo/data --rows 200000",
    no_args_is_help=True,
)

app.command("build", epilog=build.EXAMPLE)(build.build)
app.command("emissions", epilog=emissions.EXAMPLE)(emissions.emissions)
app.command("import-petastorm", epilog=from_petastorm.EXAMPLE)(from_petastorm.import_petastorm)
app.command("semantic-ids", epilog=semantic_ids.EXAMPLE)(semantic_ids.semantic_ids)


@app.command(epilog="Example: prismrec data synth out/world --rows 200000 --days 7 --seed 1")
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")],
    rows: Annotated[int, typer.Option(help="Rows in all.", min=1)] = 200_000,
    days: Annotated[int, typer.Option(help="Days the rows are spread over.", min=1)] = 7,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.", min=0)] = 1,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="What else may be turned, such as opposed_share=0.5, new_item_share=0.2 or "
            "like_bias=-5; several are given one by one."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a world at OUT.")] = False,
) -> None:
    """Write the synthetic world: Parquet files whose true probabilities are known."""
    from prismrec.data.world import write_world
    from prismrec.data.world_truth import WorldOptions
    from prismrec.data.write import check_free

    options = WorldOptions.of(option or ())
    check_free(out, overwrite)
    with output.progress("Writing the world", "rows") as advance:
        write_world(out, rows, days, seed, options, progress=advance)
    output.note(f"{rows:,} rows over {days} days are in {out}")


@app.command(
    epilog="Example: prismrec data prepare kuairand --source KuaiRand-Pure --out out/kuairand"
)
def prepare(  # noqa: PLR0913 - the options of a command are its arguments
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="census, criteo, csv, frappe, kuairand, movielens, or package.module:function.",
        ),
    ],
    source: Annotated[Path, typer.Option(help="Directory with the files as published.")],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    schema: Annotated[
        Path | None, typer.Option(help="csv: JSON file that says what the columns mean.")
    ] = None,
    delimiter: Annotated[str, typer.Option(help="csv: what stands between fields.")] = ",",
    min_count: Annotated[
        int, typer.Option(help="criteo, csv: rarer values are read as unknown.", min=1)
    ] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a data set at --out.")
    ] = False,
) -> None:
    """Turn a public data set, or delimited text of your own, into Parquet files with a schema."""
    from prismrec.config import UserError
    from prismrec.data import adapters

    character = "\t" if delimiter in ("\\t", "tab") else delimiter
    if len(character) != 1:
        raise UserError(f"--delimiter: must be one character or \\t, got {delimiter!r}")
    with output.progress(f"Preparing {name}", "") as advance:
        options = adapters.PrepareOptions(
            schema=schema, delimiter=character, min_count=min_count, progress=advance
        )
        written = adapters.prepare(name, source, out, options, overwrite)
    output.note(f"{written.name}: {len(written.columns)} columns are in {out}")


@app.command(epilog="Example: prismrec data inspect out/kuairand --world-size 2")
def inspect(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A data set, or its URL.")],
    world_size: Annotated[
        int | None, typer.Option(help="Ranks that the lanes are shared out to.", min=1)
    ] = None,
    lanes: Annotated[int, typer.Option(help="Lanes, as in a recipe's data.lanes.", min=1)] = 8,
    as_json: AsJson = False,
) -> None:
    """Show what a data set holds: files, rows, lanes, and every column in numbers."""
    from prismrec.data.inspect import inspect_data

    with output.progress("Reading", "row groups") as advance:
        facts = inspect_data(directory, world_size, lanes, advance)
    if as_json:
        output.print_json(facts)
        return
    output.print_table(("data set", facts["name"]), _overview(facts))
    rows = [
        (name, column["kind"], _short(column["type"]), column["nulls"], _contents(column))
        for name, column in facts["columns"].items()
    ]
    output.print_table(("column", "kind", "type", "nulls", "holds"), rows)


@app.command(
    epilog=(
        "Example: prismrec data vocabulary out/kuairand --column video_id --min-count 5 "
        "--out out/video_id.parquet"
    )
)
def vocabulary(  # noqa: PLR0913 - the options of a command are its arguments
    directory: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="A data set, or its URL.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Column of ids; several are counted together, for a table they share."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Condition that rows must meet, as in data.splits, such as 'day <= 4'."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="In the place of all these: take data, training rows, columns and files from a "
            "recipe's tables with ids.kind = 'vocabulary'."
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="With --recipe: write that of this table only.")
    ] = None,
    min_count: Annotated[int, typer.Option(help="Leave out ids seen less often.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """List the ids in the training rows with their counts, for tables with a vocabulary."""
    from prismrec.config import UserError, load
    from prismrec.data.source import open_data
    from prismrec.data.vocabulary import VocabularyFile, files_of, write_vocabularies

    given = [directory, column, where, out]
    if recipe is not None:
        if any(given):
            raise UserError("--recipe says what to read and write; leave out DIR and other options")
        loaded = load(recipe)
        path, conditions = loaded.data.path, loaded.data.splits.train
        files = files_of(loaded, table)
    elif directory and column and out and table is None:
        path, conditions = directory, tuple(where or ())
        files = [VocabularyFile(tuple(column), out)]
    else:
        raise UserError("name either DIR, --column and --out, or --recipe")
    with output.progress("Counting", "row groups") as advance:
        written = write_vocabularies(
            open_data(path), files, conditions, min_count, overwrite=overwrite, progress=advance
        )
    for each in written:
        share = each.values / max(each.all_values, 1)
        output.note(
            f"{each.ids:,} of {each.all_ids:,} ids, which are {share:.2%} of all values, are in "
            f"{each.out}"
        )


@app.command(epilog="Example: prismrec data fit my_recipe.toml --overwrite")
def fit(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write; the recipe's features.statistics.")
    ] = None,
    sample: Annotated[
        int, typer.Option(help="Most values of a number that its quantiles are told by.", min=1000)
    ] = 2**18,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the ranges and quantiles of a recipe's numbers in its training rows."""
    from prismrec.config import UserError, load
    from prismrec.data.encode.numbers.sample import share_error
    from prismrec.data.fit_numbers import fit_numbers, write_statistics
    from prismrec.data.source import open_data

    loaded = load(recipe, overrides or ())
    named = loaded.features.statistics
    if out is None and (named is None or "://" in named):
        raise UserError("--out: features.statistics names no local file; say where to write")
    target = out or Path(str(named))
    if target.exists() and not overwrite:
        raise UserError(f"{target}: already there; --overwrite replaces it")
    with output.progress("Reading", "row groups") as advance:
        fitted = fit_numbers(loaded, open_data(loaded.data.path), sample, advance)
    write_statistics(fitted, target)
    if as_json:
        output.print_json(fitted.model_dump())
        return
    columns = ("number", "values", "missing", "0.1 %", "99.9 %", "least", "most", "error at median")
    rows = [
        (
            name,
            each.values,
            each.missing,
            *(f"{value:.6g}" for value in (each.low, each.high, each.least, each.most)),
            f"{share_error(each.sample, each.values, 0.5):.2%}",
        )
        for name, each in fitted.numbers.items()
    ]
    output.print_table(columns, rows)
    output.note(f"{fitted.rows:,} training rows were read; {target} is written")


@app.command(epilog="Example: prismrec data collisions jobs/recipes/demo.toml")
def collisions(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show how many ids of the training rows share their rows, or have none, by table."""
    from prismrec.config import load
    from prismrec.data.collisions import table_ids
    from prismrec.data.source import open_data

    loaded = load(recipe, overrides or ())
    with output.progress("Counting", "row groups") as advance:
        tables = table_ids(loaded, open_data(loaded.data.path), advance)
    if as_json:
        output.print_json([asdict(each) for each in tables])
        return
    columns = ("table", "kind", "rows", "used", "ids", "shared", "expected", "unknown values")
    rows = [
        (
            each.table,
            each.kind,
            each.rows,
            f"{each.used_rows / each.rows:.2%}",
            each.ids,
            f"{each.sharing / max(each.ids, 1):.2%}",
            f"{each.expected_sharing / max(each.ids, 1):.2%}",
            f"{each.unknown_values / max(each.values, 1):.2%}",
        )
        for each in tables
    ]
    output.print_table(columns, rows)


def _overview(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines on the data set as a whole."""
    lanes = facts["lanes"]
    rows = [
        ("source", facts["source"]),
        ("fingerprint", facts["fingerprint"]),
        ("rows", f"{facts['rows']:,} in {facts['files']:,} files, {facts['bytes']:,} bytes"),
        ("row groups", f"{facts['row_groups']:,} of {_span(facts['rows_per_group'])} rows"),
        ("lanes", f"{lanes['lanes']} of {_span(lanes['rows_per_lane'])} rows"),
    ]
    if "world_size" in lanes:
        shares = ", ".join(f"{count:,}" for count in lanes["rows_per_rank"])
        rows.append(("ranks", f"{lanes['lanes_per_rank']} lanes each; rows by rank: {shares}"))
    return rows


def _contents(column: dict[str, Any]) -> str:
    """What one column holds, in a line."""
    parts = []
    if "lengths" in column:
        lengths = column["lengths"]
        ends = f"{lengths['0.5']} at the median, {lengths['1']} at most"
        parts.append(f"length {ends}, {lengths['empty_share']:.1%} empty")
    if "num_ids" in column:
        distinct = "" if column["distinct"] is None else f"{column['distinct']:,} of "
        parts.append(f"{distinct}{column['num_ids']:,} ids, {column['unknown']:,} unknown")
    elif column.get("rate") is not None:
        parts.append(f"{column['rate']:.4f} are 1")
    elif column.get("mean") is not None:
        spread = f"mean {column['mean']:.4g}, std {column['std']:.4g}"
        parts.append(f"{column['min']:.4g} to {column['max']:.4g}, {spread}")
    elif column.get("min") is not None:
        parts.append(f"{column['min']} to {column['max']}")
    return "; ".join(parts)


def _short(type_: str) -> str:
    """An Arrow type without the names of list items."""
    return type_.replace("element: ", "").replace("item: ", "")


def _span(ends: list[int]) -> str:
    """Two numbers, or one where they are equal."""
    least, most = ends
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
