"""Where the tracking server is, and how quiet MLflow is about it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from prismrec.config import UserError
from prismrec.config.redact import without_password

ARTIFACTS = "mlartifacts"
"""Folder beside an SQLite file that holds the files of its runs."""

_SQLITE = "sqlite:///"
_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def resolve_uri(uri: str, base: Path | None = None) -> str:
    """The tracking URI with a relative SQLite path made absolute and its folder created.

    Args:
        uri: the recipe's `tracking.uri`.
        base: directory that a relative path starts from; the working directory if not given.

    Raises:
        UserError: the URI is of no known kind.
    """
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    if scheme not in _SCHEMES:
        raise UserError(
            f"tracking.uri: '{without_password(uri)}' is no tracking server; give the path of an "
            "SQLite file as 'sqlite:///mlflow.db' or the address of a server as 'http://host:5000'"
        )
    if not uri.startswith(_SQLITE):
        return uri
    path = (base or Path.cwd()) / uri.removeprefix(_SQLITE)
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{_SQLITE}{path.resolve()}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI; None for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_location(uri: str) -> str | None:
    """Where runs of an SQLite file keep their files; None leaves it to the server."""
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).parent / ARTIFACTS).as_uri()


def quiet_mlflow() -> None:
    """Keep MLflow and its migrations to warnings, and let it report its use to nobody.

    Settings that the user has made in the environment stand, but for one that would show passwords.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Whatever the user has set: what it prints is the tracking URI with its password.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)
