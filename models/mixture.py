"""The one composition every model of the zoo is a point of.

Embedding sets go to experts, the experts of a branch are merged, a tower turns what they found
into logits, and the logits of all branches add up. Notation: B batch, N sparse fields, N_m those of
them that set m covers, D numeric columns, d_m width of set m, M experts, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prismrec.models.experts import ExpertGroup, ExpertSpec, GroupPlan, plan_groups
from prismrec.models.gates import SoftmaxGate, mix
from prismrec.models.inputs import Fields, Inputs, SetShape
from prismrec.models.interactions import flatten
from prismrec.models.layers import IDENTITY, MLPSpec, widened
from prismrec.models.towers import SharedTower, SumHead, TaskTowers

Merge = Literal["concat", "mean", "gate"]

NUMERIC_NORM = 0.1
"""Expected length of a numeric field's vector at the value 1, at the start: of the order of an
embedding row's, so that neither kind of field drowns the other."""


@dataclass(frozen=True, slots=True)
class BranchSpec:
    """Experts whose outputs meet, and the tower above them.

    Args:
        experts: at least one; of equal output width unless merged by "concat".
        merge: "concat" puts the experts' vectors side by side, "mean" averages them, "gate"
            weighs them by a softmax per task, and then each task has a tower of its own.
        tower: hidden layers of the tower; None makes the logit the sum of the merged vector.
    """

    experts: tuple[ExpertSpec, ...]
    merge: Merge = "concat"
    tower: MLPSpec | None = IDENTITY


@dataclass(frozen=True, slots=True)
class Composition:
    """A model: the logits of its branches, a bias, and first-order weights if `wide`, added up.

    Args:
        branches: may be empty, which leaves the first-order term alone.
        wide: whether every id and numeric column has a weight of its own per task.
    """

    branches: tuple[BranchSpec, ...]
    wide: bool = False


