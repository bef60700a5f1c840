"""What the commands do, as functions: `import prismrec; prismrec.train(prismrec.load("recipe.toml"))`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismrec.config import Recipe
from prismrec.config.train import DEFAULT_TRACKING_URI as DEFAULT_URI
from prismrec.data.semantic.fit import Fit
from prismrec.jobs.analyze import Request
from prismrec.jobs.analyze import analyze as analyze_models
from prismrec.jobs.evaluate import evaluate_model, predict_data
from prismrec.jobs.plan import Machines, plan_recipe
from prismrec.jobs.run import Options
from prismrec.jobs.semantic_ids import make_semantic_ids
from prismrec.jobs.train import Result, run_training


def train(recipe: Recipe, *, ray: bool = True, resume: bool = False) -> Result:
    """Train, evaluate, export, check and register, as `prismrec train` does.

    Args:
        recipe: from `prismrec.load`.
        ray: run the workers under Ray Train; otherwise as plain processes of this machine. From a
            script these need the usual `if __name__ == "__main__":`.
        resume: go on with the recipe's newest run.

    Raises:
        UserError: what is wrong with recipe, data or device.
    """
    return run_training(recipe, Options(use_ray=ray, resume=resume))


def plan(recipe: Recipe, machines: Machines, *, batch_size: int | None = None) -> dict[str, Any]:
    """Where the tables would go: the document of `prismrec plan --json`.

    Args:
        recipe: from `prismrec.load`.
        machines: ranks and what they have, `prismrec.Machines(...)`; they need not exist.
        batch_size: rows of one rank's batch, None for its share of the recipe's.

    Returns:
        What `prismrec.jobs.plan.plan_recipe` returns; `fits` says whether the tables do.

    Raises:
        UserError: the recipe does not fit the schema or the device, or leaves a table no way.
    """
    return plan_recipe(recipe, machines, batch_size)


def evaluate(
    model: str, data: str | Path, *, split: str = "test", tracking_uri: str = DEFAULT_URI
) -> dict[str, Any]:
    """Exact metrics of a model on a data set: the document of `prismrec evaluate --json`.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a run id, or a directory.
        data: a data set with the model's columns and labels.
        split: `train`, `valid` or `test` of the model's recipe, or `all`.
        tracking_uri: where the registry is.
    """
    return evaluate_model(model, str(data), split, tracking_uri, _silent)


def predict(
    model: str, data: str | Path, out: str | Path, *, tracking_uri: str = DEFAULT_URI
) -> dict[str, Any]:
    """Write probabilities of every row: the document of `prismrec predict --json`.

    Args:
        model: as for `evaluate`.
        data: a directory of Parquet files with the model's columns.
        out: a directory that does not exist or is empty.
        tracking_uri: where the registry is.
    """
    return predict_data(model, str(data), Path(out), tracking_uri, _silent)


def analyze(
    models: str | Sequence[str],
    data: str | Path,
    out: str | Path,
    *,
    split: str = "test",
    chapters: Sequence[str] = (),
    tracking_uri: str = DEFAULT_URI,
) -> dict[str, Any]:
    """Write the report on trained models: the document of `prismrec analyze --json`.

    Args:
        models: one or several, as for `evaluate`.
        data: a data set with the columns and labels of every model.
        out: directory for `report.html` and its numbers.
        split: `train`, `valid` or `test` of each model's recipe, or `all`; its first 50,000 rows.
        chapters: those wanted, `prismrec.jobs.analyze.CHAPTERS`; all if not given.
        tracking_uri: where the registry is.
    """
    request = Request(
        models=(models,) if isinstance(models, str) else tuple(models),
        data=str(data),
        out=Path(out),
        split=split,
        rows=50_000,
        chapters=tuple(chapters),
        fields=(None, None),
        target=None,
        uri=tracking_uri,
    )
    return analyze_models(request, lambda title, done, total: None)


def semantic_ids(
    vectors: str | Path,
    out: str | Path,
    how: Fit | str | Path | None = None,
    *,
    disambiguate: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write codes of items: the document of `prismrec data semantic-ids --json`.

    Args:
        vectors: file or directory of the items' vectors.
        out: Parquet file; the codebooks are written beside it.
        how: how to fit, `prismrec.data.semantic.fit.Fit(...)` and by default its defaults; or a file
            of codebooks that exist.
        disambiguate: add a column `rank` that tells items with equal codes apart.
        overwrite: replace files that are there.
    """
    given = Fit() if how is None else how
    return make_semantic_ids(
        Path(vectors),
        Path(out),
        given if isinstance(given, Fit) else Path(given),
        disambiguate=disambiguate,
        overwrite=overwrite,
    )


def _silent(done: int, total: int) -> None:
    """No progress is shown to a program."""
