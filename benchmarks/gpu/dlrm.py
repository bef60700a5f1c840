"""The DCN-v2 of TorchRec's DLRM example, as a model of the package: 26 tables x 128 and 13 numbers.

The numbers go through an MLP 512-256-128 into one more vector; three cross layers of rank 512 run over all 27;
an MLP 1024-1024-512-256-1 above them gives the logit. Tables, loss, optimizers and pipeline are the package's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prismrec.config import Recipe, from_dict
from prismrec.data.batch import Batch, jagged_ids
from prismrec.data.schema import Column, DataSchema
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.models import Fields, Inputs, spec_of
from prismrec.models.interactions.cross import CrossV2
from prismrec.train.process_group import Ranks
from prismrec.train.sharding import ShardedModel, shard_model

ZIPF = 1.05
_SPREAD = 2_654_435_761
"""An odd number: popular ids must not be neighbours in memory."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model.

    Args:
        rows: known ids of each table.
        tables: number of tables.
        dim: width of a vector.
        numbers: numeric columns.
        rank: of each cross matrix.
        bottom: layers over the numbers, before the one of width `dim`.
        top: layers over the crossed vectors, before the logit.
    """

    rows: int
    tables: int = 26
    dim: int = 128
    numbers: int = 13
    rank: int = 512
    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (1024, 1024, 512, 256)

    @property
    def table_bytes(self) -> int:
        """Weights of all tables in fp32, and their Adagrad state."""
        return 8 * self.tables * (self.rows + 1) * self.dim

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the id columns."""
        return tuple(f"id_{n}" for n in range(self.tables))


TRIAL = Shape(rows=200, tables=3, dim=16, numbers=4, rank=8, bottom=(16,), top=(32, 16))
"""Of a trial on the CPU."""


class Core(nn.Module):
    """Everything behind the tables, of tensors only: what a CUDA graph or a compiler can hold.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.bottom = _mlp((shape.numbers, *shape.bottom, shape.dim), ends_in_relu=True)
        self.cross = CrossV2(shape.tables + 1, shape.dim, 3, shape.rank)
        self.top = _mlp((self.cross.out_dim, *shape.top, 1), ends_in_relu=False)

    def forward(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """Map (B, F, K) and (B, D) to (B, 1)."""
        of_numbers = self.bottom(numbers).to(vectors.dtype).unsqueeze(1)
        logits: Tensor = self.top(self.cross(torch.cat([of_numbers, vectors], 1)))
        return logits

    @property
    def products(self) -> int:
        """Weights of all matrix products; each is two operations a row forward and four backward."""
        return sum(each.numel() for each in self.parameters() if each.dim() == 2)


class Model(nn.Module):
    """The core as the package's loop calls it.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.core = Core(shape)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, 1), and no auxiliary loss."""
        return self.core(inputs.sets[0], inputs.dense), {}


def build(fields: Fields, options: dict[str, list[int]]) -> Model:
    """The function that the recipe names; `options` has `rank`, `bottom` and `top`."""
    rank, bottom, top = options["rank"], tuple(options["bottom"]), tuple(options["top"])
    shape = Shape(0, fields.num_sparse, fields.set_dims[0], fields.num_dense, rank, bottom, top)  # type: ignore[arg-type]
    return Model(shape)


def recipe_of(shape: Shape, batch: int, device: str, overrides: Sequence[str] = ()) -> Recipe:
    """The model as a recipe; its data are drawn, not read.

    Args:
        shape: sizes.
        batch: rows of a step.
        device: "cpu" or "cuda".
        overrides: `section.key=value` changes.
    """
    return from_dict(
        {
            "name": "dlrm-dcn",
            "data": {"path": "drawn", "global_batch_size": batch},
            "features": {
                "sparse": list(shape.ids),
                "dense": [f"number_{n}" for n in range(shape.numbers)],
            },
            "embedding": {"dim": shape.dim, "optimizer": {"learning_rate": 0.01}},
            "model": {
                "name": "benchmarks.gpu.dlrm:build",
                "options": {
                    "rank": shape.rank,
                    "bottom": list(shape.bottom),
                    "top": list(shape.top),
                },
            },
            "tasks": [{"name": "label", "label": "label"}],
            "train": {"device": device},
        },
        list(overrides),
    )


def schema_of(shape: Shape) -> DataSchema:
    """Columns of the data that the recipe reads."""
    columns = {name: Column(kind="id", num_ids=shape.rows) for name in shape.ids}
    columns |= {f"number_{n}": Column(kind="number") for n in range(shape.numbers)}
    return DataSchema(name="dlrm-dcn", columns={**columns, "label": Column(kind="label")})


def sharded_model(
    recipe: Recipe, schema: DataSchema, ranks: Ranks, *, is_bf16: bool
) -> ShardedModel:
    """The model on its device, its tables filled there.

    The package draws initial weights on the host, so that they are the same on any device; for tables
    of 100 GiB that would take longer than everything that is measured.

    Collective: every rank calls it.
    """
    spec = spec_of(recipe, schema)
    sharded = shard_model(recipe, _undrawn(spec), ranks, is_bf16=is_bf16, total_steps=1_000_000)
    for shard in sharded.shards():
        with torch.no_grad():
            shard.weight.normal_(0, 0.01)
    return sharded


def _undrawn(spec: EmbeddingSpec) -> EmbeddingSpec:
    return replace(spec, sets=tuple(replace(each, init_std=0.0) for each in spec.sets))


def batches(shape: Shape, batch: int, ids: str, count: int, *, is_pinned: bool) -> list[Batch]:
    """Batches in host memory.

    Args:
        shape: sizes.
        batch: rows of each.
        ids: "random" or "zipf".
        count: how many.
        is_pinned: in page-locked memory.
    """
    generator = torch.Generator().manual_seed(3)
    popularity = torch.arange(1, shape.rows + 1, dtype=torch.double).pow(-ZIPF).cumsum(0)
    popularity /= popularity[-1].clone()
    made = []
    for _ in range(count):
        size = (shape.tables * batch,)
        if ids == "random":
            values = torch.randint(shape.rows, size, generator=generator)
        else:
            drawn = torch.rand(size, dtype=torch.double, generator=generator)
            place = torch.searchsorted(popularity, drawn).clamp_(max=shape.rows - 1)
            values = place * _SPREAD % shape.rows
        labels = (torch.rand(batch, 1, generator=generator) < 0.25).float()
        none, ones = torch.zeros(batch, dtype=torch.int64), torch.ones(batch, 1)
        lengths = torch.ones(shape.tables * batch, dtype=torch.int32)
        sparse = jagged_ids(shape.ids, values, lengths, [batch] * shape.tables)
        dense = torch.randn(batch, shape.numbers, generator=generator)
        each = Batch(sparse, dense, labels, ones, ones.clone(), none, none.clone(), none.clone())
        made.append(each.pin_memory() if is_pinned else each)
    return made


def _mlp(widths: Sequence[int], *, ends_in_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*(layers if ends_in_relu else layers[:-1]))
