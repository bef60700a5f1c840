"""Losses of three recipes over 20 steps, as they were when they were last looked at.

A change of the numbers is a change of every model that users train. If it is meant, write them anew
and say why in the commit:

    python -m tests.recipes.test_golden

One rank, one thread, fp32. Rounding differs between processors and builds of the libraries, so losses
are compared to a relative 1e-5, not to the bit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prismrec.config import Recipe, load
from prismrec.data.world import write_world
from tests.helpers.runs import Start, Trained, alone, make_recipe, write_rows

STORED = Path(__file__).parent / "golden"
DEMO = Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "demo.toml"


def demo(place: Path) -> Recipe:
    """The recipe of `prismrec demo` in small steps over a small world."""
    write_world(place / "world", rows=2_000, days=7, seed=1)
    changes = ("data.global_batch_size=64", "workers.count=1", "train.device='cpu'")
    more = ("train.precision='fp32'", "train.log_every=1", "train.steps=20", "evaluate.bootstrap=0")
    return load(DEMO, [f"data.path='{place / 'world'}'", *changes, *more])


def deepfm(place: Path) -> Recipe:
    """Separate sets of unequal width met by a gate, batch norm, dropout, Adagrad, a schedule."""
    return make_recipe(
        write_rows(place / "rows"),
        "model={name='deepfm', hidden=[16, 8], merge='gate', norm='batch', dropout=0.2}",
        "embedding.layout='separate'",
        "embedding.tables.user={learning_rate=0.05}",
        "train.optimizer={name='adagrad', learning_rate=0.02, eps=1e-4}",
        "train.schedule={warmup_steps=5, decay='cosine', decay_steps=15, min_factor=0.1}",
        "data.order='time'",
    )


def fm(place: Path) -> Recipe:
    """One set, row-wise Adagrad, sampled negatives, clipped SGD."""
    return make_recipe(
        write_rows(place / "rows"),
        "model={name='fm'}",
        "embedding={dim=8, optimizer={name='rowwise_adagrad', learning_rate=0.05}, "
        "allow_coupled_sets=true}",
        "train.optimizer={name='sgd', learning_rate=0.1}",
        "train.clip_norm=0.1",
        "tasks=[{name='click', label='click', negative_rate=0.5}]",
    )


RECIPES: dict[str, Callable[[Path], Recipe]] = {"demo": demo, "deepfm": deepfm, "fm": fm}


def losses_of(run: Trained) -> dict[str, list[float]]:
    """The losses of a run by name, step by step."""
    return {
        name: list(by_step.values())
        for name, by_step in sorted(run.log.items())
        if name.startswith("train/") and name.endswith("loss")
    }


def train_golden(name: str, place: Path) -> dict[str, list[float]]:
    """Train one of the recipes in an empty directory."""
    place.mkdir(parents=True, exist_ok=True)
    (run,) = alone([Start(RECIPES[name](place), place / "run")])
    return losses_of(run)


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_those_that_were_stored(name: str, tmp_path: Path) -> None:
    stored = json.loads((STORED / f"{name}.json").read_text())
    losses = train_golden(name, tmp_path)
    assert losses.keys() == stored.keys()
    for key, values in losses.items():
        assert len(values) == 20
        np.testing.assert_allclose(
            values,
            stored[key],
            rtol=1e-5,
            err_msg=f"{name}: {key}; if this is meant: python -m tests.recipes.test_golden",
        )


def main() -> None:
    """Write the losses anew."""
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as directory:
            losses = train_golden(name, Path(directory))
        (STORED / f"{name}.json").write_text(json.dumps(losses, indent=1) + "\n")
        print(f"{name}: {', '.join(losses)}")


if __name__ == "__main__":
    main()
