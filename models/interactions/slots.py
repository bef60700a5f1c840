"""Fields whose vector differs by whom they meet: FFM and GwPFM.

A field's vector of width K = S k is S slots of width k, and which slot is used depends on the
partner. Notation: B batch, N fields, S slots, k width of a slot, M copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prismrec.models.interactions.base import Interaction
from prismrec.models.interactions.pairs import pairs_of
from prismrec.models.layers import stacked_shape, widened


def slot_width(dim: int, slots: int, what: str) -> int:
    """Width k of each of `slots` slots in a vector of width `dim`.

    Raises:
        ValueError: the vector cannot be cut into so many equal slots.
    """
    if slots < 1 or dim % slots:
        raise ValueError(
            f"{what} cuts a field's vector into {slots} equal slots, which a width of {dim} does "
            f"not allow; use a multiple of {slots}"
        )
    return dim // slots


class FieldAware(Interaction):
    """`sum_{i<j} v_{i,j} * v_{j,i}`, v_{i,j} the slot of field i for partner j.

    A field has no slot for itself: slot s of field i is for partner s where s < i, else s + 1.
    Source: Juan et al., Field-aware Factorization Machines, RecSys 2016.

    Args:
        num_fields: number N of fields; there are N - 1 slots.
        dim: width K = (N - 1) k of a field's vector.
    """

    pairs: Tensor

    def __init__(self, num_fields: int, dim: int) -> None:
        super().__init__()
        self.out_dim = slot_width(dim, num_fields - 1, "ffm")
        self.register_buffer("pairs", pairs_of(num_fields), persistent=False)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, (N - 1) k) to ([M,] B, k)."""
        V = X.unflatten(-1, (-1, self.out_dim))
        first, second = self.pairs
        return (widened(V[..., first, second - 1, :]) * V[..., second, first, :]).sum(-2)


class GroupedParts(Interaction):
    """`sum_{i<j} r_{g(i),g(j)} v_{i,p(j)} * v_{j,p(i)}`: parts choose the slot, groups the weight.

    An FFM whose partners share slots by part, and an FwFM whose pairs share weights by group; the
    sum over pairs is taken over sums per part and group. r starts at 1 and is symmetric.

    Args:
        parts: the part p(i) of every field, 0..S-1; there is a slot for each part.
        groups: the group g(i) of every field, 0..G-1.
        dim: width K = S k of a field's vector.
        copies: number M of stacked inputs, or None.

    Attributes:
        weight: ([M,] G, G); its symmetric part is r.
    """

    member: Tensor
    own_part: Tensor
    own_group: Tensor

    def __init__(
        self, parts: tuple[int, ...], groups: tuple[int, ...], dim: int, copies: int | None = None
    ) -> None:
        super().__init__()
        self.num_parts, self.num_groups = max(parts) + 1, max(groups) + 1
        self.out_dim = slot_width(dim, self.num_parts, "gwpfm")
        self.weight = nn.Parameter(
            torch.empty(stacked_shape(copies, self.num_groups, self.num_groups))
        )
        place = torch.tensor(parts) * self.num_groups + torch.tensor(groups)
        member = nn.functional.one_hot(place, self.num_parts * self.num_groups).float()
        self.register_buffer("member", member, persistent=False)
        self.register_buffer("own_part", torch.tensor(parts), persistent=False)
        self.register_buffer("own_group", torch.tensor(groups), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every weight 1."""
        nn.init.ones_(self.weight)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, S k) to ([M,] B, k)."""
        V = widened(X).unflatten(-1, (self.num_parts, self.out_dim))
        r = ((self.weight + self.weight.mT) / 2).to(V.dtype)
        # sums[a, g, c]: fields of part a and group g, their slots for part c.
        sums = torch.einsum("nq,...nsk->...qsk", self.member.to(V.dtype), V)
        sums = sums.unflatten(-3, (self.num_parts, self.num_groups))
        weighted = torch.einsum("...gh,...bahck->...bagck", r, sums)
        pairs = (sums * weighted.transpose(-4, -2)).sum((-4, -3, -2))
        own = V[..., torch.arange(len(self.own_part), device=V.device), self.own_part, :]
        of_self = r.diagonal(dim1=-2, dim2=-1)[..., self.own_group]
        return 0.5 * (pairs - torch.einsum("...n,...bnk->...bk", of_self, own.square()))


@dataclass(frozen=True, slots=True)
class FFMSpec:
    """Asks for a `FieldAware`."""

    def build(self, num_fields: int, dim: int, copies: int | None) -> FieldAware:
        """The interaction; it has no weights, so copies need nothing more."""
        return FieldAware(num_fields, dim)


@dataclass(frozen=True, slots=True)
class GwPFMSpec:
    """Asks for a `GroupedParts`.

    Args:
        parts: the part of every field.
        groups: the group of every field.
    """

    parts: tuple[int, ...]
    groups: tuple[int, ...]

    def build(self, num_fields: int, dim: int, copies: int | None) -> GroupedParts:
        """The interaction for vectors of width K = `dim`.

        Raises:
            ValueError: the maps are not of N = `num_fields` fields.
        """
        if not len(self.parts) == len(self.groups) == num_fields:
            raise ValueError(
                f"gwpfm needs a part and a group for each of {num_fields} fields, got "
                f"{len(self.parts)} parts and {len(self.groups)} groups"
            )
        return GroupedParts(self.parts, self.groups, dim, copies)
