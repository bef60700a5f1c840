"""Experts: interactions on one embedding set, and a projection to a width all experts share.

Notation: B batch, M experts, N fields that a set covers and numeric columns, K width of the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prismrec.models.inputs import SetShape
from prismrec.models.interactions.base import Interaction, InteractionSpec
from prismrec.models.layers import IDENTITY, MLPSpec


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One expert: `h = MLP([I_1(X); I_2(X); ...])` for the field vectors X of one set.

    Args:
        set_index: position of its embedding set.
        interactions: the interactions I, at least one.
        projection: the layers behind them; without layers the vector is used as it is.
    """

    set_index: int
    interactions: tuple[InteractionSpec, ...]
    projection: MLPSpec = IDENTITY


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Experts of equal structure on sets of equal shape, which run as one stack.

    Args:
        experts: positions of the experts, ascending.
        set_indices: the embedding set of each of them.
        shape: shape of those sets.
    """

    experts: tuple[int, ...]
    set_indices: tuple[int, ...]
    shape: SetShape


def plan_groups(experts: Sequence[ExpertSpec], shapes: Sequence[SetShape]) -> list[GroupPlan]:
    """Put experts that can be stacked together, in the order of each group's first expert.

    Sets of equal shape may cover different fields: each expert has weights of its own.

    Args:
        experts: the experts.
        shapes: shape of each embedding set.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for position, expert in enumerate(experts):
        key = (expert.interactions, expert.projection, shapes[expert.set_index])
        alike.setdefault(key, []).append(position)
    return [
        GroupPlan(
            tuple(positions),
            tuple(experts[position].set_index for position in positions),
            shapes[experts[positions[0]].set_index],
        )
        for positions in alike.values()
    ]


class ExpertGroup(nn.Module):
    """M experts of equal structure, each with weights of its own, run as one.

    Args:
        spec: the structure they share.
        shape: N and K of their sets.
        copies: number M of experts, or None for a single one without a leading axis.

    Attributes:
        out_dim: width H of an expert's output.
    """

    def __init__(self, spec: ExpertSpec, shape: SetShape, copies: int | None) -> None:
        super().__init__()
        num_fields, dim = shape
        built: list[Interaction] = [
            each.build(num_fields, dim, copies) for each in spec.interactions
        ]
        self.interactions = nn.ModuleList(built)
        self.projection = spec.projection.build(sum(each.out_dim for each in built), copies)
        self.out_dim = self.projection.out_dim

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, H)."""
        vectors = [interaction(X) for interaction in self.interactions]
        return self.projection(vectors[0] if len(vectors) == 1 else torch.cat(vectors, -1))
