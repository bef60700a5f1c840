"""Every recipe that is shipped can be read, fits its data set's schema and builds its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prismrec.config import from_dict, load
from prismrec.config.load import dump
from prismrec.data.adapters import movielens
from prismrec.data.schema import DataSchema
from prismrec.data.world import write_world
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.jagged import SetSequence, newest_first
from prismrec.embeddings.sets import LINEAR, EmbeddingSpec, SequenceLookup
from prismrec.models import Assembly, Inputs, spec_of
from prismrec.train.model import build_train_model
from tests.recipes.codes import drawn_codes
from tests.recipes.kuairand import write_small_kuairand

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*.toml") if path.name != "base.toml")
BUILT = [path for path in RECIPES if path.stem != "kuairand_production"]
"""Recipes that need no fitted file; the other one has tests of its own."""


def world(place: Path) -> DataSchema:
    """Schema of the synthetic world."""
    return write_world(place / "world", rows=16 * 7, days=7, seed=1)


def kuairand_rows(place: Path) -> DataSchema:
    """Schema that the adapter gives KuaiRand-Pure."""
    return write_small_kuairand(place / "kuairand")


def movielens_rows(place: Path) -> DataSchema:
    """Schema that the adapter gives MovieLens-1M, here of two ratings."""
    files = {
        "ratings": "1::10::5::978300760\n2::20::3::978302109\n",
        "users": "1::F::1::10::48067\n2::M::56::16::70072\n",
        "movies": "10::Toy Story (1995)::Animation|Comedy\n20::Heat (1995)::Crime\n",
    }
    for name, text in files.items():
        (place / f"{name}.dat").write_text(text)
    return movielens.prepare(place, place / "movielens")


SCHEMAS: dict[str, Callable[[Path], DataSchema]] = {
    "out/demo/data": world,
    "out/world": world,
    "out/stream": world,
    "out/kuairand": kuairand_rows,
    "out/movielens": movielens_rows,
}
"""What makes the schema of a recipe's `data.path`."""


@pytest.mark.parametrize("path", BUILT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_builds_its_model(path: Path, tmp_path: Path) -> None:
    recipe = load(path, drawn_codes(path, tmp_path))
    assert recipe.data.path in SCHEMAS, f"say in SCHEMAS what lies at {recipe.data.path}"
    schema = SCHEMAS[recipe.data.path](tmp_path)
    spec = spec_of(recipe, schema)
    columns = [*recipe.features.dense, *(task.label for task in recipe.tasks)]
    kinds = [schema.column(name, ("number", "label"), str(path)).kind for name in columns]
    assert kinds == ["number"] * len(recipe.features.dense) + ["label"] * len(recipe.tasks)
    parts = build_train_model(recipe, spec, torch.device("cpu"), is_bf16=False)
    held = dict(parts.model.tables.named_parameters())
    held |= dict(parts.model.unpooled.named_parameters())
    assert len(held) == len(physical_tables(spec))
    assert all(parameter.is_meta for parameter in held.values())
    sets = [torch.randn(2, len(spec.fields_of(each)), each.dim) for each in spec.sets]
    assembly = Assembly(spec, recipe.model, recipe.num_logits)
    inputs = Inputs(
        sets=assembly.sets(sets),
        linear=assembly.linear(sets),
        dense=torch.randn(2, len(recipe.features.numeric)),
        domain=torch.tensor([0, 1]) if recipe.features.domain else None,
        sequences=assembly.sequences(sets, [_behaviours(spec, each) for each in spec.sequences]),
    )
    logits, _ = parts.leaf.ranker.model(inputs)
    assert logits.shape == (2, recipe.num_logits)
    assert logits.isfinite().all()
    assert (logits[0] != logits[1]).all(), "the logits do not depend on the rows"


def _behaviours(spec: EmbeddingSpec, sequence: SequenceLookup) -> SetSequence:
    """Two and three behaviours in every set."""
    offsets = torch.tensor([0, 2, 5])
    behaviours = [
        torch.randn(5, each.dim * sum(each.covers(b.target) for b in sequence.behaviours))
        for each in spec.sets
        if each.name != LINEAR
    ]
    intervals = torch.arange(5) if sequence.intervals else None
    return SetSequence(offsets, newest_first(offsets, 5), intervals, behaviours)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_resolved_recipe_reads_back_as_itself(path: Path) -> None:
    recipe = load(path)
    assert from_dict(dump(recipe)) == recipe


def test_there_are_recipes() -> None:
    assert {"demo", "kuairand_me_dcnv2"} <= {path.stem for path in RECIPES}
