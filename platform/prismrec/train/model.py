"""The model as the loop runs it: look up, then one leaf (that is what lets it be pipelined)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prismrec.config import Recipe
from prismrec.data.batch import Batch
from prismrec.embeddings.collection import SetViews, build_collection
from prismrec.embeddings.sets import LINEAR, EmbeddingSpec
from prismrec.models import build_model, fields_of
from prismrec.models.objectives import Objective, row_loss

Output = tuple[Tensor, Tensor, Tensor]
"""Loss (scalar, this rank's share), loss of each task (T,), logits (B, T), all detached."""


class Ranker(nn.Module):
    """Views of the sets, the ranking model and its logits.

    Args:
        spec: the sets and tables.
        model: the ranking model, `forward(sets, linear, dense)`.
        num_tasks: T.
    """

    def __init__(self, spec: EmbeddingSpec, model: nn.Module, num_tasks: int) -> None:
        super().__init__()
        self.views = SetViews(spec)
        self.model = model
        self._has_linear = any(each.name == LINEAR for each in spec.sets)
        self._num_tasks = num_tasks

    def forward(self, pooled: Tensor, dense: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T) and the auxiliary losses by name."""
        sets = self.views(pooled)
        if sets[0].dtype != torch.float32:
            sets = [each.float() for each in sets]
        linear = sets.pop()[:, :, : self._num_tasks] if self._has_linear else None
        return self.model(sets, linear, dense)  # type: ignore[no-any-return]


class Leaf(nn.Module):
    """Everything after the lookup, opaque to tracing: views, model, loss.

    Args:
        ranker: from pooled embeddings to logits.
        objective: from logits and labels to the loss.
        is_bf16: run the ranking model under bfloat16 autocast.
    """

    def __init__(self, ranker: Ranker, objective: Objective, is_bf16: bool) -> None:
        super().__init__()
        self.ranker = ranker
        self.objective = objective
        self.is_bf16 = is_bf16

    def forward(
        self, pooled: Tensor, dense: Tensor, labels: Tensor, valid: Tensor, weights: Tensor
    ) -> tuple[Tensor, Output]:
        """The loss to differentiate and what the loop reports.

        Collective: the loss is a mean over the rows of all ranks.
        """
        with torch.autocast(dense.device.type, torch.bfloat16, enabled=self.is_bf16):
            logits, auxiliary = self.ranker(pooled, dense)
        logits = logits.float()
        total, per_task = self.objective(logits, labels, valid, weights)
        for loss in auxiliary.values():
            total = total + loss.float()
        return total, (total.detach(), per_task.detach(), logits.detach())


class TrainModel(nn.Module):
    """The collection of all tables and the leaf behind it.

    Args:
        tables: TorchRec collection, unsharded and on the meta device.
        leaf: everything after the lookup.
    """

    def __init__(self, tables: nn.Module, leaf: Leaf) -> None:
        super().__init__()
        self.tables = tables
        self.leaf = leaf

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """Loss and output of one batch."""
        pooled = self.tables(batch.sparse)
        return self.leaf(  # type: ignore[no-any-return]
            pooled, batch.dense, batch.labels, batch.valid, batch.weights
        )


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What `build_train_model` makes.

    Args:
        model: the module to shard.
        leaf: the part after the lookup, also inside `model`.
    """

    model: TrainModel
    leaf: Leaf


def build_train_model(
    recipe: Recipe, spec: EmbeddingSpec, device: torch.device, *, is_bf16: bool
) -> ModelParts:
    """The unsharded model: tables on meta, dense weights seeded and on `device`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.model, fields_of(recipe, spec))
    ranker = Ranker(spec, model, len(recipe.tasks)).to(device)
    losses = [row_loss(f"tasks[{t}].loss", task.loss) for t, task in enumerate(recipe.tasks)]
    objective = Objective(losses, [task.weight for task in recipe.tasks]).to(device)
    leaf = Leaf(ranker, objective, is_bf16)
    return ModelParts(TrainModel(build_collection(spec, torch.device("meta")), leaf), leaf)
