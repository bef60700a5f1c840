"""Cross networks: every layer multiplies its input by the field vectors once more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prismrec.models.interactions.base import Interaction, flatten
from prismrec.models.layers import Linear, stacked_shape


class _Cross(torch.autograd.Function):
    """`x_0 * u + x`; the gradients take one product each where those of `addcmul` take two."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, u: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x0, u)
        return torch.addcmul(x, x0, u)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0, u = ctx.saved_tensors
        return grad * u, (grad * x0).to(u.dtype), grad


def _cross(x0: Tensor, u: Tensor, x: Tensor) -> Tensor:
    """`x_0 * u + x` for three tensors of one shape."""
    if torch.jit.is_tracing():  # which would keep a call of Python's that cannot be stored
        return torch.addcmul(x, x0, u)
    crossed: Tensor = _Cross.apply(x0, u, x)  # type: ignore[no-untyped-call]
    return crossed


class CrossV1(Interaction):
    """`x_{l+1} = x_0 (w_l . x_l) + b_l + x_l` on the flattened field vectors, w_l a vector.

    With b = 0 the output is x_0 times one number per row. Source: Wang et al., Deep & Cross
    Network for Ad Click Predictions, ADKDD 2017, eq. 3.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        num_layers: number L of layers; the output has products of up to L + 1 fields.
        copies: number M of stacked inputs, or None.

    Attributes:
        weight: ([M,] L, N * K), from U(-a, a) with a = sqrt(6 / (N * K + 1)).
        bias: ([M,] L, N * K), from 0.
    """

    def __init__(
        self, num_fields: int, dim: int, num_layers: int, copies: int | None = None
    ) -> None:
        super().__init__()
        self.out_dim = num_fields * dim
        shape = stacked_shape(copies, num_layers, self.out_dim)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        bound = math.sqrt(6.0 / (self.out_dim + 1))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, N * K)."""
        x0 = x = flatten(X)
        for weight, bias in zip(self.weight.unbind(-2), self.bias.unbind(-2), strict=True):
            x = torch.addcmul(x + bias.unsqueeze(-2), x0, x @ weight.unsqueeze(-1))
        return x


class CrossV2(Interaction):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) + x_l` on the flattened field vectors, W_l a matrix.

    The K x K block of W_l at (n, i) maps field i into the space of field n before the product.
    With a rank r, `W_l = U_l V_l^T`. Source: Wang et al., DCN V2, WWW 2021, eq. 1 and 2.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        num_layers: number L of layers; the output has products of up to L + 1 fields.
        rank: rank r of each matrix, or None for full matrices.
        copies: number M of stacked inputs, or None.
    """

    def __init__(
        self,
        num_fields: int,
        dim: int,
        num_layers: int,
        rank: int | None = None,
        copies: int | None = None,
    ) -> None:
        super().__init__()
        width = self.out_dim = num_fields * dim
        self.layers = nn.ModuleList(
            Linear(width, width, copies)
            if rank is None
            else nn.Sequential(Linear(width, rank, copies, bias=False), Linear(rank, width, copies))
            for _ in range(num_layers)
        )

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, N * K)."""
        x0 = x = flatten(X)
        for layer in self.layers:
            x = _cross(x0, layer(x), x)
        return x


@dataclass(frozen=True, slots=True)
class CrossV1Spec:
    """Asks for a `CrossV1`.

    Args:
        num_layers: number of cross layers.
    """

    num_layers: int

    def build(self, num_fields: int, dim: int, copies: int | None) -> CrossV1:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        return CrossV1(num_fields, dim, self.num_layers, copies)


@dataclass(frozen=True, slots=True)
class CrossV2Spec:
    """Asks for a `CrossV2`.

    Args:
        num_layers: number of cross layers.
        rank: rank of each matrix, or None for full matrices.
    """

    num_layers: int
    rank: int | None = None

    def build(self, num_fields: int, dim: int, copies: int | None) -> CrossV2:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        return CrossV2(num_fields, dim, self.num_layers, self.rank, copies)
