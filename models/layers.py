"""Dense building blocks that run alone or as M independent copies at once.

Notation: B batch, M copies. With `copies=None` a layer maps (B, in) to (B, out); with `copies=M`
it holds M sets of weights and maps (M, B, in) to (M, B, out) in one batched product.
Parameters live in modules without children, each with a `reset_parameters`, so that a model
built on the meta device can be initialised module by module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models.batch_norm import BatchNorm
from prismrec.models.products import affine

NormKind = Literal["layer", "batch", "none"]


def stacked_shape(copies: int | None, *shape: int) -> tuple[int, ...]:
    """The shape of a parameter, led by the number of copies if there are copies."""
    return shape if copies is None else (copies, *shape)


def widened(x: Tensor) -> Tensor:
    """`x` in at least float32; float32 and float64 come back as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Linear(nn.Module):
    """Affine map, `x W^T + b`, with the weights of each copy drawn by themselves.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        copies: number M of independent maps, or None for one map without a leading axis.
        bias: whether there is a bias b.
        init: "xavier" draws every (out, in) matrix from U(-a, a), a = sqrt(6 / (in + out));
            "zero" starts at 0. The bias starts at 0.

    Attributes:
        weight: ([M,] out, in).
        bias: ([M,] out), or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        copies: int | None = None,
        *,
        bias: bool = True,
        init: Literal["xavier", "zero"] = "xavier",
    ) -> None:
        super().__init__()
        self.copies = copies
        self.init = init
        self.weight = nn.Parameter(torch.empty(stacked_shape(copies, out_features, in_features)))
        self.bias = nn.Parameter(torch.empty(stacked_shape(copies, out_features))) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        # nn.init would read a 3-D weight as a convolution kernel and count M into the fans.
        out_features, in_features = self.weight.shape[-2:]
        bound = math.sqrt(6.0 / (in_features + out_features)) if self.init == "xavier" else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ([M,] B, in) to ([M,] B, out); one (B, in) is read by all copies."""
        if self.copies is None or x.dim() == self.weight.dim():
            return affine(x, self.weight, self.bias)
        # One product with all copies' rows: the input is read once, and so is its gradient summed.
        bias = None if self.bias is None else self.bias.flatten()
        return (
            affine(x, self.weight.flatten(0, 1), bias)
            .unflatten(-1, (self.copies, -1))
            .movedim(-2, 0)
        )


class LayerNorm(nn.Module):
    """Normalisation of every row to mean 0 and variance 1, then a scale and a shift per column.

    Args:
        width: number of columns.
        copies: number M of independent scales and shifts, or None.
        eps: added to the variance.
    """

    def __init__(self, width: int, copies: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.copies = copies
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(stacked_shape(copies, width)))
        self.bias = nn.Parameter(torch.empty(stacked_shape(copies, width)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1, shift 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ([M,] B, width) along the last axis."""
        shape = x.shape[-1:]
        if self.copies is None:
            return F.layer_norm(x, shape, self.weight, self.bias, self.eps)
        normed = F.layer_norm(x, shape, eps=self.eps)
        # bf16 activations stay bf16: a float32 scale would promote the whole tensor.
        scale, shift = self.weight.unsqueeze(1), self.bias.unsqueeze(1)
        return torch.addcmul(shift.to(normed.dtype), normed, scale.to(normed.dtype))


def build_norm(kind: NormKind, width: int, copies: int | None = None) -> nn.Module:
    """A normalisation by its recipe name.

    Args:
        kind: "layer" per row; "batch" per column over the global batch; "none" the identity.
        width: number of columns.
        copies: number M of stacked inputs, or None.

    Returns:
        A module from ([M,] B, width) to the same shape.
    """
    if kind == "layer":
        return LayerNorm(width, copies)
    return BatchNorm(width, copies) if kind == "batch" else nn.Identity()


class MLP(nn.Module):
    """Linear, normalisation, ReLU, dropout for each hidden width; nothing if there is none.

    Args:
        in_features: width of the input.
        hidden: widths of the layers.
        copies: number M of independent stacks, or None.
        dropout: probability in [0, 1) that an output is zeroed in training.
        norm: normalisation between the linear map and the ReLU.

    Attributes:
        out_dim: width of the output.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        copies: int | None = None,
        dropout: float = 0.0,
        norm: NormKind = "none",
    ) -> None:
        super().__init__()
        self.copies = copies
        widths = [in_features, *hidden]
        self.out_dim = widths[-1]
        # Batch normalisation takes a bias out again: its gradient would be rounding noise, which
        # Adam turns into steps.
        has_bias = norm != "batch"
        self.linears = nn.ModuleList(
            Linear(i, o, copies, bias=has_bias) for i, o in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(build_norm(norm, width, copies) for width in hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ([M,] B, in) to ([M,] B, out_dim); one (B, in) is read by all copies."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            # In place only on a tensor of its own: on a view, autograd would copy all of it.
            is_shared = self.copies is not None and x.dim() == 2
            x = self.dropout(F.relu(norm(linear(x)), inplace=not is_shared))
        return x


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """What an MLP is, apart from the width of its input; equal specs can be stacked.

    Args:
        hidden: widths of the layers; empty for the identity.
        dropout: probability in [0, 1).
        norm: "layer", "batch" or "none".
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    norm: NormKind = "none"

    def build(self, in_features: int, copies: int | None = None) -> MLP:
        """The module for inputs of a width, as `copies` independent stacks if given."""
        return MLP(in_features, self.hidden, copies, self.dropout, self.norm)


IDENTITY = MLPSpec()
"""No layer at all."""
