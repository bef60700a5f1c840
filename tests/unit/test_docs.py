"""Pages that repeat what a file says must agree with it."""

from __future__ import annotations

import re

from tests.helpers.source_tree import ROOT


def test_dependencies_page_has_a_line_for_every_requirement() -> None:
    required = {
        re.split(r"[\[<>=! ]", line)[0]
        for path in (ROOT / "requirements").glob("*.txt")
        for line in path.read_text().splitlines()
        if line.strip() and not line.startswith(("#", "-"))
    }
    page = (ROOT / "docs/dependencies.md").read_text()
    described = re.findall(r"^\| `([\w.-]+)` \| \S.* \| \S.* \|$", page, flags=re.MULTILINE)
    assert sorted(described) == sorted(required)
