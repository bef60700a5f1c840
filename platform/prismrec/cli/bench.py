"""`prismrec bench` and `prismrec profile`: how fast, and where the time goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import prismrec
from prismrec.cli import output
from prismrec.cli.options import AsJson, Overrides, RecipePath, is_verbose
from prismrec.config.errors import UserError

INGEST_EXAMPLE = "Example: prismrec bench ingest --rows 3200000"
TRAIN_EXAMPLE = "Example: prismrec bench train --rows 100000 --rows 400000 --pairs 5"
EMBEDDINGS_EXAMPLE = "Example: prismrec bench embeddings --sets 4 --width 16 --ranks 1 --ranks 2"
PROFILE_EXAMPLE = "Example: prismrec profile jobs/recipes/demo.toml train.precision=bf16 --steps 20"

app = typer.Typer(
    help="Measure this machine; the benchmarks are part of a checkout, not of the package.",
    epilog=TRAIN_EXAMPLE,
    no_args_is_help=True,
)


@app.command("ingest", epilog=INGEST_EXAMPLE)
def ingest(
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the data set.")] = 6_400_000,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each reader.")] = 7,
    with_ray: Annotated[bool, typer.Option("--ray", help="Also Ray Data's batches.")] = False,
    with_petastorm: Annotated[
        bool, typer.Option("--petastorm", help="Also petastorm, from its own environment.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write NAME.json and NAME.md.", metavar="NAME")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rows per second from Parquet to batches, beside a plain Arrow scan of the same columns."""
    arguments = ["--rows", str(rows), "--repeats", str(repeats)]
    flags = {"--ray": with_ray, "--petastorm": with_petastorm, "--json": as_json}
    arguments += [flag for flag, is_set in flags.items() if is_set]
    if out is not None:
        arguments += ["--out", str(out.absolute())]
    _run("ingest", arguments)


@app.command("train", epilog=TRAIN_EXAMPLE)
def train(
    rows: Annotated[
        list[int] | None,
        typer.Option("--rows", min=2, help="Rows of each table; may be given several times."),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Windows of each program.")] = 5,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of a window.")] = 10,
    with_fuxictr: Annotated[
        bool, typer.Option("--fuxictr/--no-fuxictr", help="Also FuxiCTR, from its own environment.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write NAME.json and NAME.md.", metavar="NAME")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Milliseconds of a training step, beside a hand-written TorchRec loop and FuxiCTR."""
    arguments = ["--pairs", str(pairs), "--steps", str(steps)]
    if rows:
        arguments += ["--rows", *map(str, rows)]
    if not with_fuxictr:
        arguments.append("--no-fuxictr")
    if out is not None:
        arguments += ["--out", str(out.absolute())]
    _run("train_step", [*arguments, *(["--json"] if as_json else [])])


@app.command("embeddings", epilog=EMBEDDINGS_EXAMPLE)
def embeddings(
    sets: Annotated[
        list[int] | None,
        typer.Option("--sets", min=1, help="Number of sets; may be given several times."),
    ] = None,
    widths: Annotated[
        list[int] | None, typer.Option("--width", min=4, help="Width of a set; several times.")
    ] = None,
    ranks: Annotated[
        list[int] | None, typer.Option("--ranks", min=1, max=2, help="1, 2 or both.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write NAME.json, NAME.md and NAME.svg.", metavar="NAME"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Milliseconds of a step of the tables, beside FBGEMM's kernel, TorchRec and PyTorch."""
    arguments = ["--device", device]
    for flag, numbers in (("--counts", sets), ("--widths", widths), ("--ranks", ranks)):
        arguments += [flag, *map(str, numbers)] if numbers else []
    if out is not None:
        arguments += ["--out", str(out.absolute())]
    _run("embeddings", [*arguments, *(["--json"] if as_json else [])])


def profile(
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to measure.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory of the traces; out/profile/NAME if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trace some steps and show where their time goes, per worker, on processes of this machine."""
    from prismrec.config import load
    from prismrec.jobs.profile import profile_recipe

    chosen = load(recipe, overrides or [])
    directory = out or Path("out/profile") / chosen.name
    document = profile_recipe(chosen, steps, directory, verbose=is_verbose(context))
    if as_json:
        output.print_json(document)
        return
    ranks = range(len(document["step"]))
    mean = sum(document["step"]) / len(ranks)
    rows = []
    for part, times in document["parts"].items():
        slowest = document["slowest"][part]
        cells = [f"{time:.2f}{_mark(rank, slowest, times)}" for rank, time in enumerate(times)]
        rows.append([part, *cells, f"{sum(times) / len(ranks) / mean:.1%}"])
    rows.append(["step", *(f"{time:.2f}" for time in document["step"]), "100.0%"])
    heading = ["part", *(f"rank {rank}, ms" for rank in ranks), "share"]
    output.print_table(heading, rows, title=f"a step in {document['precision']}")
    output.note(f"examples/s  {document['examples_per_second']:,} with the profiler on")
    output.note(f"traces      {directory} (open them in https://ui.perfetto.dev)")


def _mark(rank: int, slowest: int, times: list[float]) -> str:
    """A star behind the slowest rank's time, where ranks can differ."""
    return " *" if len(times) > 1 and rank == slowest and times[rank] > 0 else ""


def _run(name: str, arguments: list[str]) -> None:
    """Run a benchmark of the checkout in a process of its own.

    Raises:
        UserError: the package is not run from a checkout.
        typer.Exit: the benchmark failed; it has said why.
    """
    root = Path(prismrec.__file__).resolve().parents[2]
    if not any((root / "benchmarks" / each).exists() for each in (f"{name}.py", name)):
        raise UserError(
            "prismrec bench: the benchmarks are not part of the installed package; clone the "
            "repository, run `make setup` there and use its .venv/bin/prismrec"
        )
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    code = subprocess.run(command, cwd=root, check=False).returncode
    if code:
        raise typer.Exit(code)
