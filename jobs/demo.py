"""The demo: from nothing to predictions of a registered model."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from prismrec.config import load
from prismrec.data.world import write_world
from prismrec.data.world_truth import best_auc
from prismrec.jobs.evaluate import predict_data
from prismrec.jobs.run import Options
from prismrec.jobs.train import run_training

DAYS, SEED = 7, 1


def run_demo(progress: Callable[[int, int], None], *, verbose: bool, rows: int) -> dict[str, Any]:
    """Make the synthetic world, train on two workers, register, load back and predict.

    Args:
        progress: told about the rows of the world.
        verbose: show what the libraries say.
        rows: size of the world.

    Returns:
        The document of `train --json`, the best reachable AUC of each task on the test rows, and
        where the predictions are.
    """
    recipe = load(Path(str(resources.files("prismrec.jobs") / "recipes" / "demo.toml")))
    data = Path(recipe.data.path)
    write_world(data, rows, DAYS, SEED, progress=progress)
    result = run_training(recipe, Options(verbose=verbose))
    document = result.to_json()
    out = result.files.directory / "predictions"
    predicted = predict_data(document["model"], str(data), out, recipe.tracking.uri, progress)
    where = recipe.data.splits.test or ()
    return document | {
        "best_auc": {task: best_auc(data, task, where) for task in recipe.task_names},
        "predicted": predicted["rows"],
        "out": str(out),
    }
