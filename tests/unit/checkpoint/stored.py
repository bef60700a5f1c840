"""Checkpoints as runs write them, without a run: tables of every kind of ids with known numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prismrec.checkpoint import Checkpointer, capture
from prismrec.config import Recipe, dump
from prismrec.data.schema import DataSchema
from prismrec.embeddings.shards import LocalShard
from prismrec.models import spec_of
from tests.helpers.runs import make_recipe, write_rows

STEP = 30
KINDS = (
    "embedding.tables.user.rows=3000",
    "embedding.tables.item.ids={kind='hash', seed=5}",
    "embedding.tables.item.rows=9",
    "embedding.tables.tags.ids={kind='quotient_remainder', divisor=4}",
)
"""3,000 direct users, items hashed into 9 rows, 12 tags as 3 quotients and 4 remainders."""


class Stored:
    """A checkpoint and what is in it.

    Args:
        directory: where to make data set and checkpoint.
        overrides: of the recipe of these tests.
        data_type: of the weights.
        before: rows that were touched after this step have other numbers than without it.
    """

    def __init__(
        self,
        directory: Path,
        *overrides: str,
        data_type: torch.dtype = torch.float32,
        before: int = STEP,
    ) -> None:
        self.data = write_rows(directory / "data", {"train": 40, "valid": 8, "test": 8})
        self.recipe: Recipe = make_recipe(self.data, *(overrides or KINDS))
        self.schema = DataSchema.parse((self.data / "schema.json").read_text(), "schema.json")
        self.weights: dict[str, Tensor] = {}
        self.touched: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(3)
        spec = spec_of(self.recipe, self.schema)
        for table in spec.tables:
            touched = torch.randint(-1, STEP + 1, (table.rows,), generator=generator)
            for each in spec.sets_of(table):
                weight = torch.randn(table.rows, each.dim, generator=generator)
                weight[touched > before] -= 1
                self.weights[f"{table.name}/{each.name}"] = weight.to(data_type)
                self.touched[f"{table.name}/{each.name}"] = touched.int()
        self.path = self._save(directory / "checkpoints")

    def _save(self, directory: Path) -> Path:
        """Two ranks write it: the first half of the rows, and of the rest each some columns."""
        parts: list[list[LocalShard]] = [[], []]
        for key, weight in self.weights.items():
            rows, cols = weight.shape
            half = rows // 2
            for rank, row, stop, col, end in (
                (0, 0, half, 0, cols),
                (0, half, rows, 0, cols - 3),
                (1, half, rows, cols - 3, cols),
            ):
                parts[rank].append(
                    LocalShard(
                        *key.split("/"),
                        rows,
                        cols,
                        row,
                        col,
                        weight[row:stop, col:end],
                        {"accumulator": weight[row:stop, col:end].float().abs()},
                        touched=self.touched[key][row:stop].clone(),
                    )
                )
        savers = [Checkpointer(directory, rank, 2, "made", timeout_s=20) for rank in range(2)]
        extra = {
            "recipe": dump(self.recipe),
            "schema": self.schema.model_dump(exclude_defaults=True),
        }
        for saver, shards in zip(savers, parts, strict=True):
            saver.save(STEP, capture(shards, {"w": torch.ones(3)}, {}, {}), extra)
        paths = {saver.wait() for saver in savers}
        (path,) = paths
        assert path is not None
        return path
