"""`prismrec train`, `online`, `evaluate`, `predict` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, Overrides, RecipePath, is_verbose
from prismrec.config.train import DEFAULT_TRACKING_URI as DEFAULT_URI

if TYPE_CHECKING:
    from prismrec.config import Recipe
    from prismrec.jobs.run import Options

TRAIN_EXAMPLE = (
    "Example: prismrec train jobs/recipes/kuairand_me_dcnv2.toml data.path=out/kuairand --workers 2"
)
ONLINE_EXAMPLE = "Example: prismrec online jobs/recipes/online.toml data.path=out/stream"
EVALUATE_EXAMPLE = "Example: prismrec evaluate models:/ctr@champion --data out/kuairand"
PREDICT_EXAMPLE = (
    "Example: prismrec predict models:/ctr@champion --data out/kuairand --out out/predictions"
)
DEMO_EXAMPLE = "Example: prismrec demo"

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, a run id, or a directory of a checkpoint.",
    ),
]
DataPath = Annotated[str, typer.Option("--data", help="A data set with the model's columns.")]
Uri = Annotated[
    str, typer.Option("--tracking-uri", help="The MLflow server or SQLite file of the registry.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes that train; workers.count.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="A running Ray cluster; workers.address.")
]
NoRay = Annotated[
    bool, typer.Option("--no-ray", help="Plain processes of this machine instead of Ray.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the recipe's newest run.")]


def train(  # noqa: PLR0913 - the options of a command are its arguments
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    workers: Workers = None,
    address: Address = None,
    no_ray: NoRay = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a model, evaluate it, and register its inference copy."""
    from prismrec.jobs.run import Options

    changes = changes_of(overrides, workers, address)
    options = Options(use_ray=not no_ray, resume=resume, verbose=is_verbose(context))
    train_and_show(load_for_run(recipe, changes), options, as_json)


def train_and_show(recipe: Recipe, options: Options, as_json: bool) -> None:
    """Train and print the result; a run that a signal stopped leaves with 128 and its number."""
    from prismrec.jobs.run import RunStopped
    from prismrec.jobs.train import run_training

    try:
        result = run_training(recipe, options)
    except RunStopped as stopped:
        output.note(stopped.message)
        raise typer.Exit(stopped.exit_code) from None
    if as_json:
        output.print_json(result.to_json())
    else:
        show_result(result.to_json(), result.stopped_by)


