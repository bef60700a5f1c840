"""Credentials taken out of what is stored, logged or shown."""

from __future__ import annotations

import re
from typing import Any


def without_password(text: str) -> str:
    """A URI or path with user, password and query taken out, fit to be logged.

    >>> without_password("s3://key:secret@bucket/rows?token=1")
    's3://bucket/rows'
    >>> without_password("sqlite:////runs/mlflow.db")
    'sqlite:////runs/mlflow.db'
    >>> without_password("out/demo/data")
    'out/demo/data'
    """
    if "://" not in text:
        return text
    scheme, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".partition("?")[0]


def without_passwords(error: Exception) -> str:
    """The first line of an error's message, with user, password and query out of every URL in it.

    >>> without_passwords(OSError("refused: https://me:p@ss@host/x?token=abc (twice)"))
    'refused: https://host/x (twice)'
    """
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"\w[\w+.-]*://\S+", lambda url: without_password(url[0]), first)[:300]


def redacted(tree: Any) -> Any:
    """A tree of dictionaries and lists with `without_password` applied to every string."""
    if isinstance(tree, dict):
        return {key: redacted(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return without_password(tree) if isinstance(tree, str) else tree


def has_credentials(text: str) -> bool:
    """Whether a URI holds a password before its host, or a query that looks like a key.

    >>> has_credentials("https://me:secret@host/x"), has_credentials("s3://b/rows?session_token=1")
    (True, True)
    >>> has_credentials("https://me.blob/x?sv=1&sig=Ab%3D"), has_credentials("mssql://host/x?pwd=a")
    (True, True)
    >>> has_credentials("postgresql://me@host/runs"), has_credentials("s3://b/rows?design=eu")
    (False, False)
    >>> has_credentials("out/a:b@c")
    False
    """
    if "://" not in text:
        return False
    place, _, query = text.partition("://")[2].partition("?")
    user, at, _ = place.partition("/")[0].rpartition("@")
    named = re.search(
        r"(^|&)([^=&]*(token|secret|passw|pwd|key|signature|credential)[^=&]*|sig)=", query, re.I
    )
    return bool(at and ":" in user) or named is not None
