"""What commands print."""

from __future__ import annotations

import json
import math

import pytest

from prismrec.cli.output import print_json, print_table


def test_numbers_without_a_finite_value_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    nan, inf = math.nan, math.inf
    print_json({"a": nan, "b": [1.5, -inf, (inf, True)], "c": {"d": "NaN", "e": None, "f": 3}})
    text = capsys.readouterr().out
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "a": None,
        "b": [1.5, None, [None, True]],
        "c": {"d": "NaN", "e": None, "f": 3},
    }


@pytest.mark.parametrize("width", [80, 30])
def test_what_is_copied_from_a_table_is_on_one_line(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    job = "a-recipe-of-a-long-name-1a2b3c4d"
    row = [job, "a-recipe-of-a-long-name", "2026-11-29 10:00:00", "2026-11-29 10:20:00", 0]
    print_table(["job", "recipe", "started", "ended", "exit code"], [row], whole=["job"])
    lines = capsys.readouterr().out.splitlines()
    assert any(f" {job} " in line for line in lines)
    assert any("2026-" in line for line in lines)
    assert max(map(len, lines)) <= max(width, 76)