def online(  # noqa: PLR0913 - the options of a command are its arguments
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    workers: Workers = None,
    address: Address = None,
    no_ray: NoRay = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train on files as they arrive, window by window, and publish versions of the model."""
    from prismrec.jobs.online import run_online
    from prismrec.jobs.run import Options, RunStopped

    options = Options(use_ray=not no_ray, resume=resume, verbose=is_verbose(context))
    try:
        changes = changes_of(overrides, workers, address)
        result = run_online(load_for_run(recipe, changes), options)
    except RunStopped as stopped:
        output.note(stopped.message)
        raise typer.Exit(stopped.exit_code) from None
    document = result.to_json()
    if as_json:
        output.print_json(document)
        return
    rows = [
        [
            each["period"],
            each["model"] or "",
            "yes" if each.get("is_champion") else "",
            each["reason"],
        ]
        for each in document["periods"]
    ]
    output.print_table(["windows", "version", "champion", "why"], rows)
    output.note(
        f"{document['windows']} windows, {document['rows']:,} rows; {document['late_files']} files "
        f"came late, {document['skipped_rows']:,} rows of them were left out"
    )
    output.note(f"run         {document['run']} in {document['directory']}")
    output.note(f"look at it  mlflow ui --backend-store-uri {document['tracking']}")


def load_for_run(recipe: Path, changes: list[str]) -> Recipe:
    """A recipe with overrides; where it runs on a cluster, none of them may hold a password."""
    from prismrec.config import load
    from prismrec.jobs.submit import check_command_line

    loaded = load(recipe, changes)
    if loaded.workers.address is not None:
        check_command_line(changes)
    return loaded


def changes_of(overrides: list[str] | None, workers: int | None, address: str | None) -> list[str]:
    """The overrides of a recipe with those that have options of their own."""
    changes = [*(overrides or [])]
    if workers is not None:
        changes.append(f"workers.count={workers}")
    if address is not None:
        changes.append(f'workers.address="{address}"')
    return changes


def evaluate(
    model: ModelName,
    data: DataPath,
    uri: Uri = DEFAULT_URI,
    split: Annotated[
        str, typer.Option("--split", help="Rows to take: train, valid, test, or all.")
    ] = "test",
    against: Annotated[
        str | None,
        typer.Option("--against", help="A second model: the AUC difference, with interval."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Exact metrics of a model on a data set, per task and per slice."""
    from prismrec.jobs.compare import compare_models
    from prismrec.jobs.evaluate import evaluate_model

    with output.progress("evaluating", "rows") as progress:
        document = evaluate_model(model, data, split, uri, progress)
    if against is not None:
        with output.progress("comparing", "rows") as progress:
            compared = compare_models(model, against, data, split, uri, progress)
        document["against"] = {"model": against, **compared}
    if as_json:
        output.print_json(document)
        return
    output.print_table(["metric", "value"], list(document["test"].items()), title=document["model"])
    if document["slices"]:
        output.print_table(["slice", "value"], list(document["slices"].items()))
    if against is not None:
        columns = ["auc", "rival_auc", "difference", "low", "high"]
        rows = [[task, *(values[c] for c in columns)] for task, values in compared.items()]
        output.print_table(
            ["task", "AUC", f"AUC of {against}", "difference", "95 % from", "to"], rows
        )


def predict(
    model: ModelName,
    data: DataPath,
    out: Annotated[Path, typer.Option("--out", help="Directory for the probabilities.")],
    uri: Uri = DEFAULT_URI,
    as_json: AsJson = False,
) -> None:
    """Probabilities of every row, as Parquet, with the rows' order and keys kept."""
    from prismrec.jobs.evaluate import predict_data

    with output.progress("predicting", "rows") as progress:
        document = predict_data(model, data, out, uri, progress)
    if as_json:
        output.print_json(document)
    else:
        output.note(f"{document['rows']:,} rows into {out}")


def demo(
    context: typer.Context,
    rows: Annotated[int, typer.Option("--rows", help="Size of the world.", min=5_000)] = 200_000,
    as_json: AsJson = False,
) -> None:
    """Make the synthetic world, train on it, register the model, load it back and predict."""
    from prismrec.jobs.demo import run_demo

    with output.progress("making the world", "rows") as progress:
        document = run_demo(progress, verbose=is_verbose(context), rows=rows)
    if as_json:
        output.print_json(document)
        return
    show_result(document)
    best = ", ".join(f"{task} {auc:.4f}" for task, auc in document["best_auc"].items())
    output.note(f"best reachable AUC (from the true probabilities): {best}")
    output.note(f"{document['predicted']:,} rows predicted from the registry: {document['out']}")


def show_result(document: dict[str, Any], stopped_by: str = "") -> None:
    """The closing table of a run and how to look at it."""
    tasks = dict.fromkeys(key.partition("/")[0] for key in document["test"])
    kinds = ("auc", "gauc", "logloss", "ne", "pcoc")
    rows = [[task, *(document["test"].get(f"{task}/{kind}") for kind in kinds)] for task in tasks]
    if rows:
        output.print_table(["test rows", "AUC", "GAUC", "LogLoss", "NE", "calibration"], rows)
    for feature, count in document["unknown_ids"].items():
        output.note(
            f"warning: {count:,} ids of '{feature}' in the training rows were missing or outside "
            "its table and took the unknown row"
        )
    for each in document.get("skipped", []):
        group = f": row group {each['row_group']}" if "row_group" in each else ""
        split = f", {each['rows']:,} rows of {each['split']}" if "split" in each else ""
        output.note(f"warning: passed over {each['file']}{group}{split}: {each['why']}")
    for step in document.get("dropped_steps", []):
        output.note(f"warning: the rows of step {step} are left out: its loss was not finite")
    if stopped_by:
        output.note("stopped early: no better metric for evaluate.patience evaluations")
    output.note(f"examples/s  {document['examples_per_second']:,.0f}")
    output.note(f"model       {document['model']}")
    output.note(f"run         {document['run']} in {document['directory']}")
    output.note(f"look at it  mlflow ui --backend-store-uri {document['tracking']}")
