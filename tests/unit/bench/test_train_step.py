"""The compared loops are the same model, and the numbers are put together as they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import prismrec
from benchmarks.channel import Program
from benchmarks.plain import Dense
from benchmarks.train_step import _summary, goal_of, markdown
from prismrec.cli import bench
from prismrec.config import UserError
from prismrec.config.models.single import DCNv2
from prismrec.models.inputs import Inputs
from prismrec.models.mixture import Fields, RankingModel
from prismrec.models.zoo import build_model


def _pair() -> tuple[RankingModel, Dense]:
    """Our model and the hand-written one with the same weights."""
    torch.manual_seed(0)
    section = DCNv2(name="dcnv2", hidden=(6, 5, 4), norm="none")
    ours = build_model(section, Fields(3, 2, set_dims=(4,), num_tasks=1, set_fields=(3,)))
    assert isinstance(ours, RankingModel)
    plain = Dense(3, 2, 4, (6, 5, 4))
    weights = iter(p.detach() for name, p in ours.named_parameters() if "branches" in name)
    with torch.no_grad():
        ours.first_order.bias.fill_(0.3)
        plain.head.bias.copy_(ours.first_order.bias)
        plain.numbers.copy_(ours.numeric["0"].weight)
        for layer in [*plain.cross, *plain.deep]:
            layer.weight.copy_(next(weights))
            layer.bias.copy_(next(weights))
        plain.head.weight.copy_(next(weights))
    assert next(weights, None) is None
    return ours, plain


def test_the_hand_written_model_is_ours() -> None:
    ours, plain = _pair()
    vectors, dense = torch.randn(7, 3, 4), torch.randn(7, 2)
    logits, losses = ours(Inputs([vectors], None, dense))
    assert losses == {}
    torch.testing.assert_close(plain(vectors.flatten(1), dense), logits)


def test_ratios_are_taken_pair_by_pair() -> None:
    summary = _summary([30.0, 20.0, 80.0], [10.0, 10.0, 20.0])
    assert summary["ms_per_step"] == 30.0
    assert summary["over_ours"] == 3.0
    assert summary["over_ours_range"] == [2.0, 4.0]


def test_the_page_says_which_goals_are_met() -> None:
    programs = {
        "ours": _summary([10.0], [10.0]) | {"cpu_ms_per_step": 18.0},
        "fuxictr": _summary([31.0], [10.0]) | {"cpu_ms_per_step": 60.0},
    }
    memory = {"before_bytes": 0, "peak_bytes": 3 << 30, "planner_bytes": 2 << 30, "table_bytes": 0}
    case = {
        "table_rows": 400_000,
        "precision": "fp32",
        "programs": programs,
        "memory": memory,
    }
    assert goal_of("fuxictr", case) == 3.2
    facts = {
        "processor": "P",
        "cores": 2,
        "flags": ["avx2"],
        "memory_gib": 4.0,
        "python": "3.11",
        "versions": {"torch": "2"},
        "commit": "abc",
    }
    page = markdown({"command": "c", "machine": facts, "pairs": 1, "steps": 2, "cases": [case]})
    assert (
        "| fuxictr, beside ours fp32 | 31.0 | 31.0-31.0 | 60.0 | 3.10 | 3.10-3.10 | 3.2 no |"
        in page
    )
    assert "| 400,000 | fp32 | 0.00 | 3.00 | 3.00 | 2.00 | 0.00 |" in page


def test_a_measured_program_answers_until_it_is_closed(tmp_path: Path) -> None:
    code = (
        "from benchmarks.channel import Channel\n"
        "done = []\n"
        "channel = Channel()\n"
        "print('chatter')\n"
        "channel.serve(done.append, steps=3, warm_up=1)\n"
        "assert done == [1, 3, 3], done\n"
    )
    program = Program("p", [sys.executable, "-c", code], 1, tmp_path / "p.log")
    assert program.facts == {"ready": True}
    for seconds, cpu in (program.window(), program.window()):
        assert 0 <= cpu < 1
        assert 0 <= seconds < 1
    assert program.peak_bytes > 1 << 20
    program.close()
    assert (tmp_path / "p.log").read_text() == "chatter\n"


def test_a_program_that_dies_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such table')"]
    with pytest.raises(RuntimeError, match="p ended early.*no such table"):
        Program("p", command, 1, tmp_path / "p.log")


def test_benchmarks_need_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prismrec, "__file__", str(tmp_path / "a" / "b" / "__init__.py"))
    with pytest.raises(UserError, match="not part of the installed package; clone"):
        bench.ingest()
