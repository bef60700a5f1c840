"""`prismrec models`: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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

    registry = Registry(uri)
    doubt = None if force else registry.tested_on_other_data(model, to)
    if doubt is not None:
        output.note(f"warning: {doubt}")
    output.note(registry.promote(model, metric, min_gain, to=to, force=force).reason)


@app.command(
    "export", epilog="Example: prismrec models export models:/ctr@champion out/ctr --tables int8"
)
def export(  # noqa: PLR0913 - the options of a command are its arguments
    model: ModelName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    tables: Annotated[
        str | None, typer.Option("--tables", help="fp32, fp16, bf16, int8 or int4.")
    ] = None,
    dense: Annotated[str | None, typer.Option("--dense", help="fp32 or bf16.")] = None,
    program: Annotated[
        str | None,
        typer.Option("--format", help="Write a program too: torch.export or torchscript."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Rows to compare on; the model's training data if not given."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, valid, test, or all.")] = "test",
    max_auc: Annotated[
        float | None, typer.Option("--max-auc-change", help="Largest loss of AUC.")
    ] = None,
    max_logloss: Annotated[
        float | None, typer.Option("--max-logloss-change", help="Largest change of LogLoss.")
    ] = None,
    uri: Uri = DEFAULT_URI,
    as_json: AsJson = False,
) -> None:
    """Copy a model's files, or make them of other number types, compared with fp32 and timed."""
    from prismrec.jobs.export import ExportOptions, export_recoded
    from prismrec.tracking.registry import Registry

    if tables is None and dense is None and program is None:
        output.note(f"{model} in {Registry(uri).export(model, out)}")
        return
    options = ExportOptions(
        tables or "fp32",
        dense or "fp32",
        program,
        data=data,
        split=split,
        max_auc_change=max_auc,
        max_logloss_change=max_logloss,
    )
    report = export_recoded(model, out, uri, options)
    if as_json:
        output.print_json(report)
        return
    _show_export(report)
    output.note(f"{model} in {out}")


def _show_export(report: dict[str, Any]) -> None:
    """Tables of what an export cost and gave."""
    tasks = dict.fromkeys(name.rpartition("/")[0] for name in report["parity"])
    kinds = ("max_logit_difference", "auc_change", "logloss_change")
    lines = [
        [task, *(f"{report['parity'][f'{task}/{kind}']:.2e}" for kind in kinds)] for task in tasks
    ]
    title = f"against fp32, {report['rows']:,} rows"
    output.print_table(["task", "max |dlogit|", "AUC change", "LogLoss change"], lines, title)
    rows = [
        [
            name,
            report["disk_bytes"].get(name),
            report["table_bytes"].get(name),
            *(f"{each['p50_ms']:.2f} / {each['p99_ms']:.2f}" for each in times.values()),
        ]
        for name, times in report["latency"].items()
    ]
    batches = [f"{batch} rows, p50 / p99 ms" for batch in report["latency"]["fp32"]]
    output.print_table(["copy", "bytes on disk", "bytes of tables", *batches], rows)
