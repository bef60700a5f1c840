"""What an interaction maps a field's vectors by before they meet another field's.

An interaction of pairs multiplies `e_i M_{i->j}` with e_j. The matrices, read off the weights,
give the sub-embeddings E_i M_{i->j} whose spectra `spectra.pair_abundance` takes, and how strongly
the model pairs two fields.

Notation: N field vectors of a set, K their width, M stacked copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prismrec.analysis.subject import Subject
from prismrec.models import fields_of
from prismrec.models.experts import Experts
from prismrec.models.interactions import (
    BiInteraction,
    CrossV1,
    CrossV2,
    FieldAware,
    FieldMatrixed,
    FieldVectorised,
    FieldWeighted,
    GroupedParts,
    Layered,
    LowRankWeighted,
)
from prismrec.models.interactions.base import Interaction
from prismrec.models.mixture import Branch, MixtureBranch, RankingModel


@dataclass(frozen=True, slots=True)
class PairBlocks:
    """The matrices of one interaction of one expert.

    Args:
        set_name: the set that it reads.
        expert: position of the expert in its branch, and of the branch where there are several, such
            as `0` or `1.0`.
        kind: class of the interaction.
        fields: names of the N field vectors: those of the set, then the numeric columns.
        matrices: (N, N, K, K); [i, j] is M_{i->j}, so that i adds `(e_i M_{i->j}) * e_j`, a
            vector whose sum is what counts where the interaction is symmetric.
        meets: (N, N), whether the interaction multiplies i with j.
    """

    set_name: str
    expert: str
    kind: str
    fields: tuple[str, ...]
    matrices: Tensor
    meets: Tensor

    @property
    def name(self) -> str:
        """What plots call it."""
        return f"set {self.set_name}, expert {self.expert}, {self.kind}"

    def by_names(self) -> dict[tuple[str, str], Tensor]:
        """M_{i->j} by the names of i and j, of those that meet."""
        return {
            (self.fields[i], self.fields[j]): self.matrices[i, j]
            for i, j in self.meets.nonzero().tolist()
        }

    def norms(self) -> Tensor:
        """(N, N) float64 Frobenius norms over sqrt(K), 1 for the identity; NaN where none meet."""
        found = self.matrices.double().flatten(2).norm(dim=-1) / math.sqrt(self.matrices.shape[-1])
        return found.masked_fill(~self.meets, math.nan)


def pair_blocks(subject: Subject) -> list[PairBlocks]:
    """The matrices of every interaction of pairs that reads a set, in the order of the experts.

    Empty for models whose fields meet inside layers only, and for those from outside the package.
    """
    if not isinstance(subject.model, RankingModel):
        return []
    fields = fields_of(subject.recipe, subject.spec)
    branches = list(subject.model.branches)
    found: list[PairBlocks] = []
    for number, branch in enumerate(branches):
        lead = f"{number}." if len(branches) > 1 else ""
        of_branch = []
        for at, set_index, interaction, matrices in _of_experts(_lowest(branch)):
            named = PairBlocks(
                set_name=fields.sets[set_index],
                expert=f"{lead}{at}",
                kind=type(interaction).__name__,
                fields=fields.names_of(set_index),
                matrices=matrices,
                meets=_meets(interaction, matrices.shape[0]),
            )
            of_branch.append((at, named))
        found += [each for _, each in sorted(of_branch, key=lambda pair: pair[0])]
    return found


def pair_matrices(interaction: nn.Module, num_fields: int, dim: int) -> Tensor | None:
    """M_{i->j} ([M,] N, N, K, K) of an interaction, zero where i and j do not meet; None of others.

    Of the ones with many layers it is the first. A symmetric one has M_{j->i} = M_{i->j}^T and its
    output sums up to half of that of all ordered pairs.
    """
    read = _MATRICES.get(type(interaction))
    with torch.no_grad():
        return None if read is None else read(interaction, num_fields, dim).detach()


def _lowest(branch: nn.Module) -> Experts:
    """The experts that read the sets."""
    if isinstance(branch, MixtureBranch):
        return branch.extraction.layers[0].experts  # type: ignore[return-value]
    assert isinstance(branch, Branch)
    return branch.experts


def _of_experts(experts: Experts) -> Iterator[tuple[int, int, Interaction, Tensor]]:
    """Position of each expert, its set, an interaction and its matrices (N, N, K, K)."""
    for plan, group in zip(experts.plans, experts.groups, strict=True):
        num_fields, dim = plan.shape
        for interaction in group.interactions:  # type: ignore[union-attr]
            stacked = pair_matrices(interaction, num_fields, dim) if num_fields > 1 else None
            if stacked is None:
                continue
            # Without weights of their own all copies have the same.
            stacked = stacked.expand(len(plan.experts), num_fields, num_fields, dim, dim)
            each = len(plan.experts) // len(plan.set_indices)
            for row, expert in enumerate(plan.experts):
                yield expert, plan.set_indices[row // each], interaction, stacked[row]


def _meets(interaction: Interaction, num_fields: int) -> Tensor:
    every = torch.ones(num_fields, num_fields, dtype=torch.bool)
    if isinstance(interaction, Layered):
        return interaction.mask.bool()
    if isinstance(interaction, CrossV1 | CrossV2):
        return every
    return every.fill_diagonal_(False)


def _identity(weights: Tensor, dim: int) -> Tensor:
    """(..., N, N) numbers as multiples of the identity (..., N, N, K, K)."""
    eye = torch.eye(dim, dtype=weights.dtype, device=weights.device)
    return weights.unsqueeze(-1).unsqueeze(-1) * eye


def _off_diagonal(num_fields: int, like: Tensor) -> Tensor:
    return torch.ones(num_fields, num_fields, dtype=like.dtype, device=like.device).fill_diagonal_(
        0
    )


def _both_ways(upper: Tensor) -> Tensor:
    """(..., N, N, K, K) of i < j with the transposed ones of j < i."""
    return upper + upper.transpose(-3, -4).mT


def _fm(interaction: BiInteraction, num_fields: int, dim: int) -> Tensor:
    return _identity(_off_diagonal(num_fields, torch.zeros(())), dim)


def _fwfm(interaction: FieldWeighted, num_fields: int, dim: int) -> Tensor:
    return _both_ways(_identity(interaction.over_fields(0), dim))


def _low_rank(interaction: LowRankWeighted, num_fields: int, dim: int) -> Tensor:
    U, c = interaction.factors, interaction.scales
    r = torch.einsum("...r,...ri,...rj->...ij", c, U, U)
    return _identity(r * _off_diagonal(num_fields, r), dim)


def _fvfm(interaction: FieldVectorised, num_fields: int, dim: int) -> Tensor:
    return _both_ways(torch.diag_embed(interaction.over_fields(1)))


def _fmfm(interaction: FieldMatrixed, num_fields: int, dim: int) -> Tensor:
    return _both_ways(interaction.over_fields(2))


def _ffm(interaction: FieldAware, num_fields: int, dim: int) -> Tensor:
    """The slot of i for j, put where the slot of j for i is."""
    first, second = interaction.pairs
    slots = torch.zeros(num_fields, num_fields, dtype=torch.int64)
    slots[first, second], slots[second, first] = second - 1, first
    return _slots(slots, interaction.out_dim, dim)


def _gwpfm(interaction: GroupedParts, num_fields: int, dim: int) -> Tensor:
    parts, groups = interaction.own_part, interaction.own_group
    r = (interaction.weight + interaction.weight.mT) / 2
    r = r[..., groups[:, None], groups[None, :]]
    slots = parts.expand(num_fields, num_fields)
    blocks = _slots(slots, interaction.out_dim, dim).to(r)
    return (r * _off_diagonal(num_fields, r)).unsqueeze(-1).unsqueeze(-1) * blocks


def _slots(slots: Tensor, width: int, dim: int) -> Tensor:
    """(N, N, K, K) that move slot s_{ij} of i to slot s_{ji}, by s (N, N); zero for i = j."""
    num_fields = len(slots)
    chosen = torch.nn.functional.one_hot(slots, dim // width).float()
    moves = torch.einsum("ija,jib->ijab", chosen, chosen)
    moves = moves * _off_diagonal(num_fields, moves).unsqueeze(-1).unsqueeze(-1)
    eye = torch.eye(width)
    return torch.einsum("ijab,kl->ijakbl", moves, eye).reshape(num_fields, num_fields, dim, dim)


def _cross_v1(interaction: CrossV1, num_fields: int, dim: int) -> Tensor:
    """`x_0 (w . x)`: every vector becomes one number, the same for all partners."""
    w = interaction.weight[..., 0, :].unflatten(-1, (num_fields, dim))
    return w[..., :, None, :, None].expand(*w.shape[:-2], num_fields, num_fields, dim, dim)


def _cross_v2(interaction: CrossV2, num_fields: int, dim: int) -> Tensor:
    first: Any = interaction.layers[0]
    if isinstance(first, nn.Sequential):
        into: Any = first[0]
        out: Any = first[1]
        weight = out.weight @ into.weight
    else:
        weight = first.weight
    blocks = weight.unflatten(-1, (num_fields, dim)).unflatten(-3, (num_fields, dim))
    # [(n, l), (i, k)] of an affine map to [i, n, k, l].
    return blocks.movedim((-2, -4, -1, -3), (-4, -3, -2, -1))  # type: ignore[no-any-return]


def _layered(interaction: Layered, num_fields: int, dim: int) -> Tensor:
    mask, function = interaction.mask, interaction.spec.function
    if function == "naive":
        return _identity(mask, dim)
    weight = interaction.weights[0]
    if function == "weighted":
        return _identity(weight * mask, dim)
    if function == "diagonal":
        return torch.diag_embed(weight * mask.unsqueeze(-1))
    return weight * mask.unsqueeze(-1).unsqueeze(-1)


_MATRICES: dict[type, Callable[[Any, int, int], Tensor]] = {
    BiInteraction: _fm,
    FieldWeighted: _fwfm,
    LowRankWeighted: _low_rank,
    FieldVectorised: _fvfm,
    FieldMatrixed: _fmfm,
    FieldAware: _ffm,
    GroupedParts: _gwpfm,
    CrossV1: _cross_v1,
    CrossV2: _cross_v2,
    Layered: _layered,
}
