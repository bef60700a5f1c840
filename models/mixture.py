"""The one composition every model of the zoo is a point of.

Embedding sets go to experts; the experts of a branch are merged, or weighed by gates for each task;
towers turn what they found into logits; and the logits of all branches add up. Notation: B batch, N
sparse fields, N_m those of them that set m covers, D numeric columns, d_m width of set m, M experts,
T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prismrec.models.decorrelation import Decorrelation, DecorrelationSpec
from prismrec.models.domains import build_towers
from prismrec.models.experts import Experts, ExpertSpec, GroupPlan, read_by_experts
from prismrec.models.extraction import Extraction, LayerSpec
from prismrec.models.inputs import Fields, Inputs
from prismrec.models.layers import IDENTITY, MLPSpec, widened
from prismrec.models.numeric import numeric_fields
from prismrec.models.sequence.base import SequenceSpec
from prismrec.models.sequence.sources import SequenceVectors
from prismrec.models.sources import SourcePlan, plan_sources
from prismrec.models.towers import SharedTower, SumHead


@dataclass(frozen=True, slots=True)
class BranchSpec:
    """Experts whose outputs meet once for all tasks, and the tower above them.

    Args:
        experts: at least one; of equal output width unless merged by "concat".
        merge: "concat" puts the experts' vectors side by side, "mean" averages them.
        tower: hidden layers of the tower; None makes the logit the sum of the merged vector.
    """

    experts: tuple[ExpertSpec, ...]
    merge: Literal["concat", "mean"] = "concat"
    tower: MLPSpec | None = IDENTITY

    def together(self, plan: SourcePlan) -> list[tuple[int, ...]]:
        """The sources that it reads at once."""
        return read_by_experts(self.experts, plan)

    @property
    def readers(self) -> set[int]:
        """The sets whose experts read sequences."""
        return {each.set_index for each in self.experts if each.reads_sequences}


@dataclass(frozen=True, slots=True)
class MixtureSpec:
    """Layers of experts behind gates, and a tower for each task.

    Args:
        layers: at least one, the lowest first; see `LayerSpec`.
        tower: hidden layers of each tower.
        decorrelation: auxiliary loss on the lowest layer's experts, or None.
        num_domains: number of domains, each with towers of its own; 0 for towers of all rows.
    """

    layers: tuple[LayerSpec, ...]
    tower: MLPSpec = IDENTITY
    decorrelation: DecorrelationSpec | None = None
    num_domains: int = 0

    def together(self, plan: SourcePlan) -> list[tuple[int, ...]]:
        """The sources that its lowest layer reads at once."""
        return self.layers[0].together(plan)

    @property
    def readers(self) -> set[int]:
        """The sets whose experts read sequences."""
        return {each.set_index for each in self.layers[0].experts if each.reads_sequences}


@dataclass(frozen=True, slots=True)
class Composition:
    """A model: the logits of its branches, a bias, and first-order weights if `wide`, added up.

    Args:
        branches: may be empty, which leaves the first-order term alone.
        wide: whether every id and numeric column has a weight of its own per task.
        sequence: the module that reads each sequence, one for each set whose experts read sequences;
            None where none do.
    """

    branches: tuple[BranchSpec | MixtureSpec, ...]
    wide: bool = False
    sequence: SequenceSpec | None = None


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
    """One branch of a composition whose tasks share what the experts found.

    Args:
        spec: what it is.
        plan: how the sets are stacked.
        num_tasks: T.

    Raises:
        ValueError: experts of unequal width are to be averaged.
    """

    def __init__(self, spec: BranchSpec, plan: SourcePlan, num_tasks: int) -> None:
        super().__init__()
        self.merge = spec.merge
        self.experts = Experts(spec.experts, plan)
        widths = self.experts.widths
        if self.merge == "mean" and len(set(widths)) > 1:
            raise ValueError(
                f"experts merged by 'mean' must have one output width, got {sorted(set(widths))}"
            )
        width = sum(widths) if self.merge == "concat" else widths[0]
        self.tower: nn.Module
        if spec.tower is None:
            self.tower = SumHead(width, num_tasks)
        else:
            self.tower = SharedTower(width, spec.tower, num_tasks)
        self.places = _places(self.experts.plans)

    def forward(self, stacks: Sequence[Tensor], inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the stacks of sets to logits (B, T); there is no auxiliary loss."""
        if self.merge == "mean":
            return self.tower(self.experts.stacked(stacks).mean(0)), {}
        outputs = self.experts(stacks)
        vectors = [outputs[group][row] for group, row in self.places]
        return self.tower(vectors[0] if len(vectors) == 1 else torch.cat(vectors, -1)), {}


