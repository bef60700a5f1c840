"""A model that tells domains apart: trainer, inference copy and `evaluate` see the same domains."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.data.schema import Column, DataSchema
from prismrec.jobs.evaluate import evaluate_model
from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import check_parity
from tests.helpers.runs import Start, Trained, alone, make_recipe, write_rows

CHANGES = (
    "model={name='mmoe', hidden=[8], num_experts=2, tower=[4], domain_towers=true, norm='batch'}",
    "embedding.sets=[{name='main', dim=8, init_std=0.3}]",
    "features.domain='tab'",
    "train.steps=6",
    "train.domain_reduction='per_domain_mean'",
)


def write(directory: Path, num_domains: int) -> Path:
    """Rows whose tabs are 0 to 2, of which a schema knows so many."""
    write_rows(directory, {"train": 64, "valid": 20, "test": 90})
    schema = DataSchema.parse((directory / "schema.json").read_text(), "schema.json")
    columns = {**schema.columns, "tab": Column(kind="id", num_ids=num_domains)}
    schema.model_copy(update={"columns": columns}).write(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("domains") / "rows", 2)


@pytest.fixture(scope="module")
def trained(data: Path) -> Trained:
    recipe = make_recipe(data, *CHANGES, "features.unknown_domain=1")
    (result,) = alone([Start(recipe, data.parent / "run")])
    return result


def test_the_copy_says_what_the_trainer_says(data: Path, trained: Trained) -> None:
    model = InferenceModel.load(bundle_of_checkpoint(trained.checkpoint, data.parent / "copy"))
    held_out = read_held_out(data.parent / "run/held_out.parquet", model.recipe)
    assert set(held_out.columns["tab"].to_pylist()) == {0, 1, 2}
    assert check_parity(model.predict_logits(held_out.columns), held_out.logits) < 2e-6
    other = {**held_out.columns, "tab": [0] * len(held_out.logits)}
    assert (model.predict_logits(other) - held_out.logits).abs().max() > 1e-3


def test_slices_are_those_of_the_trainer(data: Path, trained: Trained, uri: str) -> None:
    document = evaluate_model(
        str(trained.checkpoint), str(data), "test", uri, lambda done, total: None
    )
    found = document["test"] | document["slices"]
    assert [found[f"click/rows/domain={s}"] for s in (0, 1)] == [30, 60]
    assert "click/rows/domain=2" not in found
    for name in ("click/auc/domain=1", "click/logloss/domain=0", "buy/logloss"):
        assert found[name] == pytest.approx(trained.metrics[name], rel=1e-5)


def test_a_run_names_the_row_of_no_domain(data: Path) -> None:
    recipe = make_recipe(data, *CHANGES)
    with pytest.raises(UserError, match="0-train.parquet: row group 0, row 2: column 'tab' names"):
        alone([Start(recipe, data.parent / "refused")])
