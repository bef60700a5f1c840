"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, such as jobs/recipes/NAME.toml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[section.key=value]...",
        help="Values that go before those of the recipe, such as train.steps=100.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]


def is_verbose(context: typer.Context) -> bool:
    """Whether `--verbose` stands before the command."""
    return bool(getattr(context.obj, "verbose", False))
