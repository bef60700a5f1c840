"""`prismrec data semantic-ids`: codes of items from vectors of what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson

EXAMPLE = "Example: prismrec data semantic-ids item_vectors.npz --out out/sid.parquet --codes 64"


def semantic_ids(  # noqa: PLR0913 - the options of a command are its arguments
    vectors: Annotated[
        Path,
        typer.Argument(
            metavar="VECTORS",
            help="NumPy (.npz with ids and vectors, .npy), or Parquet with columns id and vector.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Parquet file to write; codebooks go beside it, as .safetensors.")
    ],
    method: Annotated[
        Literal["rq_kmeans", "rq_vae"] | None,
        typer.Option(help="How codebooks are fitted.", show_default="rq_kmeans"),
    ] = None,
    levels: Annotated[
        int | None, typer.Option(help="Codes of an item.", min=1, show_default="3")
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option(
            help="Codes of a level to choose from: a number, or one for each level as 64,128,256.",
            show_default="256",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything drawn.", min=0, show_default="1")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            help="Vectors to fit on.", min=1, show_default="256 a code; rq_vae: a million"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="rq_vae: training steps.", min=1, show_default="2000")
    ] = None,
    codebooks: Annotated[
        Path | None,
        typer.Option(help="In the place of all these: code with a .safetensors file of before."),
    ] = None,
    disambiguate: Annotated[
        bool, typer.Option("--disambiguate", help="Add a column that tells equal codes apart.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit codes of items, coarse to fine, on their vectors, and write them for use as features."""
    given = (method, levels, codes, seed is not None, sample, steps)
    if codebooks is not None and any(given):
        from prismrec.config import UserError

        raise UserError("--codebooks says how to code; leave out the options of a fit")
    fit = _fit(method, levels, codes, {"seed": seed, "sample": sample}, steps)
    report = _code(vectors, out, codebooks or fit, disambiguate, overwrite)
    if as_json:
        output.print_json(report)
    else:
        _print(report)


def _code(
    vectors: Path, out: Path, how: Any, disambiguate: bool, overwrite: bool
) -> dict[str, Any]:
    """Fit codebooks, or read those of a file, and code the items, with a bar for each."""
    from prismrec.data.semantic.codebooks import Codebooks
    from prismrec.data.semantic.fit import fit_codebooks
    from prismrec.jobs.semantic_ids import open_for, write_semantic_ids

    opened = open_for(vectors, out, overwrite=overwrite)
    if isinstance(how, Path):
        fitted = Codebooks.load(how)
    else:
        unit = "steps" if how.method == "rq_vae" else "levels"
        with output.progress("Fitting", unit) as advance:
            fitted = fit_codebooks(opened, how, advance)
    with output.progress("Coding", "items") as advance:
        return write_semantic_ids(opened, fitted, out, advance, disambiguate=disambiguate)


def _fit(
    method: Literal["rq_kmeans", "rq_vae"] | None,
    levels: int | None,
    codes: str | None,
    others: dict[str, Any],
    steps: int | None,
) -> Any:
    """How to fit, from the options that were given."""
    from prismrec.config import UserError
    from prismrec.data.semantic.fit import Fit
    from prismrec.data.semantic.rq_vae import VaeTraining

    if steps is not None and method != "rq_vae":
        raise UserError("--steps: is for --method rq_vae; rq_kmeans stops by itself")
    try:
        numbers = [int(number) for number in (codes or "256").split(",")]
    except ValueError:
        raise UserError(f"--codes: one number, or one for each level, got '{codes}'") from None
    wanted = levels or (len(numbers) if len(numbers) > 1 else 3)
    if len(numbers) not in (1, wanted):
        raise UserError(f"--codes: {len(numbers)} numbers for {wanted} levels; give one for each")
    sizes = tuple(numbers if len(numbers) > 1 else numbers * wanted)
    given = {name: value for name, value in others.items() if value is not None}
    training = VaeTraining() if steps is None else VaeTraining(steps=steps)
    return Fit(method=method or "rq_kmeans", sizes=sizes, training=training, **given)


def _print(report: dict[str, Any]) -> None:
    rows = [
        (
            each["level"],
            each["codes"],
            each["used"],
            each["dead"],
            each["perplexity"],
            each["residual"],
            "" if each["cosine"] is None else each["cosine"],
        )
        for each in report["levels"]
    ]
    columns = ("level", "codes", "used", "dead", "perplexity", "residual", "cosine")
    output.print_table(columns, rows, f"{report['method']} of {report['items']:,} items")
    found = report["collisions"]
    output.note(
        f"{found['tuples']:,} different tuples of codes, {found['items_per_tuple']:.2f} items in one, "
        f"{found['largest']:,} at most; {found['collided']:.2%} of the items share theirs"
    )
    output.note(f"vectors are rebuilt with {report['error']:.2%} of their square left over")
    output.note(f"codes are in {report['out']}, codebooks in {report['codebooks']}")
