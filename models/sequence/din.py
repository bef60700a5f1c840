"""DIN: an attention network looks at each behaviour beside the target.

Source: Deep Interest Network (arXiv:1706.06978), its released code and that of TIN.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prismrec.embeddings.jagged import row_of, seg_softmax, seg_wsum
from prismrec.models.layers import Linear, stacked_shape, widened
from prismrec.models.sequence.base import Order, SequenceModule, Widths, by_copy, by_value
from prismrec.models.sequence.dice import Dice

Activation = Literal["sigmoid", "prelu", "dice"]


@dataclass(frozen=True, slots=True)
class DINSpec:
    """What a deep interest module does.

    Args:
        hidden: widths of the attention network's layers, at least one.
        activation: behind each of them.
        pooling: "softmax" weighs by `softmax(s / sqrt d)` (the released code); "sum" by the scores s
            themselves, which keeps how strong the interest is.
    """

    hidden: tuple[int, ...] = (80, 40)
    activation: Activation = "sigmoid"
    pooling: Literal["softmax", "sum"] = "softmax"

    def build(self, widths: Widths, copies: int | None = None) -> SequenceModule:
        """See `SequenceSpec`."""
        return DIN(self, widths, copies)


class PReLU(nn.Module):
    """`x` where it is positive, `a x` elsewhere, with a slope a that is learned, 0.1 at the start.

    Args:
        copies: M, or None.
    """

    def __init__(self, copies: int | None = None) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.empty(stacked_shape(copies, 1)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Slope 0.1."""
        nn.init.constant_(self.slope, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ([M,] T, width) to the same."""
        slope = self.slope.unsqueeze(-1) if self.slope.dim() == 2 else self.slope
        return torch.where(x > 0, x, slope.to(x.dtype) * x)


class DIN(SequenceModule):
    """`s_j = MLP([v; e_j; v - e_j; v * e_j])`, `u = sum_j w_j e_j`, out `[u; u * v; log(1 + n)]`.

    The first layer is applied to v and e_j apart, `(W1 + W3) v + (W2 - W3) e_j + W4 (v * e_j)`, so that only
    the product costs a matrix product for every pair. n tells what a softmax cannot: how many
    behaviours there are.

    Args:
        spec: what it does.
        widths: of the vectors.
        copies: M, or None.
    """

    def __init__(self, spec: DINSpec, widths: Widths, copies: int | None = None) -> None:
        super().__init__()
        width = widths.representation
        layers = [4 * width, *spec.hidden]
        self.linears = nn.ModuleList(
            Linear(before, after, copies) for before, after in itertools.pairwise(layers)
        )
        self.activations = nn.ModuleList(
            _activation(spec.activation, each, copies) for each in spec.hidden
        )
        # A softmax does not see a number that is added to all of a row's scores.
        self.is_softmax = spec.pooling == "softmax"
        self.last = Linear(layers[-1], 1, copies, bias=not self.is_softmax)
        self.width = width
        self.out_dim = 2 * width + 1

    def logits(self, behaviours: Tensor, targets: Tensor, order: Order) -> Tensor:
        """The scores s, ([M,] T)."""
        rows = row_of(order.offsets, behaviours.shape[-2])
        first: Linear = self.linears[0]  # type: ignore[assignment]
        of_target, of_behaviour, of_difference, of_product = first.weight.split(self.width, -1)
        of_rows = targets.index_select(-2, rows)
        x = _product(behaviours * of_rows, of_product)
        x = x + _product(behaviours, of_behaviour - of_difference)
        x = x + _product(targets, of_target + of_difference).index_select(-2, rows)
        assert first.bias is not None
        x = self.activations[0](x + first.bias.unsqueeze(-2))
        for linear, activation in zip(self.linears[1:], self.activations[1:], strict=True):
            x = activation(linear(x))
        return widened(self.last(x).squeeze(-1))

    def forward(
        self, behaviours: Tensor, targets: Tensor, order: Order, attention: None = None
    ) -> Tensor:
        """Map behaviours ([M,] T, W) and targets ([M,] B, W) to ([M,] B, out_dim)."""
        weights = self.logits(behaviours, targets, order).movedim(-1, 0)
        if self.is_softmax:
            weights = seg_softmax(weights / math.sqrt(self.width), order.offsets)
        interest = by_copy(seg_wsum(weights, by_value(behaviours), order.offsets))
        sizes = order.offsets.diff().to(interest.dtype).log1p().unsqueeze(-1)
        sizes = sizes.expand(*interest.shape[:-1], 1)
        return torch.cat([interest, interest * targets, sizes], -1)


def _activation(kind: Activation, width: int, copies: int | None) -> nn.Module:
    if kind == "sigmoid":
        return nn.Sigmoid()
    return Dice(width, copies) if kind == "dice" else PReLU(copies)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """([M,] T, in) times ([M,] out, in): ([M,] T, out)."""
    return x @ weight.transpose(-2, -1)
