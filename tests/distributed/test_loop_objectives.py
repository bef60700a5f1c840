"""Every objective in the real loop: two ranks train as one does, and record the same."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prismrec.checkpoint.manifest import read_manifest
from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import check_parity
from prismrec.train.calibration import FILE, read_maps
from tests.helpers.runs import ROWS, Start, Trained, alone, make_recipe, train_on, write_rows

STEPS = 6
BUY = "{name='buy', label='buy', valid='click', weight=0.5}"


def click(settings: str) -> str:
    return f"{{name='click', label='click', {settings}}}"


def tasks(*each: str) -> str:
    return f"tasks=[{', '.join(each)}]"


CALIBRATED = (tasks(click("loss={name='jrc'}, negative_rate=0.5"), BUY),)
CASES: dict[str, tuple[str, ...]] = {
    "pairs": (
        tasks(click("loss={name='bce_ranknet', alpha=0.5}, pos_weight=2.5"), BUY),
        "train.log_negative_gradients=true",
    ),
    "pairs of a user": (
        tasks(click("loss={name='bce_ranknet', group=true, reduction='group_mean'}")),
    ),
    "lists": (tasks(click("loss='bce_list'"), "{name='buy', label='buy', loss='bce_rcr'}"),),
    "jrc": (
        tasks(BUY, click("loss={name='jrc', alpha=0.4, group=true}")),
        "model={name='deepfm', hidden=[8, 8], merge='gate'}",
        "train.log_negative_gradients=true",
    ),
    "focal": (tasks(click("loss={name='focal', gamma=1.5, alpha=0.3}")),),
    "exposures": (
        tasks(
            click("propensity={column='x', floor=0.2, undo=true}"),
            "{name='buy', label='buy', propensity={column='y', first=1, estimator='fitted', "
            "by='tab', tau=2.0, prior_rows=10.0, apply_to='both'}}",
        ),
    ),
    "late conversions": (
        tasks(
            click("loss={name='es_dfm', late='buy', real_negative='copied'}"),
            BUY,
            "{name='copied', label='click', loss='fnc'}",
            "{name='weighted', label='click', loss='fnw'}",
            "{name='real', label='click', loss={name='defer', late='buy'}}",
        ),
    ),
    "isotonic": (*CALIBRATED, "calibration={method='isotonic', bins=2000}"),
    "platt": (*CALIBRATED, "calibration.method='platt'"),
    "not calibrated": CALIBRATED,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("objectives") / "rows")


def _starts(data: Path, folder: str) -> list[Start]:
    steps = (f"train.steps={STEPS}", "evaluate.every_steps=4")
    return [
        Start(make_recipe(data, *steps, *changes), data.parent / folder / case)
        for case, changes in CASES.items()
    ]


@pytest.fixture(scope="module")
def on_one(data: Path) -> dict[str, Trained]:
    return dict(zip(CASES, alone(_starts(data, "one")), strict=True))


@pytest.fixture(scope="module")
def on_two(data: Path) -> dict[str, Trained]:
    return dict(zip(CASES, train_on(2, _starts(data, "two")), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(
    on_one: dict[str, Trained], on_two: dict[str, Trained], case: str
) -> None:
    one, two = on_one[case], on_two[case]
    told = {name for name in one.log if name.startswith("train/") and "second" not in name}
    told -= {"train/data_wait"}
    assert told <= two.log.keys()
    for name in told:
        ours, theirs = one.log[name], two.log[name]
        assert ours.keys() == theirs.keys(), name
        np.testing.assert_allclose(
            list(theirs.values()), list(ours.values()), rtol=2e-4, atol=1e-6, err_msg=name
        )
    assert len(one.losses) == STEPS
    for name, value in one.metrics.items():
        assert two.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name


def test_parts_add_up_to_the_loss(on_one: dict[str, Trained]) -> None:
    for case, task, part, alpha in (
        ("pairs", "click", "ranknet", 0.5),
        ("pairs of a user", "click", "ranknet", 0.9),
        ("lists", "click", "list", 0.9),
        ("lists", "buy", "rcr", 0.9),
        ("jrc", "click", "generative", 0.4),
    ):
        log = on_one[case].log
        for step, loss in log[f"train/{task}/loss"].items():
            bce, other = (log[f"train/{task}/{name}"][step] for name in ("bce", part))
            assert loss == pytest.approx(alpha * bce + (1 - alpha) * other, abs=1e-6)
    for case, names in (("focal", ["click"]), ("exposures", ["click", "buy"])):
        losses = [name for name in on_one[case].log if name.endswith("loss")]
        assert {f"train/{name}/loss" for name in names} < set(losses)


def test_the_push_on_negatives_is_that_of_the_loss(on_one: dict[str, Trained]) -> None:
    """At the first step all logits are near 0: a cross-entropy pushes by half a row's share."""
    log = on_one["pairs"].log
    mean = 1.6 / 2  # of the weights 2.5 and 1, were labels even
    share = 1 / (16 * mean)
    first = log["train/click/gradient_negatives"][1]
    assert 0.1 * share < first < 2 * share
    assert "train/click/weight_max" in log
    assert log["train/click/weight_max"][1] == 2.5
    path = on_one["pairs"].checkpoint.parents[1] / "gradients.csv"
    rows = list(csv.DictReader(path.open()))
    of_all = [row for row in rows if not row["from_p"] and row["task"] == "click"]
    assert {row["step"] for row in of_all} == {str(step) for step in range(1, STEPS + 1)}
    assert sum(int(row["rows"]) for row in of_all if row["step"] == "1") <= 16
    binned = [r for r in rows if r["from_p"] and r["step"] == "3" and r["label"] == "negatives"]
    whole = next(r for r in of_all if r["step"] == "3" and r["label"] == "negatives")
    binned = [r for r in binned if r["task"] == "click"]
    assert sum(int(row["rows"]) for row in binned) == int(whole["rows"])
    total = sum(int(row["rows"]) * float(row["mean"]) for row in binned)
    assert total / int(whole["rows"]) == pytest.approx(float(whole["mean"]), rel=1e-5)


