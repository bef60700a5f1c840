"""The model as the loop runs it: look up, then one leaf (that is what lets it be pipelined)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from prismrec.config import Recipe
from prismrec.data.batch import Batch
from prismrec.embeddings.collection import SetViews, build_collection, side_by_side
from prismrec.embeddings.managed.modules import build_managed
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.unpooled import LookedUp, UnpooledViews, build_unpooled
from prismrec.models import Assembly, Inputs, build_model, fields_of
from prismrec.models.batch_norm import BatchNorm
from prismrec.models.domains import DomainMoments
from prismrec.models.objectives import (
    Decoder,
    Losses,
    Objective,
    Targets,
    build_decoder,
    build_objective,
)
from prismrec.train.gradients import LogitGradients


class Output(NamedTuple):
    """What a step reports, all detached.

    Args:
        loss: a scalar, this rank's share.
        losses: what it is made of; None in evaluation, where nothing is lost.
        logits: (B, T).
    """

    loss: Tensor
    losses: Losses | None
    logits: Tensor


class _ZeroGradients(torch.autograd.Function):
    """A tensor as it is; backward gives parameters that are no part of it a gradient of 0.

    Data parallelism waits for a gradient of every parameter that had one when it was set up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (grads[0], *(torch.zeros_like(each) for each in ctx.saved_tensors))


