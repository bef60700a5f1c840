"""`prismrec tune`: a search over keys of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, Overrides, RecipePath, is_verbose
from prismrec.cli.run import changes_of, load_for_run

EXAMPLE = "Example: prismrec tune jobs/recipes/demo.toml --space space.toml --trials 20"


def tune(  # noqa: PLR0913 - the options of a command are its arguments
    context: typer.Context,
    recipe: RecipePath,
    space: Annotated[
        Path,
        typer.Option(
            help="TOML file of keys and what they may be, such as "
            "train.optimizer.learning_rate = { loguniform = [1e-4, 1e-2] }."
        ),
    ],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option("--trials", help="Trials in all.", min=1)] = 16,
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", help="Trials at the same time; by the cluster's cores.", min=1),
    ] = None,
    grace: Annotated[
        int, typer.Option(help="Evaluations before a trial may be stopped.", min=1)
    ] = 1,
    reduction: Annotated[
        int, typer.Option(help="One of so many trials goes on past each rung.", min=2)
    ] = 3,
    address: Annotated[
        str | None, typer.Option("--address", help="A running Ray cluster; workers.address.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the recipe's newest search.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search values of a recipe's keys: train trials, stop the weak ones, register the best."""
    from prismrec.jobs.tune.search import Asked, Options, run_search

    changes = changes_of(overrides, None, address)
    load_for_run(recipe, changes)
    options = Options(trials, at_once, grace, reduction, resume, is_verbose(context))
    document = run_search(Asked(recipe, tuple(changes), space), options)
    if as_json:
        output.print_json(document)
        return
    rows = [
        (each["number"], each["state"], each["best"], each["step"], _words(each["values"]))
        for each in document["trials"]
    ]
    output.print_table(("trial", "ended", document["metric"], "step", "values"), rows)
    best = document["best"]
    output.note(f"best        trial {best['number']}, {best['recipe']}")
    output.note(f"model       {best['registered']}")
    output.note(f"run         {document['run']} in {document['directory']}")
    output.note(f"look at it  mlflow ui --backend-store-uri {document['tracking']}")


def _words(values: dict[str, Any]) -> str:
    """The values of a trial, a line for each key."""
    shown = {key: f"{v:.4g}" if isinstance(v, float) else v for key, v in values.items()}
    return "\n".join(f"{key} = {value}" for key, value in shown.items())