class MixtureBranch(nn.Module):
    """One branch of a composition whose tasks weigh the experts by gates, and have towers.

    Args:
        spec: what it is.
        plan: how the sets are stacked.
        num_tasks: T.

    Raises:
        ValueError: see `Extraction`.
    """

    def __init__(self, spec: MixtureSpec, plan: SourcePlan, num_tasks: int) -> None:
        super().__init__()
        self.extraction = Extraction(spec.layers, plan, num_tasks)
        self.tower = build_towers(self.extraction.out_dim, spec.tower, num_tasks, spec.num_domains)
        self.decorrelation: Decorrelation | None = None
        if spec.decorrelation is not None:
            self.decorrelation = Decorrelation(
                spec.decorrelation, len(spec.layers[0].experts), self.extraction.expert_dim
            )

    def forward(self, stacks: Sequence[Tensor], inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the stacks of sets to logits (B, T) and, in training, the auxiliary losses by name."""
        mixes, experts = self.extraction(stacks, inputs)
        losses = {}
        if self.decorrelation is not None and self.training:
            losses["decorrelation"] = self.decorrelation(experts, inputs.counted)
        return self.tower(mixes, inputs), losses


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
        readers = {source for branch in composition.branches for source in branch.readers}
        self.sequences: SequenceVectors | None = None
        if composition.sequence is not None:
            self.sequences = SequenceVectors(composition.sequence, fields, readers)
        widths = {} if self.sequences is None else self.sequences.widths
        self.plan = _plan(composition.branches, fields, widths)
        self.branches = nn.ModuleList(
            Branch(spec, self.plan, fields.num_tasks)
            if isinstance(spec, BranchSpec)
            else MixtureBranch(spec, self.plan, fields.num_tasks)
            for spec in composition.branches
        )
        self.numeric = nn.ModuleDict(
            {
                str(m): numeric_fields(fields.numeric_specs, fields.set_dims[m])
                for m in self.plan.sources
                if m < len(fields.set_dims)
            }
            if fields.num_dense
            else {}
        )

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of one batch.

        Args:
            inputs: one batch. A model without branches reads none of its sets; first-order
                weights are there if the model is `wide`.

        Returns:
            Logits (B, T), float32 under autocast, and in training the auxiliary losses by name,
            each a scalar.

        Raises:
            ValueError: first-order weights are missing in a wide model or given to another.
        """
        if (inputs.linear is not None) != self.wide:
            raise ValueError(
                f"linear must be {'a (B, N, T) tensor' if self.wide else 'None'} for this model, "
                f"got {'None' if inputs.linear is None else 'a tensor'}"
            )
        logits = self.first_order(inputs.linear, inputs.dense)
        vectors = {} if self.sequences is None else self.sequences(inputs.sequences)
        vectors = {self.plan.beside[m]: each for m, each in vectors.items()}
        stacks = [self._stack(stack, inputs, vectors) for stack in self.plan.stacks]
        losses: dict[str, Tensor] = {}
        for branch in self.branches:
            of_branch, auxiliary = branch(stacks, inputs)
            logits = logits + of_branch
            losses |= auxiliary
        return logits, losses

    def _stack(
        self, indices: tuple[int, ...], inputs: Inputs, vectors: dict[int, Tensor]
    ) -> Tensor:
        """Field vectors of S sets of one shape, (S, B, N_m + D, K), or of what was made of their sequences."""
        if indices[0] in vectors:
            return torch.stack([vectors[index] for index in indices]).unsqueeze(2)
        parts: list[Tensor] = []
        for index in indices:
            parts.append(inputs.sets[index])
            if self.numeric:
                parts.append(self.numeric[str(index)](inputs.dense))
        if len(parts) == 1:
            return parts[0].contiguous().unsqueeze(0)
        # One copy for all sets: side by side along the fields, then seen as a stack.
        return torch.cat(parts, 1).unflatten(1, (len(indices), -1)).transpose(0, 1)


def _plan(
    branches: Sequence[BranchSpec | MixtureSpec], fields: Fields, widths: dict[int, int]
) -> SourcePlan:
    """The sets that are read, and behind all sets what is made of their sequences.

    Args:
        branches: what reads them.
        fields: shapes of the inputs.
        widths: by set, the width of what is made of the sequences.
    """
    beside = {m: len(fields.set_dims) + at for at, m in enumerate(widths)}
    shapes = (*fields.set_shapes, *((1, width) for width in widths.values()))
    plan = SourcePlan(shapes, (), beside)
    together = [each for branch in branches for each in branch.together(plan)]
    read = {source for each in together for source in each}
    of_sets = plan_sources(shapes, read - set(beside.values()), together)
    of_sequences = plan_sources(shapes, beside.values(), together)
    return SourcePlan(shapes, (*of_sets.stacks, *of_sequences.stacks), beside)


def _places(plans: Sequence[GroupPlan]) -> list[tuple[int, int]]:
    """For each expert, its group and its row there."""
    places = {
        expert: (group, row)
        for group, plan in enumerate(plans)
        for row, expert in enumerate(plan.experts)
    }
    return [places[expert] for expert in sorted(places)]
