"""Runs with sets of their own kind: every layout, 1 and 2 ranks, resumed elsewhere, exported.

Losses of layouts and world sizes agree to 1e-5: numbers are added in another order, and one of the
sets is stored in fp16, where such a difference may round a weight the other way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prismrec.checkpoint.manifest import read_manifest
from prismrec.checkpoint.reader import CheckpointReader
from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import check_parity
from tests.helpers.runs import Start, Trained, alone, make_recipe, train_on, write_rows

STEPS, STOP = 14, 5
LAYOUTS = ("packed", "separate", "spread", "auto")
SETS = (
    "embedding.sets=["
    "{name='wide', dim=16, init_std=0.1},"
    "{name='half', dim=8, init_std=0.1, data_type='fp16'},"
    "{name='some', dim=12, init_std=0.1, features=['seen', 'user']},"
    "{name='means', dim=4, init_std=0.1, pooling='mean', learning_rate=0.05},"
    "{name='more', dim=8, init_std=0.1}]",
    "model={name='dcnv2', num_cross_layers=1, hidden=[16, 8], merge='gate'}",
    "train.schedule={warmup_steps=3, decay='linear', decay_steps=20, min_factor=0.1}",
    f"train.steps={STEPS}",
)
RULES = {
    "adagrad": (),
    "sgd": ("embedding.optimizer={name='sgd', learning_rate=0.1}",),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("sets") / "rows")


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Trained]:
    """Every run by rule, layout and number of ranks; those on two ranks are started together."""

    def start(directory: str, layout: str, rule: str, *changes: str, attempt: str = "a") -> Start:
        kind = (*SETS, *RULES[rule], f"embedding.layout='{layout}'", *changes)
        return Start(make_recipe(data, *kind), data.parent / directory, attempt)

    cases = [(rule, layout) for rule in RULES for layout in LAYOUTS]
    begun = f"train.steps={STOP}"
    done: dict[str, Trained] = {}
    one = {
        f"{rule} {layout} 1": start(f"{rule}-{layout}-1", layout, rule) for rule, layout in cases
    }
    one["begun on 1"] = start("resumed-on-2", "separate", "adagrad", begun)
    done |= dict(zip(one, alone(list(one.values())), strict=True))
    two = {
        f"{rule} {layout} 2": start(f"{rule}-{layout}-2", layout, rule) for rule, layout in cases
    }
    two["begun on 2"] = start("resumed-on-1", "spread", "adagrad", begun)
    two["resumed on 2"] = start("resumed-on-2", "packed", "adagrad", attempt="b")
    done |= dict(zip(two, train_on(2, list(two.values())), strict=True))
    last = {"resumed on 1": start("resumed-on-1", "separate", "adagrad", attempt="b")}
    return done | dict(zip(last, alone(list(last.values())), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_layouts_and_worlds_have_the_same_losses(runs: dict[str, Trained], rule: str) -> None:
    base = runs[f"{rule} packed 1"]
    assert len(base.losses) == STEPS
    assert np.mean(base.losses[-5:]) < 0.95 * np.mean(base.losses[:5]), "it learns"
    for layout in LAYOUTS:
        for size in (1, 2):
            run = runs[f"{rule} {layout} {size}"]
            np.testing.assert_allclose(
                run.losses, base.losses, rtol=1e-5, err_msg=f"{layout} on {size}"
            )
            assert run.metrics["click/logloss"] == pytest.approx(
                base.metrics["click/logloss"], rel=1e-5
            )


@pytest.mark.parametrize(("begun", "resumed"), [("1", "2"), ("2", "1")])
def test_a_run_goes_on_in_another_layout_on_another_number_of_ranks(
    runs: dict[str, Trained], begun: str, resumed: str
) -> None:
    """separate on 1 to packed on 2, and spread on 2 to separate on 1."""
    first, second = runs[f"begun on {begun}"], runs[f"resumed on {resumed}"]
    whole = runs["adagrad packed 1"]
    assert list(second.log["train/loss"]) == list(range(STOP + 1, STEPS + 1))
    np.testing.assert_allclose([*first.losses, *second.losses], whole.losses, rtol=1e-5)


def test_a_checkpoint_holds_what_the_sets_cover_in_their_types(runs: dict[str, Trained]) -> None:
    with CheckpointReader(runs["adagrad packed 2"].checkpoint) as checkpoint:
        tables = checkpoint.manifest.tables
    assert {key for key in tables if key.startswith("tags/")} == {
        f"tags/{name}" for name in ("wide", "half", "means", "more")
    }
    assert {key for key in tables if key.endswith("/some")} == {"user/some", "item/some"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_inference_copy_says_what_the_trainer_says(
    data: Path, runs: dict[str, Trained], layout: str, tmp_path: Path
) -> None:
    run = runs[f"adagrad {layout} 2"]
    recipe = make_recipe(data, *SETS)
    assert read_manifest(run.checkpoint).extra["state"]["step"] == STEPS
    model = InferenceModel.load(bundle_of_checkpoint(run.checkpoint, tmp_path / "copy"))
    held_out = read_held_out(data.parent / f"adagrad-{layout}-2" / "held_out.parquet", recipe)
    logits = model.predict_logits(held_out.columns)
    assert logits.std() > 0.05
    assert check_parity(logits, held_out.logits) < 5e-6
