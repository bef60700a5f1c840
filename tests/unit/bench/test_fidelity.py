"""The harness of the fidelity studies: numbers over seeds, what is kept, and a quick look at a study."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.fidelity import command, training
from benchmarks.fidelity.command import main
from benchmarks.fidelity.page import MARK, Results, kept_text, table
from benchmarks.fidelity.probes import abundance
from benchmarks.fidelity.study import (
    HERE,
    Column,
    Panel,
    Prepared,
    Study,
    Variant,
    World,
    digest,
    recipe_of,
)
from prismrec.config import UserError, dump
from prismrec.config.embedding import TableOptimizer
from prismrec.data.world_truth import WorldOptions
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.shards import LocalShard
from prismrec.train.loop import Outcome

SMALL = ("model.hidden=[4]", "embedding.dim=4")
STUDY = Study(
    name="small",
    title="Small",
    setup="Two widths.",
    claim="None.",
    variants=[
        Variant("narrow", SMALL, at=1.0, group="a"),
        Variant("wide", (*SMALL, "embedding.dim=8"), at=2.0, group="b"),
    ],
    columns=[
        Column("test/like/auc", "AUC"),
        Column("test/like/auc", "gain", 2, over="a", scale=100),
        Column("abundance/joint", "abundance"),
        Column("best/like/auc", "best"),
    ],
    panels=[Panel("AUC")],
    across="width",
    probe=abundance,
)
STUDIES = sorted(path.stem for path in HERE.glob("*.py") if "\nSTUDY = " in path.read_text())


def _run(auc: float) -> dict[str, Any]:
    return {"metrics": {"test/like/auc": auc}, "seconds": 1.0, "commit": "c"}


def test_a_cell_is_mean_and_spread_and_a_gain_is_over_its_group_at_the_same_place() -> None:
    at_one = [Variant("a1", group="a", at=1), Variant("b1", group="b", at=1)]
    at_two = [Variant("a2", group="a", at=2), Variant("b2", group="b", at=2)]
    study = replace(STUDY, variants=[*at_one, *at_two])
    runs = {
        "a1": [_run(0.70), _run(0.72)],
        "b1": [_run(0.75), _run(0.77)],
        "a2": [_run(0.50)],
        "b2": [_run(0.49)],
    }
    assert table(Results(study, runs))[2:] == [
        "| a1 | 0.7100 ± 0.0141 |  |  |  |",
        "| b1 | 0.7600 ± 0.0141 | +5.00 ± 1.41 |  |  |",
        "| a2 | 0.5000 |  |  |  |",
        "| b2 | 0.4900 | -1.00 |  |  |",
    ]


def test_a_study_refuses_names_that_could_not_be_told_apart() -> None:
    with pytest.raises(ValueError, match="variants named twice: x"):
        replace(STUDY, variants=[Variant("x"), Variant("x")])
    with pytest.raises(ValueError, match="panels of no column: y"):
        replace(STUDY, panels=[Panel("y")])


def test_a_run_is_known_by_all_of_its_recipe_and_rows_but_not_by_names() -> None:
    variant, here = STUDY.variants[0], Path("anywhere")

    def known(seed: int = 1, *changes: str, data: World | None = None) -> str:
        recipe = recipe_of(STUDY, replace(variant, changes=(*SMALL, *changes)), seed, here)
        return digest(recipe, data or World(), here)

    assert known() == known(1, "name='other'", "out='elsewhere'")
    others = [
        known(2),
        known(1, "embedding.init_std=0.1"),
        known(1, "train.optimizer.eps=1e-7"),
        known(data=World(seed=2)),
        known(data=World(options=WorldOptions(opposed_share=0.5))),
    ]
    assert len({known(), *others}) == 6


def test_abundance_counts_the_directions_of_sets_side_by_side_over_rows_that_moved() -> None:
    rows = 64 + 3
    first, second = torch.zeros(rows, 4), torch.zeros(rows, 4)
    first[:64, 0] = 1.0  # one direction
    second[:32, 1], second[32:64, 2] = 1.0, 1.0  # two, of which the first sees no difference
    first[64:] = torch.randn(3, 4)  # never trained
    moved = (torch.arange(rows) < 64).float()
    sets = (EmbeddingSet("s0", 4, 0.1), EmbeddingSet("s1", 4, 0.1))
    the_table = TableSpec("t", rows, ("t",), "sum", "auto", "auto", TableOptimizer())
    spec = EmbeddingSpec(sets, (the_table,), ("t",), "fp32")
    shards = [
        LocalShard("t", name, rows, 4, 0, 0, weight, {"accumulator": moved})
        for name, weight in (("s0", first), ("s1", second))
    ]
    found = abundance(shards, spec, 1)
    # Side by side: 32 rows (1, 1, 0) and 32 rows (1, 0, 1). Gram 32 [[2,1,1],[1,1,0],[1,0,1]] has
    # eigenvalues 32 {3, 1, 0}.
    assert found["abundance/t"] == found["abundance/joint"]
    assert found["abundance/joint"] == pytest.approx(1 + 3**-0.5, abs=1e-6)
    assert found["abundance/set"] == pytest.approx((1 + 2) / 2)
    assert found["abundance/share"] == pytest.approx((1 + 3**-0.5) / 8, abs=1e-6)


def test_a_quick_look_trains_writes_a_page_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--quick", "--out", str(tmp_path), "--scratch", str(tmp_path / "worlds")]
    main(STUDY, [*given, "--limit", "1"])
    page = tmp_path / "fidelity_small.md"
    assert "1 runs of 2" in page.read_text()
    page.write_text(page.read_text() + "\nFound: nothing.\n")
    main(STUDY, given)
    text = page.read_text()
    assert "2 runs of 2" in text
    assert text.endswith(f"{MARK}\nFound: nothing.\n")
    assert kept_text(page).strip() == "Found: nothing."
    ElementTree.parse(tmp_path / "fidelity_small.svg")
    runs = json.loads((tmp_path / "fidelity_small.json").read_text())["runs"].values()
    assert [run["variant"] for run in runs] == ["narrow", "wide"]
    for run in runs:
        metrics = run["metrics"]
        assert run["steps"] == 2
        assert 0.2 < metrics["test/like/auc"] < metrics["best/like/auc"] < 1
        assert {"test/finish/auc", "valid/like/auc", "parameters/dense"} <= metrics.keys()
        assert 1 <= metrics["abundance/joint"] <= 8
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("trained twice"))
    main(STUDY, given)
    assert page.read_text() == text
    capsys.readouterr()


def test_a_run_that_a_signal_ended_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--quick", "--out", str(tmp_path), "--scratch", str(tmp_path / "worlds")]
    done = training.train

    def stopped(*arguments: Any) -> Outcome:
        return replace(done(*arguments), stopped_by="SIGTERM")

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(SystemExit, match="small: stopped by SIGTERM; the run is not kept"):
        main(STUDY, given)
    assert not (tmp_path / "fidelity_small.json").exists()


def test_a_data_set_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prismrec data prepare kuairand --out"):
        Prepared("kuairand").path(tmp_path)


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_every_study_is_a_recipe_of_its_own(name: str) -> None:
    study: Study = importlib.import_module(f"benchmarks.fidelity.{name}").STUDY
    assert study.name == name
    known = [
        (json.dumps(dump(recipe_of(study, variant, 1))), variant.data) for variant in study.variants
    ]
    assert len(set(known)) == len(known)
    assert len({variant.line for variant in study.variants}) > 1
    assert study.claim
    assert study.setup
