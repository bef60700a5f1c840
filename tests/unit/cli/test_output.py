"""What commands print."""

from __future__ import annotations

import json
import math

import pytest

from prismrec.cli.output import print_json


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