class Ranker(nn.Module):
    """Views of the sets, the ranking model and its logits.

    Args:
        spec: the sets and tables.
        model: the ranking model, see `prismrec.models.Inputs`.
        recipe: for its tasks and whether the model reads domains.
    """

    def __init__(self, spec: EmbeddingSpec, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.views = SetViews(spec)
        self.unpooled = UnpooledViews(spec)
        self.model = model
        self._assembly = Assembly(spec, recipe.model, recipe.num_logits)
        self._reads_domain = recipe.reads_domain
        self._frozen: dict[str, nn.Parameter] = {}
        self._stopped: list[nn.Module] = []
        self._moments = [
            each for each in model.modules() if isinstance(each, BatchNorm | DomainMoments)
        ]

    def moments(self) -> list[Tensor]:
        """The running moments that a forward pass in training changes, the tensors themselves."""
        return [buffer for module in self._moments for buffer in module.buffers()]

    def freeze(self, heads: Sequence[nn.Module]) -> None:
        """Let nothing but some modules train: no gradient, no dropout and no moments elsewhere.

        Args:
            heads: modules of the model that train on.
        """
        moving = {each for head in heads for each in head.parameters()}
        inside = {module for head in heads for module in head.modules()}
        named = self.model.named_parameters()
        self._frozen = {name: each for name, each in named if each not in moving}
        self._stopped = [module for module in self.model.modules() if module not in inside]
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As usual; what is frozen stays in evaluation."""
        super().train(mode)
        for module in self._stopped:
            module.training = False
        return self

    def forward(
        self, pooled: tuple[KeyedTensor, ...], batch: Batch, unpooled: LookedUp
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's columns (B, T + J), see `Decoder`, and the auxiliary losses by name."""
        sequences = []
        if batch.sequence is not None:
            pooled = (*pooled, self.unpooled.features(unpooled))
            sequences = self.unpooled.sequences(unpooled, batch.sequence)
        sets = self.views(side_by_side(pooled))
        if sets[0].dtype != torch.float32:
            sets = [each.float() for each in sets]
        counted = ((batch.valid * batch.weights) > 0).any(1)
        for each in self._moments:
            each.counted = counted
        inputs = Inputs(
            sets=self._assembly.sets(sets),
            linear=self._assembly.linear(sets),
            dense=batch.dense,
            domain=batch.domain if self._reads_domain else None,
            counted=counted,
            sequences=self._assembly.sequences(sets, sequences),
        )
        return self._without_gradients(inputs) if self._frozen else self.model(inputs)

    def _without_gradients(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The model on constants: detached vectors, and frozen parameters as numbers."""
        constant = replace(
            inputs,
            sets=[each.detach() for each in inputs.sets],
            linear=None if inputs.linear is None else inputs.linear.detach(),
            sequences=[each.detached() for each in inputs.sequences],
        )
        numbers = {name: each.detach() for name, each in self._frozen.items()}
        columns, auxiliary = torch.func.functional_call(self.model, numbers, (constant,))
        return _ZeroGradients.apply(columns, *self._frozen.values()), auxiliary


class Leaf(nn.Module):
    """Everything after the lookup, opaque to tracing: views, model, loss.

    Args:
        ranker: from pooled embeddings to the model's columns.
        decoder: from these to a logit per task.
        objective: from logits and labels to the loss.
        is_bf16: run the ranking model under bfloat16 autocast.

    Attributes:
        gradients: told the logits of every training step, if set.
    """

    def __init__(
        self, ranker: Ranker, decoder: Decoder, objective: Objective, is_bf16: bool
    ) -> None:
        super().__init__()
        self.ranker = ranker
        self.decoder = decoder
        self.objective = objective
        self.is_bf16 = is_bf16
        self.gradients: LogitGradients | None = None

    def forward(
        self, pooled: tuple[KeyedTensor, ...], batch: Batch, unpooled: LookedUp = ()
    ) -> tuple[Tensor, Output]:
        """The loss to differentiate and what the loop reports; in evaluation mode only the logits.

        Collective: the loss is a mean over the rows of all ranks.

        Args:
            pooled: outputs of the collections of tables that pool.
            batch: everything else of the rows.
            unpooled: outputs of those that do not.
        """
        with torch.autocast(batch.dense.device.type, torch.bfloat16, enabled=self.is_bf16):
            columns, auxiliary = self.ranker(pooled, batch, unpooled)
        logits, levels = self.decoder(columns.float())
        if not self.training:  # what is asked for are the logits
            none = logits.new_zeros(())
            return none, Output(none, None, self.decoder.served(logits).detach())
        targets = Targets(
            batch.labels, batch.valid, batch.weights, batch.propensity, batch.group, batch.domain
        )
        total, losses = self.objective(logits, targets, levels)
        if self.gradients is not None:
            self.gradients.watch(logits, batch.labels, losses.weights)
        for loss in auxiliary.values():
            total = total + loss.float()
        return total, Output(total.detach(), losses, logits.detach())


class TrainModel(nn.Module):
    """The collections of all tables and the leaf behind them.

    Args:
        tables: TorchRec collection of the tables whose rows belong to ids for good, unsharded and
            on the meta device; None where there are none.
        managed: the same of the managed tables.
        leaf: everything after the lookup.
        unpooled: collections of the tables that behaviours look up; None where there is no sequence.
    """

    def __init__(
        self,
        tables: nn.Module | None,
        managed: nn.Module | None,
        leaf: Leaf,
        unpooled: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.tables = tables
        self.managed = managed
        self.leaf = leaf
        self.unpooled = nn.ModuleList() if unpooled is None else unpooled

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """Loss and output of one batch."""
        pooled: tuple[KeyedTensor, ...] = ()
        if self.tables is not None:
            pooled += (self.tables(batch.sparse),)
        if self.managed is not None:
            pooled += (self.managed(batch.managed)[0],)
        unpooled = tuple([each(batch.sequence) for each in self.unpooled])
        return self.leaf(pooled, batch, unpooled)  # type: ignore[no-any-return]


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
    ranker = Ranker(spec, model, recipe).to(device)
    objective = build_objective(recipe, spec.num_domains).to(device)
    leaf = Leaf(ranker, build_decoder(recipe).to(device), objective, is_bf16)
    if recipe.train.log_negative_gradients:
        leaf.gradients = LogitGradients(recipe.task_names, device)
    meta = torch.device("meta")
    has_fixed = any(not (table.is_managed or table.behaviours) for table in spec.tables)
    tables = build_collection(spec, meta) if has_fixed else None
    return ModelParts(
        TrainModel(tables, build_managed(spec, meta), leaf, build_unpooled(spec, meta)), leaf
    )
