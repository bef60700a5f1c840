"""The chapter on experts says what the functions under it find, with names."""

from __future__ import annotations

import json
import math

import pytest
import torch

from prismrec.analysis.decorrelation import look_at_experts, summed_over_pairs
from prismrec.analysis.report import decorrelation
from prismrec.analysis.report.decorrelation import decorrelation_chapter
from tests.unit.analysis.paired import SMALL, Told, make_subject, random_rows

ROWS = random_rows(200)
TASKS = ("like", "finish")
THREE = [{"name": name, "dim": 4} for name in ("like", "finish", "all")]
MMOE = {"name": "mmoe", "num_experts": 3, **SMALL}
STEM = {"name": "stem", "shared_experts": 1, "num_layers": 2, "gate_hidden": [5], **SMALL}


def test_numbers_of_a_mixture() -> None:
    subject, told = make_subject("mixed", MMOE, TASKS, ROWS), Told()
    chapter = decorrelation_chapter([subject], told)
    (found,) = look_at_experts(
        subject.model, (each.inputs for each in subject.samples()), ["only"], TASKS
    ).values()
    assert found.moments is not None
    assert found.gates is not None
    R = found.moments.correlation()
    plots = {plot.title: plot for plot in chapter.plots}
    rows = plots["Correlation of experts"].numbers.rows
    assert rows[1] == ("mixed", "only 1", "only 2", float(R[0, 1]), 200)
    sums = plots["Correlation of experts, all pairs together"].numbers.rows[0]
    assert sums[:3] == ("mixed", 3, summed_over_pairs(R))
    assert sums[3] == pytest.approx(summed_over_pairs(R) / 3)
    aligned = plots["Alignment of experts (CKA)"].numbers.rows
    assert aligned[5][3] == float(found.moments.alignment()[1, 2])
    norms = plots["Covariance of experts"].numbers.rows
    assert norms[2][3] == float(found.moments.covariance_norms()[0, 2])
    gates = plots["How tasks share experts out"].numbers.rows
    assert len(gates) == 6
    assert gates[4][:4] == ("mixed", "finish", "only 2", float(found.gates.shares[1, 1]))
    assert gates[4][4] == pytest.approx(float(found.gates.entropy[1]))
    most = max(float(R[pair]) for pair in ((0, 1), (0, 2), (1, 2)))
    assert f"mean |correlation| {most:.2f}" in chapter.summary[0]
    assert chapter.missing == []
    assert told.calls[-1] == ("experts of mixed", 200, 200)
    json.dumps([[plot.traces, plot.layout] for plot in chapter.plots], allow_nan=False)


def test_layers_and_models_side_by_side() -> None:
    subjects = [
        make_subject("stem", STEM, TASKS, ROWS, sets=THREE),
        make_subject("plain", {"name": "shared_bottom", **SMALL}, TASKS, ROWS),
        make_subject("one gate", {**MMOE, "name": "moe"}, TASKS, ROWS),
    ]
    chapter = decorrelation_chapter(subjects, Told())
    gates = chapter.plots[-1].numbers.rows
    readers = {title: [row[1] for row in gates if row[0] == title] for title, *_ in gates}
    assert list(dict.fromkeys(readers["stem, layer 1"])) == ["like", "finish", "shared stream"]
    assert list(dict.fromkeys(readers["stem, layer 2"])) == ["like", "finish"]
    assert set(readers["one gate"]) == {"all tasks"}
    experts = {row[1] for row in chapter.plots[0].numbers.rows if row[0] == "stem, layer 1"}
    assert experts == {"like", "finish", "all"}
    assert len(chapter.plots[0].traces) == 3
    assert [trace["yaxis"] for trace in chapter.plots[0].traces] == ["y", "y2", "y3"]
    (missing,) = chapter.missing
    assert missing.startswith("plain has no layer of two experts or more")
    assert decorrelation_chapter([subjects[1]], Told()).plots == []


