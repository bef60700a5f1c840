"""Tracking URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.config.redact import without_password
from prismrec.tracking.uri import artifact_location, resolve_uri


def test_a_relative_file_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = resolve_uri("sqlite:///runs/mlflow.db")
    assert uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert (tmp_path / "runs").is_dir()
    assert resolve_uri(uri) == uri
    assert artifact_location(uri) == f"file://{tmp_path}/runs/mlartifacts"
    assert resolve_uri("sqlite:///m.db", tmp_path / "x") == f"sqlite:///{tmp_path}/x/m.db"


def test_servers_stay_as_they_are_and_keep_their_files() -> None:
    assert resolve_uri("http://host:5000") == "http://host:5000"
    assert artifact_location("http://host:5000") is None


@pytest.mark.parametrize("uri", ["mlflow.db", "ftp://me:pw@host/x", ""])
def test_what_is_no_server_is_told(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking.uri: '.*' is no tracking server") as caught:
        resolve_uri(uri)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/path?token=t", "https://host:5000/path"),
        ("s3://key@bucket/a@b.parquet", "s3://bucket/a@b.parquet"),
        ("postgresql+psycopg2://u:p@h/db", "postgresql+psycopg2://h/db"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("/data/a@b?c", "/data/a@b?c"),
    ],
)
def test_passwords_are_taken_out(text: str, shown: str) -> None:
    assert without_password(text) == shown
