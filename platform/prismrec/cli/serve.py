"""`prismrec serve`: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismrec.cli import output
from prismrec.cli.options import is_verbose
from prismrec.cli.run import ModelName, Uri
from prismrec.config.train import DEFAULT_TRACKING_URI as DEFAULT_URI

EXAMPLE = "Example: prismrec serve models:/ctr@champion --port 8000"


def serve(  # noqa: PLR0913 - the options of a command are its arguments
    context: typer.Context,
    model: ModelName,
    uri: Uri = DEFAULT_URI,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="Port of the first replica; the others have the next.")
    ] = 8000,
    replicas: Annotated[
        int, typer.Option("--replicas", help="Processes, each with the whole model.")
    ] = 1,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="The token's file, readable by you only; made if absent."
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for no token; on loopback only.")
    ] = False,
    max_rows: Annotated[int, typer.Option("--max-rows", help="Most rows of a request.")] = 16_384,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Largest body of a request.")] = 8
    * 2**20,
    ignore_extra: Annotated[
        bool,
        typer.Option("--ignore-extra", help="Ignore columns that the model does not read."),
    ] = False,
    watch_s: Annotated[
        float, typer.Option("--watch-seconds", help="Time between two looks at the alias.")
    ] = 2.0,
) -> None:
    """Serve a model over HTTP, and follow its alias to new versions."""
    from prismrec.jobs.serve import ServeOptions, serve_model
    from prismrec.serving.http.requests import Limits

    options = ServeOptions(
        host=host,
        port=port,
        replicas=replicas,
        token_file=token_file,
        ask_token=not no_token,
        limits=Limits(max_bytes, max_rows, ignore_extra),
        watch_s=watch_s,
        verbose=is_verbose(context),
    )
    serve_model(model, uri, options, output.note)