class NumericFields(nn.Module):
    """Numeric columns as fields of one set: the value times a learned vector.

    Args:
        num_dense: number D of columns.
        dim: width K of the set.
    """

    def __init__(self, num_dense: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_dense, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        nn.init.normal_(self.weight, std=NUMERIC_NORM / math.sqrt(self.weight.shape[1]))

    def forward(self, dense: Tensor) -> Tensor:
        """Map (B, D) to (B, D, K)."""
        return dense.unsqueeze(-1) * self.weight


class FirstOrder(nn.Module):
    """Bias per task and, in wide models, weights of the numeric columns; all start at 0.

    Args:
        num_dense: number D of weighted numeric columns, 0 for none.
        num_tasks: T.
    """

    weight: nn.Parameter | None

    def __init__(self, num_dense: int, num_tasks: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(num_tasks))
        self.weight = nn.Parameter(torch.empty(num_dense, num_tasks)) if num_dense else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Everything to 0."""
        nn.init.zeros_(self.bias)
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def forward(self, linear: Tensor | None, dense: Tensor) -> Tensor:
        """Sum the ids' weights (B, N, T), if any, and the weighted columns (B, D): (B, T) or (T,)."""
        logits: Tensor = self.bias
        if linear is not None:
            logits = logits + widened(linear).sum(1)
        if self.weight is not None:
            # Not a matrix product: autocast would round the values to bfloat16.
            logits = logits + (dense.unsqueeze(-1) * self.weight).sum(1)
        return logits


class Branch(nn.Module):
    """One branch of a composition.

    Args:
        spec: what it is.
        fields: shapes of the model's inputs.

    Attributes:
        stacks: the stacks of sets it reads, each a tuple of set positions.

    Raises:
        ValueError: experts of unequal width are to be averaged or gated, or gated experts have
            no tower.
    """

    gate: SoftmaxGate | None

    def __init__(self, spec: BranchSpec, fields: Fields) -> None:
        super().__init__()
        self.merge = spec.merge
        shapes = fields.set_shapes
        self.plans = plan_groups(spec.experts, shapes)
        groups = [
            ExpertGroup(spec.experts[plan.experts[0]], plan.shape, copies_of(plan.set_indices))
            for plan in self.plans
        ]
        self.groups = nn.ModuleList(groups)
        self.rows = _rows_in_expert_order(self.plans)
        self.stacks = [plan.set_indices for plan in self.plans]
        self.gate = None
        if spec.merge == "gate":
            self.gate_stacks = _sets_by_shape(spec.experts, shapes)
            self.gate = SoftmaxGate(
                [(copies_of(stack), math.prod(shapes[stack[0]])) for stack in self.gate_stacks],
                len(spec.experts),
                fields.num_tasks,
            )
            self.stacks += [stack for stack in self.gate_stacks if stack not in self.stacks]
        self.tower = _tower(spec, self._merged_width(groups), fields.num_tasks)

    def _merged_width(self, groups: Sequence[ExpertGroup]) -> int:
        widths = [group.out_dim for group in groups]
        if self.merge == "concat":
            return sum(w * len(p.experts) for w, p in zip(widths, self.plans, strict=True))
        if len(set(widths)) > 1:
            raise ValueError(
                f"experts merged by '{self.merge}' must have one output width, got {widths}"
            )
        return widths[0]

    def forward(self, stacks: dict[tuple[int, ...], Tensor]) -> Tensor:
        """Map stacks of field vectors, by the positions of their sets, to logits (B, T)."""
        outputs = [
            group(stacks[plan.set_indices])
            for group, plan in zip(self.groups, self.plans, strict=True)
        ]
        if self.merge == "concat":
            vectors = self._in_expert_order(outputs)
            return self.tower(vectors[0] if len(vectors) == 1 else torch.cat(vectors, -1))
        experts = outputs[0] if len(outputs) == 1 else torch.stack(self._in_expert_order(outputs))
        if experts.dim() == 2:
            experts = experts.unsqueeze(0)
        if self.gate is None:
            return self.tower(experts.mean(0))
        gates = self.gate([flatten(stacks[stack]) for stack in self.gate_stacks])
        return self.tower(mix(experts, gates))

    def _in_expert_order(self, outputs: list[Tensor]) -> list[Tensor]:
        return [
            outputs[group] if outputs[group].dim() == 2 else outputs[group][row]
            for group, row in self.rows
        ]


class RankingModel(nn.Module):
    """A composition made of modules; it holds everything but the embedding tables.

    Args:
        composition: what the model is.
        fields: shapes of its inputs.
    """

    def __init__(self, composition: Composition, fields: Fields) -> None:
        super().__init__()
        self.wide = composition.wide
        self.first_order = FirstOrder(fields.num_dense if self.wide else 0, fields.num_tasks)
        branches = [Branch(spec, fields) for spec in composition.branches]
        self.branches = nn.ModuleList(branches)
        self.stacks = sorted({stack for branch in branches for stack in branch.stacks})
        used = sorted({index for stack in self.stacks for index in stack})
        self.numeric = nn.ModuleDict(
            {str(m): NumericFields(fields.num_dense, fields.set_dims[m]) for m in used}
            if fields.num_dense
            else {}
        )

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of one batch.

        Args:
            inputs: one batch. A model without branches reads none of its sets; first-order
                weights are there if the model is `wide`.

        Returns:
            Logits (B, T), float32 under autocast, and the auxiliary losses by name, each a
            scalar; there are none in this composition.

        Raises:
            ValueError: first-order weights are missing in a wide model or given to another.
        """
        if (inputs.linear is not None) != self.wide:
            raise ValueError(
                f"linear must be {'a (B, N, T) tensor' if self.wide else 'None'} for this model, "
                f"got {'None' if inputs.linear is None else 'a tensor'}"
            )
        logits = self.first_order(inputs.linear, inputs.dense)
        stacks = {stack: self._stack(stack, inputs) for stack in self.stacks}
        for branch in self.branches:
            logits = logits + branch(stacks)
        return logits, {}

    def _stack(self, indices: tuple[int, ...], inputs: Inputs) -> Tensor:
        """Field vectors of one set (B, N_m + D, K), or of M sets as one (M, B, N_m + D, K)."""
        parts: list[Tensor] = []
        for index in indices:
            parts.append(inputs.sets[index])
            if self.numeric:
                parts.append(self.numeric[str(index)](inputs.dense))
        if len(parts) == 1:
            return parts[0].contiguous()
        # One copy for all sets: side by side along the fields, then seen as a stack.
        joined = torch.cat(parts, 1)
        if len(indices) == 1:
            return joined
        return joined.unflatten(1, (len(indices), -1)).transpose(0, 1)


def copies_of(stack: Sequence[int]) -> int | None:
    """The `copies` of a module that reads a stack of sets: None for a single set."""
    return None if len(stack) == 1 else len(stack)


def _rows_in_expert_order(plans: Sequence[GroupPlan]) -> list[tuple[int, int]]:
    """For each expert, its group and its row there."""
    rows = {
        expert: (group, row)
        for group, plan in enumerate(plans)
        for row, expert in enumerate(plan.experts)
    }
    return [rows[expert] for expert in sorted(rows)]


def _sets_by_shape(
    experts: Sequence[ExpertSpec], shapes: Sequence[SetShape]
) -> list[tuple[int, ...]]:
    """The sets that experts read, each once, those of equal shape together."""
    by_shape: dict[SetShape, list[int]] = {}
    for index in sorted({expert.set_index for expert in experts}):
        by_shape.setdefault(shapes[index], []).append(index)
    return [tuple(indices) for indices in by_shape.values()]


def _tower(spec: BranchSpec, in_features: int, num_tasks: int) -> nn.Module:
    if spec.merge == "gate":
        if spec.tower is None:
            raise ValueError("gated experts need a tower: their mix differs by task")
        return TaskTowers(in_features, spec.tower, num_tasks)
    if spec.tower is None:
        return SumHead(in_features, num_tasks)
    return SharedTower(in_features, spec.tower, num_tasks)
