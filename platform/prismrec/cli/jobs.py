"""`prismrec submit` and `prismrec jobs`: runs as jobs of a cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, Overrides, RecipePath, is_verbose
from prismrec.cli.run import Workers, changes_of, train_and_show

SUBMIT_EXAMPLE = (
    "Example: prismrec submit jobs/recipes/demo.toml --address http://127.0.0.1:8265 "
    "--dir /shared/me --follow"
)
RUN_EXAMPLE = "Example: prismrec run-job job.json"

app = typer.Typer(
    help="Jobs of a cluster: list, follow and stop them.",
    epilog="Example: prismrec jobs list",
    no_args_is_help=True,
)

Address = Annotated[
    str | None,
    typer.Option("--address", help="URL of the cluster's dashboard; that of this machine's node."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="An id as `prismrec jobs list` shows.")]


def submit(  # noqa: PLR0913 - the options of a command are its arguments
    recipe: RecipePath,
    overrides: Overrides = None,
    address: Address = None,
    directory: Annotated[
        str | None,
        typer.Option("--dir", help="Directory on the cluster where relative paths start."),
    ] = None,
    workers: Workers = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the recipe's newest run there.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it prints, and leave with its exit code.")
    ] = False,
) -> None:
    """Train as a job of a cluster, which goes on without this machine."""
    from prismrec.config import load
    from prismrec.jobs import submit as submission
    from prismrec.jobs.remote import Jobs

    loaded = load(recipe, changes_of(overrides, workers, None))
    jobs = Jobs(address)
    with output.waiting("submitting"):
        job = submission.submit(loaded, jobs, directory, resume=resume)
    if not follow:
        output.print_text(f"{job}\n")
        output.note(f"follow it with: prismrec jobs logs {job} --follow --address {jobs.address}")
        return
    output.note(f"job {job}; Ctrl-C leaves it running, `prismrec jobs stop` stops it")
    _end(jobs.follow(job, output.print_text))


@app.command("list", epilog="Example: prismrec jobs list --json")
def list_jobs(address: Address = None, as_json: AsJson = False) -> None:
    """Every job that was submitted to the cluster, the newest first."""
    from prismrec.jobs.remote import Jobs

    found = [each.to_json() for each in Jobs(address).list()]
    if as_json:
        output.print_json(found)
        return
    rows = [[j["job"], j["recipe"], j["status"], _clock(j["started"]), _clock(j["ended"]),
             j["exit_code"]] for j in found]  # fmt: skip
    columns = ["job", "recipe", "status", "started", "ended", "exit code"]
    output.print_table(columns, rows, whole=["job"])


@app.command("logs", epilog="Example: prismrec jobs logs demo-1a2b3c4d --follow")
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until it ends, and leave with its exit code.")
    ] = False,
) -> None:
    """What a job has printed."""
    from prismrec.jobs.remote import Jobs

    jobs = Jobs(address)
    if follow:
        _end(jobs.follow(job, output.print_text))
    else:
        output.print_text(jobs.logs(job))


@app.command("status", epilog="Example: prismrec jobs status demo-1a2b3c4d --json")
def status(job: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Whether a job runs, or how it ended."""
    from prismrec.jobs.remote import Jobs

    info = Jobs(address).info(job).to_json()
    if as_json:
        output.print_json(info)
    else:
        shown = {**info, "started": _clock(info["started"]), "ended": _clock(info["ended"])}
        output.print_table(["", job], [[k, v] for k, v in shown.items() if k != "job"])


@app.command("stop", epilog="Example: prismrec jobs stop demo-1a2b3c4d")
def stop(job: JobId, address: Address = None) -> None:
    """Ask a job to save a checkpoint and leave, and wait until it has."""
    from prismrec.jobs.remote import Jobs

    jobs = Jobs(address)
    with output.waiting("waiting for the job to save"):
        info = jobs.stop(job)
    last = [line for line in jobs.logs(job).splitlines() if line.strip()][-1:]
    output.note(f"{job} {info.status}: {last[0] if last else info.message}")


def run_job(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `prismrec submit` ships.")],
) -> None:
    """Run what was submitted; the cluster calls this on one of its nodes."""
    from prismrec.jobs.run import Options
    from prismrec.jobs.submit import read_job

    job = read_job(file)
    job.enter()
    train_and_show(job.recipe, Options(resume=job.resume, verbose=is_verbose(context)), True)


def _end(info: Any) -> None:
    if info.exit_code == 1 and info.message:
        output.note(info.message)
    if info.exit_code:
        raise typer.Exit(info.exit_code)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
