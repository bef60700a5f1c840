"""The token: made once for its owner, refused where others could read it."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.serving.http.token import is_authorized, token_digest


def test_a_token_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "serve.token"
    digest = token_digest(path)
    token = path.read_text().strip()
    assert len(token) == 43
    assert digest == hashlib.sha256(token.encode()).digest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_digest(path) == digest
    assert is_authorized(f"Bearer {token}".encode(), digest)
    assert not is_authorized(f"Bearer {token}x".encode(), digest)
    assert not is_authorized(token.encode(), digest)
    assert token_digest(tmp_path / "other") != digest


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("x" * 30, 0o640, r"others may read or write this file \(mode 0640\); run `chmod 600"),
        ("short", 0o600, r"holds no token of at least 20 ASCII characters"),
        ("two words that are long enough", 0o600, r"holds no token"),
        ("", 0o600, r"holds no token"),
        ("é" * 30, 0o600, r"holds no token"),
    ],
)
def test_what_is_no_token(tmp_path: Path, text: str, mode: int, expected: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(UserError, match=expected):
        token_digest(path)


def test_places_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not readable as a file that holds a token"):
        token_digest(tmp_path)
