"""The bearer token that a server asks for: kept in a file of its owner's, compared by its hash."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from prismrec.config import UserError

SHORTEST = 20
"""Fewest characters of a token; a generated one has 43."""


def token_digest(path: Path) -> bytes:
    """SHA-256 of the token in a file, which is made with a new token where there is none.

    The file is readable by its owner only, and made so; the token itself goes nowhere else.

    Args:
        path: a file that holds the token and nothing else but white space around it.

    Raises:
        UserError: the file can be read by others, or holds no token of `SHORTEST` characters.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{path}: the token cannot be kept there ({error.strerror})") from None
    else:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return _digest_of(path)


def _digest_of(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: not readable as a file that holds a token") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            f"{path}: others may read or write this file (mode {stat.S_IMODE(mode):04o}); "
            f"run `chmod 600 {path}`"
        )
    token = text.strip()
    if len(token) < SHORTEST or not token.isascii() or len(token.split()) != 1:
        raise UserError(
            f"{path}: holds no token of at least {SHORTEST} ASCII characters without spaces; "
            "write one, or remove the file and one is made"
        )
    return hashlib.sha256(token.encode()).digest()


def is_authorized(header: bytes | None, digest: bytes) -> bool:
    """Whether an `Authorization` header carries the token with this SHA-256.

    >>> wanted = hashlib.sha256(b"a-token-of-someone").digest()
    >>> [is_authorized(each, wanted) for each in (b"Bearer a-token-of-someone", b"Bearer b", None)]
    [True, False, False]
    """
    kind, _, token = (header or b"").partition(b" ")
    given = hashlib.sha256(token.strip()).digest()
    return hmac.compare_digest(given, digest) and kind.lower() == b"bearer"
