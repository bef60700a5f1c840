"""The list of commands, and what happens when one fails.

A mistake of the user's costs one sentence and exit code 2, a failure of ours one line and exit code 1,
Ctrl-C exit code 130; `--verbose` adds the traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

import prismrec
from prismrec.cli import (
    analyze,
    bench,
    cluster,
    config,
    data,
    doctor,
    explore,
    jobs,
    models,
    output,
    plan,
    run,
    serve,
    tables,
    tune,
    zoo,
)
from prismrec.config.errors import UserError
from prismrec.config.external import find_modules_in


@dataclass
class Session:
    """What the options before the command say.

    Args:
        verbose: show what libraries print, and tracebacks.
    """

    verbose: bool = False


app = typer.Typer(
    help="Train ads and recommendation ranking models with sharded multi-embeddings.",
    epilog="Example: prismrec config jobs/recipes/kuairand_me_dcnv2.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)
app.add_typer(data.app, name="data")
app.command("config", epilog=config.EXAMPLE)(config.config)
app.command("plan", epilog=plan.EXAMPLE)(plan.plan)
app.command("zoo", epilog=zoo.EXAMPLE)(zoo.zoo)
app.command("train", epilog=run.TRAIN_EXAMPLE)(run.train)
app.command("online", epilog=run.ONLINE_EXAMPLE)(run.online)
app.command("tune", epilog=tune.EXAMPLE)(tune.tune)
app.command("evaluate", epilog=run.EVALUATE_EXAMPLE)(run.evaluate)
app.command("predict", epilog=run.PREDICT_EXAMPLE)(run.predict)
app.command("serve", epilog=serve.EXAMPLE)(serve.serve)
app.add_typer(explore.app, name="explore")
app.command("demo", epilog=run.DEMO_EXAMPLE)(run.demo)
app.command("analyze", epilog=analyze.EXAMPLE)(analyze.analyze)
app.add_typer(cluster.app, name="cluster")
app.command("submit", epilog=jobs.SUBMIT_EXAMPLE)(jobs.submit)
app.add_typer(jobs.app, name="jobs")
app.command("run-job", epilog=jobs.RUN_EXAMPLE, hidden=True)(jobs.run_job)
app.add_typer(models.app, name="models")
app.add_typer(tables.app, name="tables")
app.command("profile", epilog=bench.PROFILE_EXAMPLE)(bench.profile)
app.add_typer(bench.app, name="bench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code.

    Args:
        arguments: what follows `prismrec`; those of this process if not given.
    """
    session = Session()
    try:
        app(arguments, prog_name="prismrec", obj=session)
    except UserError as error:
        output.report_failure(error, error.message, session.verbose)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last place where a failure can become a line
        hint = "" if session.verbose else " (prismrec --verbose COMMAND shows where)"
        message = f"{type(error).__name__}: {error}{hint}"
        output.report_failure(error, message, session.verbose)
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.print_text(f"prismrec {prismrec.__version__}\n")
        raise typer.Exit


@app.callback()
def _session(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what libraries print, and tracebacks.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    context.ensure_object(Session).verbose = verbose
    output.quiet_libraries(verbose)
    find_modules_in(os.getcwd())
