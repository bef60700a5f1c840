"""`prismrec models`: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson
from prismrec.cli.run import ModelName, Uri
from prismrec.config.train import DEFAULT_TRACKING_URI as DEFAULT_URI

app = typer.Typer(
    help="Versions, aliases and files of the registered models.",
    epilog="Example: prismrec models list",
    no_args_is_help=True,
)


@app.command("list", epilog="Example: prismrec models list --json")
def list_models(uri: Uri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """Every version of every registered model."""
    from prismrec.tracking.registry import Registry

    rows = [info.row() for info in Registry(uri).list_models()]
    if as_json:
        output.print_json(rows)
        return
    cells = [[r["name"], r["version"], ", ".join(r["aliases"]), r["run"], r["data"]] for r in rows]
    output.print_table(["model", "version", "aliases", "run", "data"], cells)


@app.command("show", epilog="Example: prismrec models show models:/ctr@champion")
def show(model: ModelName, uri: Uri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """One version with its test metrics."""
    from prismrec.tracking.registry import Registry

    info = Registry(uri).show(model)
    if as_json:
        output.print_json({**info.row(), "metrics": dict(info.metrics), "tags": dict(info.tags)})
        return
    facts = [*info.row().items(), *info.tags.items()]
    output.print_table(["", info.label], [[key, str(value)] for key, value in facts])
    output.print_table(["test metric", "value"], list(info.metrics.items()))


@app.command("promote", epilog="Example: prismrec models promote models:/ctr/3 --metric click/auc")
def promote(
    model: ModelName,
    metric: Annotated[str, typer.Option("--metric", help="Test metric to compare.")],
    to: Annotated[str, typer.Option("--to", help="The alias to give.")] = "champion",
    min_gain: Annotated[float, typer.Option("--min-gain", help="Smallest gain.")] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Whatever the numbers say.")] = False,
    uri: Uri = DEFAULT_URI,
) -> None:
    """Give a version an alias if it beats the version that has it."""
    from prismrec.tracking.registry import Registry

    output.note(Registry(uri).promote(model, metric, min_gain, to=to, force=force).reason)


@app.command("export", epilog="Example: prismrec models export models:/ctr@champion out/ctr")
def export(
    model: ModelName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    uri: Uri = DEFAULT_URI,
) -> None:
    """Copy a model's files to a directory."""
    from prismrec.tracking.registry import Registry

    output.note(f"{model} in {Registry(uri).export(model, out)}")
