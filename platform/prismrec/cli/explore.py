"""`prismrec explore`: scores that explore, beside a model's probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson
from prismrec.cli.run import DataPath, ModelName, Uri
from prismrec.config.train import DEFAULT_TRACKING_URI as DEFAULT_URI

app = typer.Typer(
    help="How sure a model is of each row, and scores that explore by it.",
    epilog="Example: prismrec explore fit models:/ctr@champion --data out/world --out out/explorer",
    no_args_is_help=True,
)


@app.command(
    epilog="Example: prismrec explore fit models:/ctr@champion --data out/world --out out/explorer"
)
def fit(  # noqa: PLR0913 - the options of a command are its arguments
    model: ModelName,
    data: DataPath,
    out: Annotated[Path, typer.Option("--out", help="Directory to make.")],
    split: Annotated[
        str, typer.Option("--split", help="Rows it was trained on: train, valid, test, or all.")
    ] = "train",
    task: Annotated[
        str | None, typer.Option("--task", help="Task; the model's first if not given.")
    ] = None,
    prior: Annotated[
        float, typer.Option("--prior", help="Precision of a weight before any row.")
    ] = 1.0,
    uri: Uri = DEFAULT_URI,
    as_json: AsJson = False,
) -> None:
    """Fit how sure the model is to the rows that it was trained on."""
    from prismrec.jobs.explore import fit_explorer

    with output.progress("fitting", "rows") as progress:
        found = fit_explorer(model, data, out, (split, task, prior, uri), progress)
    if as_json:
        output.print_json(found)
    else:
        output.note(f"{found['rows']:,} rows, {found['width']} weights of '{found['task']}': {out}")


@app.command(
    epilog="Example: prismrec explore score models:/ctr@champion --explorer out/explorer "
    "--data out/world --rule thompson --out out/scores"
)
def score(  # noqa: PLR0913 - the options of a command are its arguments
    model: ModelName,
    explorer: Annotated[Path, typer.Option("--explorer", help="What `explore fit` wrote.")],
    data: DataPath,
    out: Annotated[Path, typer.Option("--out", help="Directory for the scores.")],
    rule: Annotated[str, typer.Option("--rule", help="greedy, ucb or thompson.")] = "thompson",
    kappa: Annotated[float, typer.Option("--kappa", help="ucb: deviations added.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="thompson: of the draws.", min=0)] = 0,
    group: Annotated[
        str | None, typer.Option("--group", help="Column of requests; the recipe's group.")
    ] = None,
    uri: Uri = DEFAULT_URI,
    as_json: AsJson = False,
) -> None:
    """Write expected probability, deviation of the logit and score of every row, as Parquet."""
    from prismrec.jobs.explore import Choice, score_rows
    from prismrec.serving.exploration import Rule

    choice = Choice(cast(Rule, rule), kappa, seed, group)
    with output.waiting("scoring"):
        found = score_rows(model, explorer, data, out, (choice, uri))
    if as_json:
        output.print_json(found)
    else:
        output.note(f"{found['rows']:,} rows into {out}")
