"""Temporal interest module: semantic-temporal interest by target-aware encoding, attention and representation.

Source: Temporal Interest Network (arXiv:2308.08487) and its released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prismrec.embeddings.jagged import seg_mean_weights, seg_softmax, seg_wsum
from prismrec.models.batch_norm import BatchNorm
from prismrec.models.layers import Linear
from prismrec.models.sequence.base import Order, SequenceModule, Widths, by_copy, by_value
from prismrec.models.sequence.temporal import POSITION, Temporal, TemporalSpec


@dataclass(frozen=True, slots=True)
class TIMSpec:
    """What a temporal interest module does.

    Args:
        temporal: target-aware temporal encoding (TTE).
        attention: target-aware attention (TA); without it behaviours are averaged.
        representation: target-aware representation (TR); without it behaviours meet the target only in
            the attention.
        readout: "pure" gives `[u; v]`; "official", as in the released code, normalises the pooled
            vector over the batch and projects it to w, and gives `[w; v; w * v]`.
    """

    temporal: TemporalSpec = POSITION
    attention: bool = True
    representation: bool = True
    readout: Literal["pure", "official"] = "pure"

    def build(self, widths: Widths, copies: int | None = None) -> SequenceModule:
        """See `SequenceSpec`."""
        return TIM(self, widths, copies)


class TIM(SequenceModule):
    """`u = (sum_j softmax_j(<e_j, v> / sqrt d) e_j) * v` with e_j, v the encoded behaviours and target.

    Multiplied by v behind the sum: v does not depend on j.

    Args:
        spec: which parts it has.
        widths: of the vectors.
        copies: M, or None.
    """

    def __init__(self, spec: TIMSpec, widths: Widths, copies: int | None = None) -> None:
        super().__init__()
        self.attention = spec.attention
        self.representation = spec.representation
        self.temporal = Temporal(spec.temporal, widths.representation, widths, copies)
        width = self.temporal.width
        self.is_official = spec.readout == "official"
        if self.is_official:
            self.norm = BatchNorm(width, copies)
            self.project = Linear(width, width, copies)
        self.out_dim = width * (3 if self.is_official and spec.representation else 2)

    def logits(self, behaviours: Tensor, targets: Tensor, order: Order) -> Tensor:
        """What the attention is made of, ([M,] T): 0 where all behaviours count alike."""
        encoded, target = self.temporal(by_value(behaviours), by_value(targets), order)
        products = self.temporal.dot(encoded, target, order.offsets)
        return (products if self.attention else torch.zeros_like(products)).movedim(0, -1)

    def forward(
        self, behaviours: Tensor, targets: Tensor, order: Order, attention: None = None
    ) -> Tensor:
        """Map behaviours ([M,] T, W) and targets ([M,] B, W) to ([M,] B, out_dim)."""
        encoded, target = self.temporal(by_value(behaviours), by_value(targets), order)
        if self.attention:
            products = self.temporal.dot(encoded, target, order.offsets)
            weights = seg_softmax(products, order.offsets)
        else:
            weights = seg_mean_weights(order.offsets, len(encoded)).to(encoded.dtype)
            weights = weights.view(-1, *[1] * (encoded.dim() - 2)).expand(encoded.shape[:-1])
        pooled = seg_wsum(weights, encoded, order.offsets)
        if not self.is_official:
            interest = pooled * target if self.representation else pooled
            return by_copy(torch.cat([interest, target], -1))
        projected = self.project(self.norm(by_copy(pooled)))
        of_target = by_copy(target)
        parts = [projected, of_target]
        if self.representation:
            parts.append(projected * of_target)
        return torch.cat(parts, -1)
