"""Vectors that are drawn, in the place of the learnt ones that the similarities of a recipe name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prismrec.config import Recipe
from prismrec.config.numbers import NumberFeature

IDS, WIDTH = 5000, 8


def with_drawn_vectors(recipe: Recipe, place: Path) -> Recipe:
    """The recipe, with a file of drawn vectors for every side of its similarities; a few ids have none."""
    file = place / "_drawn_vectors.npz"
    if any(number.similarity for number in recipe.features.numbers) and not file.exists():
        random = np.random.default_rng(1)
        ids = np.flatnonzero(random.random(IDS) < 0.9)
        vectors = random.normal(size=(len(ids), WIDTH)).astype(np.float32)
        np.savez(file, ids=ids, vectors=vectors)
    numbers = tuple(_with_file(number, file) for number in recipe.features.numbers)
    features = recipe.features.model_copy(update={"numbers": numbers})
    return recipe.model_copy(update={"features": features})


def _with_file(number: NumberFeature, file: Path) -> NumberFeature:
    if number.similarity is None:
        return number
    sides = {
        side: each.model_copy(update={"vectors": str(file)}) for side, each in number.sides.items()
    }
    return number.model_copy(update={"similarity": number.similarity.model_copy(update=sides)})
