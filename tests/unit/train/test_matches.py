"""Reports of what a run started with."""

from __future__ import annotations

import pytest

from prismrec.config import UserError
from prismrec.train.matches import Match, Matches

MATCHES = Matches(
    "warm_start",
    "step-00000012",
    (
        Match("table", "user/wide", "user/set0", 30, 40, 60),
        Match("table", "tag/wide", "", 0, 8, 0, "left out", is_wanted=False),
        Match("table state", "user/wide/accumulator", "user/set0/accumulator", 30, 40, 60),
        Match("dense", "head.weight", "head.weight", 12, 12, 12),
        Match("dense", "head.bias", "", 0, 4, 0, "the other run has no head.bias"),
        Match("dense", "", "old.bias", 0, 0, 4, "not taken", is_wanted=False),
    ),
)


def test_shares_are_metrics() -> None:
    assert MATCHES.metrics() == {
        "warm_start/user/wide/share_of_rows": 0.75,
        "warm_start/user/wide/share_of_source": 0.5,
        "warm_start/tag/wide/share_of_rows": 0.0,
        "warm_start/dense/share_of_numbers": 0.75,
    }


def test_strict_names_what_is_missing_and_not_what_was_left_out() -> None:
    with pytest.raises(UserError) as error:
        MATCHES.refuse_partial("train.warm_start.strict")
    assert error.value.message == (
        "train.warm_start.strict: not everything has a match in step-00000012: user/wide (30 of "
        "40); user/wide/accumulator (30 of 40); head.bias (0 of 4, the other run has no head.bias); "
        'map the names, leave tables and sets out by "", or set strict = false'
    )
    Matches("warm_start", "", MATCHES.each[1:2]).refuse_partial("train.warm_start.strict")


def test_a_long_list_is_cut() -> None:
    many = tuple(Match("dense", f"w{i}", "", 0, 1, 0) for i in range(30))
    with pytest.raises(UserError, match="w19 .*; and 10 more; map"):
        Matches("warm_start", "x", many).refuse_partial("strict")


def test_the_report_reads_back() -> None:
    document = MATCHES.to_json()
    assert document["source"] == "step-00000012"
    assert Match(**document["matches"][2]) == MATCHES.each[2]