def test_expected_exposures_are_means_by_value(data: Path, on_two: dict[str, Trained]) -> None:
    """Of the training rows of each tab, drawn to the mean of all by ten rows; first sight is 1."""
    table = pq.read_table(data / "0-train.parquet").to_pydict()
    k = [max(1.0, y) if y is not None else 1.0 for y in table["y"]]
    assert len(k) == ROWS["train"]
    mean = sum(k) / len(k)
    by_tab: dict[int, list[float]] = {}
    for tab, each in zip(table["tab"], k, strict=True):
        by_tab.setdefault(-1 if tab is None else tab, []).append(each)
    extra = read_manifest(on_two["exposures"].checkpoint).extra
    kept = extra["recipe"]["tasks"][1]["propensity"]
    known = {tab: v for tab, v in by_tab.items() if tab >= 0}
    found = dict(zip(kept["values"], kept["expected"], strict=False))
    for tab, values in known.items():
        expected = (sum(values) + 10 * mean) / (len(values) + 10)
        assert found[tab] == pytest.approx(expected, rel=1e-6)
    assert kept["expected"][-1] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_inference_copy_says_what_the_trainer_says(
    data: Path, on_two: dict[str, Trained], tmp_path: Path, case: str
) -> None:
    """Levels taken off, weights of positives and of exposures undone."""
    checkpoint = on_two[case].checkpoint
    recipe = make_recipe(data, *CASES[case])
    held_out = read_held_out(checkpoint.parents[1] / "held_out.parquet", recipe)
    model = InferenceModel.load(bundle_of_checkpoint(checkpoint, tmp_path / "model"))
    logits = model.predict_logits(held_out.columns, calibrated=False)
    assert check_parity(logits, held_out.logits) < 1e-5
    has_level = any("'jrc'" in change for change in CASES[case])
    assert model.recipe.num_logits == logits.shape[1] + has_level
    if case == "exposures":
        x = np.nan_to_num(held_out.columns["x"].to_numpy(zero_copy_only=False))
        weights = np.clip(1 / np.maximum(x + 1, 1), 0.2, 1)
        lifted = model._log_propensity(model.sides(held_out.columns, {}))
        np.testing.assert_allclose(lifted[:, 0], np.log(weights), rtol=1e-5, atol=1e-6)
        assert (lifted[:, 1] == 0).all()


def test_a_calibration_keeps_the_order_and_is_exported(
    data: Path, on_one: dict[str, Trained], on_two: dict[str, Trained], tmp_path: Path
) -> None:
    plain = on_two["not calibrated"].metrics
    assert not any("uncalibrated" in name for name in plain)
    for method in ("isotonic", "platt"):
        one, two = on_one[method], on_two[method]
        found = two.metrics
        assert found["click/auc"] == pytest.approx(plain["click/auc"], abs=1e-9)
        for kind in ("logloss", "ece", "pcoc"):
            assert found[f"click/uncalibrated_{kind}"] == pytest.approx(plain[f"click/{kind}"])
            assert found[f"click/{kind}"] != pytest.approx(plain[f"click/{kind}"])
        maps = read_maps(two.checkpoint / FILE, ["click", "buy"])
        for ours, theirs in zip(
            maps, read_maps(one.checkpoint / FILE, ["click", "buy"]), strict=True
        ):
            z = torch.linspace(-3, 3, 50)
            torch.testing.assert_close(ours(z), theirs(z), rtol=5e-3, atol=5e-3)
        recipe = make_recipe(data, *CASES[method])
        held_out = read_held_out(two.checkpoint.parents[1] / "held_out.parquet", recipe)
        model = InferenceModel.load(bundle_of_checkpoint(two.checkpoint, tmp_path / method))
        assert list(model.maps) == maps
        served = model.predict_logits(held_out.columns)
        raw = model.predict_logits(held_out.columns, calibrated=False)
        torch.testing.assert_close(served, torch.stack([maps[0](raw[:, 0]), maps[1](raw[:, 1])], 1))
        assert (served - raw).abs().max() > 1e-3
        torch.testing.assert_close(model.probabilities(held_out.columns), torch.sigmoid(served))


def test_weights_of_exposures_are_told(on_one: dict[str, Trained]) -> None:
    log = on_one["exposures"].log
    for task in ("click", "buy"):
        for step, most in log[f"train/{task}/weight_max"].items():
            assert 0 < log[f"train/{task}/weight_mean"][step] <= most <= 1
            assert 0 < log[f"train/{task}/weight_effective"][step] <= 1 + 1e-9
    assert not math.isnan(on_one["exposures"].metrics["click/logloss"])
