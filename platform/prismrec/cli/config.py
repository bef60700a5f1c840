"""`prismrec config`: what a recipe says once everything is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, Overrides

EXAMPLE = "Example: prismrec config jobs/recipes/kuairand_me_dcnv2.toml train.steps=100"


def config(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe; not needed with --docs.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    docs: Annotated[
        bool, typer.Option("--docs", help="Print the page that lists every key of a recipe.")
    ] = False,
) -> None:
    """Print a recipe with every value filled in, or every problem with it at once."""
    from prismrec.config import UserError, dump, load
    from prismrec.config.document import recipe_page, to_toml

    if docs:
        output.print_text(recipe_page())
        return
    if recipe is None:
        raise UserError("RECIPE is missing: name a TOML file, or ask for the keys with --docs")
    resolved = load(recipe, overrides or ())
    if as_json:
        output.print_json(dump(resolved))
    else:
        output.print_text(to_toml(resolved))
