"""Every recipe that is shipped can be read, fits its data set's schema and builds its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prismrec.config import load
from prismrec.data.adapters import kuairand
from prismrec.data.schema import DataSchema
from prismrec.data.world import write_world
from prismrec.embeddings.collection import physical_tables
from prismrec.models import Inputs, spec_of
from prismrec.train.model import build_train_model

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
RECIPES = sorted(FOLDER.rglob("*.toml"))


def world(place: Path) -> DataSchema:
    """Schema of the synthetic world."""
    return write_world(place / "world", rows=16 * 7, days=7, seed=1)


def kuairand_rows(place: Path) -> DataSchema:
    """Schema that the adapter gives KuaiRand-Pure, from one row of its columns."""
    pure = place / "pure"
    pure.mkdir()
    log = dict.fromkeys([*kuairand.LOG, *kuairand.LABELS, *kuairand.OUTCOMES], 1)
    log |= {"date": 20220425, "hourmin": 1200, "time_ms": 1650859200000}
    user = dict.fromkeys(["user_id", *kuairand.USER_IDS, *kuairand.USER_COUNTS], 1)
    video = dict.fromkeys(["video_id", *kuairand.VIDEO_IDS, "server_width", "server_height"], 1)
    video |= {"tag": 3, "upload_dt": "2022-04-20"}
    for name, row in (
        ("log_standard_1.csv", log),
        ("user_features_pure.csv", user),
        ("video_features_basic_pure.csv", video),
    ):
        (pure / name).write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    histories = {name: [[1]] for name in kuairand.HISTORIES}
    pq.write_table(
        pa.table({"user_id": [1], "last_time_ms": [1], **histories}),
        pure / "histories_4_09_to_4_24.parquet",
    )
    return kuairand.prepare(pure, place / "prepared")


SCHEMAS: dict[str, Callable[[Path], DataSchema]] = {
    "out/demo/data": world,
    "out/kuairand": kuairand_rows,
}
"""What makes the schema of a recipe's `data.path`."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_builds_its_model(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    assert recipe.data.path in SCHEMAS, f"say in SCHEMAS what lies at {recipe.data.path}"
    schema = SCHEMAS[recipe.data.path](tmp_path)
    spec = spec_of(recipe, schema)
    columns = [*recipe.features.dense, *(task.label for task in recipe.tasks)]
    kinds = [schema.column(name, ("number", "label"), str(path)).kind for name in columns]
    assert kinds == ["number"] * len(recipe.features.dense) + ["label"] * len(recipe.tasks)
    parts = build_train_model(recipe, spec, torch.device("cpu"), is_bf16=False)
    held = dict(parts.model.tables.named_parameters())
    assert len(held) == len(physical_tables(spec))
    assert all(parameter.is_meta for parameter in held.values())
    sets = [torch.randn(2, len(spec.fields_of(each)), each.dim) for each in spec.sets]
    linear = sets.pop()[:, :, : len(recipe.tasks)] if spec.sets[-1].name == "linear" else None
    dense = torch.randn(2, len(recipe.features.dense))
    logits, _ = parts.leaf.ranker.model(Inputs(sets, linear, dense))
    assert logits.shape == (2, len(recipe.tasks))
    assert logits.isfinite().all()
    assert (logits[0] != logits[1]).all(), "the logits do not depend on the rows"


def test_there_are_recipes() -> None:
    assert {"demo", "kuairand_me_dcnv2"} <= {path.stem for path in RECIPES}