def test_experts_that_one_task_alone_sees() -> None:
    model = {"name": "ple", "num_layers": 2, "shared_experts": 1, "specific_experts": 1, **SMALL}
    chapter = decorrelation_chapter([make_subject("ple", model, TASKS, ROWS)], Told())
    rows = [row for row in chapter.plots[-1].numbers.rows if row[0] == "ple, layer 1"]
    assert [row[2] for row in rows[:3]] == ["only 1 (like)", "only 2 (finish)", "only 3"]
    assert [row[3] == 0 for row in rows[:6]] == [False, True, False, True, False, False]
    gated = [each for each in chapter.summary if "gives most" in each or "about alike" in each]
    assert len(gated) == 5
    of_tasks = [each for each in gated if "shared stream gives" not in each]
    assert all(f"of at most {math.log(2):.2f} nats" in e or "the 2 experts" in e for e in of_tasks)


def test_gates_that_choose_nothing_and_readers_that_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decorrelation, "MOST_READERS", 1)
    monkeypatch.setattr(decorrelation, "MOST_TOLD", 1)
    subject = make_subject("mixed", MMOE, TASKS, ROWS)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if ".gate.scores" in name:
                parameter.zero_()
                if name.endswith("bias"):  # like: alike; finish: its third expert
                    parameter.copy_(torch.tensor([0.0, 0, 0, 0, 0, 3]))
    chapter = decorrelation_chapter([subject], Told())
    (told,) = [each for each in chapter.summary if "experts that" in each or "gives" in each]
    assert told.startswith("mixed: finish gives most to expert `only 3`, 0.91; entropy 0.")
    (trace,) = chapter.plots[-1].traces
    assert trace["y"] == ["like"]
    assert chapter.plots[-1].layout["annotations"][0]["text"] == "mixed, the first 1 of 2"
    assert len(chapter.plots[-1].numbers.rows) == 6
    monkeypatch.setattr(decorrelation, "MOST_TOLD", 2)
    told = decorrelation_chapter([subject], Told()).summary[-1]
    assert told == "mixed: like takes the 3 experts that it sees about alike."


def test_experts_that_say_the_same_and_units_that_never_fire() -> None:
    subject = make_subject("twins", MMOE, TASKS, ROWS)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if "experts.groups.0.projection" in name:
                parameter[2] = parameter[0]
                if name.endswith("bias"):
                    parameter[1] = -100.0
    chapter = decorrelation_chapter([subject], Told())
    rows = {row[1:3]: row[3] for row in chapter.plots[0].numbers.rows}
    assert rows["only 1", "only 3"] == pytest.approx(rows["only 1", "only 1"])
    assert rows["only 1", "only 2"] == 0
    assert "`only 1` and `only 3` say most alike" in chapter.summary[0]
    assert "6 of 6 columns of expert `only 2` never vary" in chapter.summary[1]
    aligned = {row[1:3]: row[3] for row in chapter.plots[2].numbers.rows}
    assert aligned["only 1", "only 3"] == pytest.approx(1)


def test_gates_without_a_distribution_have_no_entropy() -> None:
    model = {"name": "hetero_me", "gate": "sum", **SMALL}
    subject = make_subject("sum", model, TASKS, ROWS)
    chapter = decorrelation_chapter([subject], Told())
    assert [row[3:5] for row in chapter.plots[-1].numbers.rows] == [(1.0, None)] * 4
    assert not any("entropy" in sentence for sentence in chapter.summary)


def test_rows_and_columns_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decorrelation, "ROWS", 100)
    monkeypatch.setattr("prismrec.analysis.decorrelation.MOST_COLUMNS", 9)
    subject, told = make_subject("mixed", MMOE, TASKS, ROWS), Told()
    chapter = decorrelation_chapter([subject], told)
    assert chapter.plots[0].numbers.rows[0][-1] == 128  # two batches of 64
    assert told.calls == [("experts of mixed", 64, 100), ("experts of mixed", 100, 100)]
    (missing,) = chapter.missing
    assert "the first by 3 of 6" in missing
    assert f"{math.sqrt(2 / math.pi / 128):.3f} over 128 rows" in chapter.plots[0].shows
