"""The files of a result: its numbers and its page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(out: Path | None, document: Mapping[str, Any], page: str) -> None:
    """Write OUT.json and OUT.md; nothing without OUT."""
    if out is not None:
        out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        out.with_suffix(".md").write_text(page)
