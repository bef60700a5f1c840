"""Compressed interaction network, the explicit half of xDeepFM."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models.interactions.base import Interaction
from prismrec.models.layers import stacked_shape, widened


class CIN(Interaction):
    """`X^l_h = act(sum_{i,j} C^l_{h,i,j} X^{l-1}_i * X^0_j + b_h)`; the output has every map's sum.

    Map h of layer l weighs all products of the previous maps with the fields; with the identity as
    activation layer l holds products of l + 1 fields. Source: Lian et al., xDeepFM, KDD 2018, eq. 6.

    Args:
        num_fields: number N of fields.
        layer_maps: number H_l of maps of each layer.
        activation: "identity" or "relu".
        copies: number M of stacked inputs, or None.

    Attributes:
        weights: C of each layer, ([M,] H_l, H_{l-1} N).
        biases: b of each layer, ([M,] H_l).
    """

    def __init__(
        self,
        num_fields: int,
        layer_maps: tuple[int, ...],
        activation: Literal["identity", "relu"] = "identity",
        copies: int | None = None,
    ) -> None:
        super().__init__()
        self.out_dim = sum(layer_maps)
        self.is_relu = activation == "relu"
        widths = itertools.pairwise((num_fields, *layer_maps))
        shapes = [(out, before * num_fields) for before, out in widths]
        self.weights = nn.ParameterList(
            torch.empty(stacked_shape(copies, *shape)) for shape in shapes
        )
        self.biases = nn.ParameterList(
            torch.empty(stacked_shape(copies, shape[0])) for shape in shapes
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each layer's maps by themselves from a normal distribution of Xavier's width; biases 0."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            nn.init.normal_(weight, std=math.sqrt(2 / (weight.shape[-1] + weight.shape[-2])))
            nn.init.zeros_(bias)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, sum of H_l)."""
        maps, pooled = X, []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            products = (maps.unsqueeze(-2) * X.unsqueeze(-3)).flatten(-3, -2)
            maps = torch.einsum("...hc,...bck->...bhk", weight, products)
            maps = maps + bias.unsqueeze(-2).unsqueeze(-1)
            if self.is_relu:
                maps = F.relu(maps)
            pooled.append(widened(maps).sum(-1))
        return torch.cat(pooled, -1)


@dataclass(frozen=True, slots=True)
class CINSpec:
    """Asks for a `CIN`.

    Args:
        layer_maps: number of maps of each layer.
        activation: "identity" or "relu".
    """

    layer_maps: tuple[int, ...]
    activation: Literal["identity", "relu"] = "identity"

    def build(self, num_fields: int, dim: int, copies: int | None) -> CIN:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        return CIN(num_fields, self.layer_maps, self.activation, copies)
