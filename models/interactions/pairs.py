"""All pairs of fields, each pair with weights of its own: FwFM, FvFM and FmFM.

Every one is `sum_{i<j} (e_i W_ij) * e_j` with a richer W_ij: a number times the identity, a
diagonal, a matrix. The identity itself gives the `BiInteraction` of an FM. None makes the
P = N (N - 1) / 2 products one by one: what every field j meets, `sum_{i<j} e_i W_ij`, is a product
with one upper triangular matrix over fields.

Notation: B batch, N fields, K their width, P pairs (0, 1), (0, 2), .., (1, 2), .., M copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prismrec.models.interactions.base import Interaction, flatten
from prismrec.models.layers import stacked_shape, widened
from prismrec.models.products import affine

_MATRIX_NOISE = 0.01
"""Standard deviation around the identity at which the matrices of pairs start."""
_FACTOR_NOISE = 0.1
"""Standard deviation of the factors of pairs' weights beyond the first, whose products are small."""


def pairs_of(num_fields: int) -> Tensor:
    """(2, P) int64, first and second field of every pair, row by row of the upper triangle."""
    return torch.triu_indices(num_fields, num_fields, 1)


class _Pairs(Interaction):
    """Weights of pairs, (P, ...) for each copy, and their place in a matrix over fields."""

    pairs: Tensor

    def __init__(
        self, num_fields: int, dim: int, of_pair: tuple[int, ...], copies: int | None
    ) -> None:
        super().__init__()
        self.out_dim = dim
        self.num_fields = num_fields
        pairs = pairs_of(num_fields)
        self.weight = nn.Parameter(torch.empty(stacked_shape(copies, pairs.shape[1], *of_pair)))
        self.register_buffer("pairs", pairs, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every weight 1, which is an FM."""
        nn.init.ones_(self.weight)

    def over_fields(self, num_trailing: int) -> Tensor:
        """([M,] N, N, ...) the weights of pair (i, j) at [i, j], zero where not i < j."""
        lead = self.weight.dim() - 1 - num_trailing
        trailing = self.weight.shape[lead + 1 :]
        shape = (*self.weight.shape[:lead], self.num_fields, self.num_fields, *trailing)
        first, second = self.pairs
        where = (slice(None),) * lead
        full = self.weight.new_zeros(shape)
        full[(*where, first, second)] = self.weight
        return full


class FieldWeighted(_Pairs):
    """`sum_{i<j} r_ij e_i * e_j`, one weight per pair, starting at 1.

    Source: Pan et al., Field-weighted Factorization Machines, WWW 2018.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        copies: number M of stacked inputs, or None.

    Attributes:
        weight: ([M,] P).
    """

    def __init__(self, num_fields: int, dim: int, copies: int | None = None) -> None:
        super().__init__(num_fields, dim, (), copies)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, K)."""
        met = torch.einsum("...ij,...bik->...bjk", self.over_fields(0).to(X.dtype), X)
        return (widened(met) * X).sum(-2)


class LowRankWeighted(Interaction):
    """`sum_{i<j} r_ij e_i * e_j` with `r_ij = sum_r c_r U_ri U_rj`, in O(rank N K).

    `(sum_r c_r (sum_i U_ri e_i)^2 - sum_i (sum_r c_r U_ri^2) e_i^2) / 2`, sums in float32 at least. It
    starts near r = 1: the first row of U is 1, the others a little noise.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        rank: number of rows of U.
        copies: number M of stacked inputs, or None.

    Attributes:
        factors: U, ([M,] rank, N).
        scales: c, ([M,] rank).
    """

    def __init__(self, num_fields: int, dim: int, rank: int, copies: int | None = None) -> None:
        super().__init__()
        self.out_dim = dim
        self.factors = nn.Parameter(torch.empty(stacked_shape(copies, rank, num_fields)))
        self.scales = nn.Parameter(torch.empty(stacked_shape(copies, rank)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """An FM that can leave it in every direction."""
        nn.init.normal_(self.factors, std=_FACTOR_NOISE)
        nn.init.ones_(self.scales)
        with torch.no_grad():
            self.factors[..., 0, :] = 1

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, K)."""
        X = widened(X)
        U, c = self.factors.to(X.dtype), self.scales.to(X.dtype)
        sums = torch.einsum("...rn,...bnk->...brk", U, X)
        pairs = torch.einsum("...r,...brk->...bk", c, sums.square())
        of_self = torch.einsum("...r,...rn->...n", c, U.square())
        return 0.5 * (pairs - torch.einsum("...n,...bnk->...bk", of_self, X.square()))


class FieldVectorised(_Pairs):
    """`sum_{i<j} e_i * d_ij * e_j`, one vector per pair, starting at 1.

    Source: Sun et al., FM²: Field-matrixed Factorization Machines, WWW 2021, section 3.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        copies: number M of stacked inputs, or None.

    Attributes:
        weight: ([M,] P, K).
    """

    def __init__(self, num_fields: int, dim: int, copies: int | None = None) -> None:
        super().__init__(num_fields, dim, (dim,), copies)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, K)."""
        met = torch.einsum("...ijk,...bik->...bjk", self.over_fields(1).to(X.dtype), X)
        return (widened(met) * X).sum(-2)


class FieldMatrixed(_Pairs):
    """`sum_{i<j} (e_i M_ij) * e_j`, one matrix per pair, starting near the identity.

    All pairs are one product with the (N K, N K) matrix whose block (i, j) is M_ij: twice the
    multiplications that are needed, in one kernel instead of P. Source: Sun et al., FM²:
    Field-matrixed Factorization Machines, WWW 2021, eq. 4.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        copies: number M of stacked inputs, or None.

    Attributes:
        weight: ([M,] P, K, K), M_ij of pair (i, j).
    """

    def __init__(self, num_fields: int, dim: int, copies: int | None = None) -> None:
        super().__init__(num_fields, dim, (dim, dim), copies)

    def reset_parameters(self) -> None:
        """The identity and a little noise: an FM that can leave it in every direction."""
        nn.init.normal_(self.weight, std=_MATRIX_NOISE)
        with torch.no_grad():
            self.weight.diagonal(dim1=-2, dim2=-1).add_(1)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, K)."""
        # [i, j, k, l] of the pairs to [(j, l), (i, k)], the (out, in) form of an affine map.
        blocks = self.over_fields(2).movedim((-3, -1, -4, -2), (-4, -3, -2, -1))
        met = affine(flatten(X), blocks.flatten(-2).flatten(-3, -2), None)
        return (widened(met).unflatten(-1, X.shape[-2:]) * X).sum(-2)


@dataclass(frozen=True, slots=True)
class FwFMSpec:
    """Asks for a `FieldWeighted`, or a `LowRankWeighted`.

    Args:
        rank: of the weights of pairs, or None for a free weight for each pair.
    """

    rank: int | None = None

    def build(
        self, num_fields: int, dim: int, copies: int | None
    ) -> FieldWeighted | LowRankWeighted:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        if self.rank is None:
            return FieldWeighted(num_fields, dim, copies)
        return LowRankWeighted(num_fields, dim, self.rank, copies)


@dataclass(frozen=True, slots=True)
class FvFMSpec:
    """Asks for a `FieldVectorised`."""

    def build(self, num_fields: int, dim: int, copies: int | None) -> FieldVectorised:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        return FieldVectorised(num_fields, dim, copies)


@dataclass(frozen=True, slots=True)
class FmFMSpec:
    """Asks for a `FieldMatrixed`."""

    def build(self, num_fields: int, dim: int, copies: int | None) -> FieldMatrixed:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        return FieldMatrixed(num_fields, dim, copies)
