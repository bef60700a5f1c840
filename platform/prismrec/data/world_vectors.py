"""Vectors of a world's users and items, as encoders that know neither clicks nor the truth would give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prismrec.data.vectors import VectorWriter
from prismrec.data.world_truth import Truth

DIRECTORY = "_vectors"
"""Beside the rows: `users` and `items`, Parquet with columns `id` and `vector`."""
NOISE = 0.5
"""Size of the noise on a vector, as a share of the vectors' own."""
_STREAM = 2**32
"""No slot of a world is numbered so."""


def write_vectors(directory: Path, truth: Truth, seed: int) -> None:
    """Write vectors of everyone: interests at birth and vectors of items, with noise.

    The product of a user's and an item's is what the user likes of the item, less what has drifted
    since, and noise. An item that no row shows yet has one too.

    Args:
        directory: of the world.
        truth: of the world.
        seed: of the world.
    """
    rng = np.random.default_rng([seed, _STREAM])
    for name, true in (("users", truth.interest), ("items", truth.item_vector)):
        noise = rng.normal(size=true.shape) * (NOISE * true.std())
        of_kind = directory / DIRECTORY / name
        of_kind.mkdir(parents=True)
        writer = VectorWriter(of_kind, true.shape[1], ("id",), {"noise": NOISE})
        writer.write({"id": np.arange(len(true))}, (true + noise).astype(np.float32))
        writer.close()
