"""The framework of interaction functions, layer poolings and layer aggregators: PFL and its family.

Layer 1 is the fields, `t^1_n = e_n`; every further one multiplies by the fields once more,
`t^{l+1}_n = (sum_i t^l_i W^l_{i->n}) * e_n`. The function says what W is, the aggregator how the
layers add up. Notation: B batch, N fields, K their width, L layers, M copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prismrec.models.interactions.base import Interaction, flatten
from prismrec.models.layers import stacked_shape, widened
from prismrec.models.products import affine

Function = Literal["naive", "weighted", "diagonal", "projected"]
Aggregator = Literal["direct", "layer", "term", "element"]
Pairs = Literal["all", "offdiag", "upper"]


@dataclass(frozen=True, slots=True)
class LayeredSpec:
    """Asks for a `Layered`.

    Args:
        function: what a term is mapped by before it meets a field: "naive" the identity,
            "weighted" a number, "diagonal" a vector, "projected" a matrix, one for each pair.
        aggregator: how layers add up: "direct" as they are, or with a weight for each "layer",
            for each "term" of it, or for each "element" of a term.
        num_layers: L, the fields themselves counted.
        pairs: which (term, field) pairs there are: "all", none of a field with itself
            ("offdiag"), or only terms before the field ("upper").
        reduce: "field" keeps a vector per field, "sum" adds them up.
    """

    function: Function = "projected"
    aggregator: Aggregator = "layer"
    num_layers: int = 4
    pairs: Pairs = "all"
    reduce: Literal["field", "sum"] = "field"

    def build(self, num_fields: int, dim: int, copies: int | None) -> Layered:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        return Layered(self, num_fields, dim, copies)


class Layered(Interaction):
    """`sum_l a_l * t^l` over layers of products of one field more each.

    With "projected" and "layer" it is PFL; "weighted" makes WFL, "diagonal" DFL; "term", "element"
    and "direct" make PFT, PFE and PFD. A layer costs as much as one of DCN-v2.

    Args:
        spec: which member of the family.
        num_fields: number N of fields.
        dim: width K of a field's vector.
        copies: number M of stacked inputs, or None.

    Attributes:
        weights: W of each layer after the first; "weighted" ([M,] N, N), "diagonal"
            ([M,] N, N, K), "projected" ([M,] N, N, K, K), indexed [i, n, ..].
        shares: a of each layer, by the aggregator () or (N,) or (N, K), led by M; empty for
            "direct".
    """

    mask: Tensor

    def __init__(
        self, spec: LayeredSpec, num_fields: int, dim: int, copies: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.out_dim = dim * (num_fields if spec.reduce == "field" else 1)
        self.num_fields, self.dim = num_fields, dim
        of_pair = {"weighted": (), "diagonal": (dim,), "projected": (dim, dim)}
        self.weights = nn.ParameterList(
            torch.empty(stacked_shape(copies, num_fields, num_fields, *of_pair[spec.function]))
            for _ in range(spec.num_layers - 1 if spec.function != "naive" else 0)
        )
        of_layer = {"layer": (), "term": (num_fields,), "element": (num_fields, dim)}
        self.shares = nn.ParameterList(
            torch.empty(stacked_shape(copies, *of_layer[spec.aggregator]))
            for _ in range(spec.num_layers if spec.aggregator != "direct" else 0)
        )
        mask = torch.ones(num_fields, num_fields)
        if spec.pairs != "all":
            mask = mask.triu(1) if spec.pairs == "upper" else mask - torch.eye(num_fields)
        self.register_buffer("mask", mask, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices from Xavier's uniform distribution over all fields, numbers 1/sqrt(N), shares 1."""
        width = self.num_fields * self.dim
        for weight in self.weights:
            if self.spec.function == "projected":
                bound = math.sqrt(6 / (2 * width))
                nn.init.uniform_(weight, -bound, bound)
            else:
                nn.init.constant_(weight, 1 / math.sqrt(self.num_fields))
        for share in self.shares:
            nn.init.ones_(share)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, N K), or to ([M,] B, K) where fields are added up."""
        terms = X
        total = self._weighed(terms, 0)
        for layer in range(1, self.spec.num_layers):
            terms = self._met(terms, layer - 1) * X
            total = total + self._weighed(terms, layer)
        return flatten(total) if self.spec.reduce == "field" else total.sum(-2)

    def _met(self, terms: Tensor, layer: int) -> Tensor:
        """`sum_i t_i W_{i->n}` for every field n, ([M,] B, N, K)."""
        mask = self.mask.to(terms.dtype)
        if self.spec.function == "naive":
            return torch.einsum("in,...ik->...nk", mask, terms)
        weight = self.weights[layer]
        if self.spec.function == "weighted":
            return torch.einsum("...in,...bik->...bnk", weight * mask, terms)
        if self.spec.function == "diagonal":
            return torch.einsum("...ink,...bik->...bnk", weight * mask.unsqueeze(-1), terms)
        if self.spec.pairs != "all":
            weight = weight * mask.unsqueeze(-1).unsqueeze(-1)
        # [i, n, k, l] to [(n, l), (i, k)], the (out, in) form of an affine map.
        blocks = weight.movedim((-3, -1, -4, -2), (-4, -3, -2, -1))
        met = affine(flatten(terms), blocks.flatten(-2).flatten(-3, -2), None)
        return met.unflatten(-1, terms.shape[-2:])

    def _weighed(self, terms: Tensor, layer: int) -> Tensor:
        terms = widened(terms)
        if not len(self.shares):
            return terms
        share = self.shares[layer]
        if self.spec.aggregator == "layer":
            return terms * share.unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)
        if self.spec.aggregator == "term":
            return terms * share.unsqueeze(-1).unsqueeze(-3)
        return terms * share.unsqueeze(-3)
