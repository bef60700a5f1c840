"""DARE: attention and representation by vectors of two sets of different width.

Source: arXiv:2410.02604 and its released code. One vector cannot serve both well: the gradients of the
two pull it apart. Here the weights of the behaviours come from a narrow set alone, and what is summed from
another; no weight is shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.embeddings.jagged import seg_softmax, seg_topk, seg_wsum
from prismrec.models.sequence.base import Order, SequenceModule, Widths, by_copy, by_value
from prismrec.models.sequence.temporal import NO_TIME, Temporal, TemporalSpec


@dataclass(frozen=True, slots=True)
class DARESpec:
    """What a decoupled module does.

    Args:
        temporal: encoding of position and interval, with tables of their own in each of the two sets.
        keep: behaviours with the largest logits that are kept; None keeps all.
    """

    temporal: TemporalSpec = NO_TIME
    keep: int | None = None

    def build(self, widths: Widths, copies: int | None = None) -> SequenceModule:
        """See `SequenceSpec`."""
        return DARE(self, widths, copies)


class DARE(SequenceModule):
    """`w = softmax(<a_j, a_v> / sqrt K_A)`, `u = sum_j w_j r_j`, out `[u; u * r_v]`.

    Copies differ in the set that is summed; the set of the attention, and so w, is one for all.

    Args:
        spec: what it does.
        widths: of both sets.
        copies: M, or None.

    Raises:
        ValueError: `widths` has no width of attention.
    """

    def __init__(self, spec: DARESpec, widths: Widths, copies: int | None = None) -> None:
        super().__init__()
        if widths.attention is None:
            raise ValueError("DARE needs vectors of a set for its attention")
        self.keep = spec.keep
        self.of_attention = Temporal(spec.temporal, widths.attention, widths)
        self.temporal = Temporal(spec.temporal, widths.representation, widths, copies)
        self.out_dim = 2 * self.temporal.width

    def logits(
        self, behaviours: Tensor, targets: Tensor, order: Order, attention: tuple[Tensor, Tensor]
    ) -> Tensor:
        """What the attention is made of, (T,)."""
        encoded, target = self.of_attention(*attention, order)
        return self.of_attention.dot(encoded, target, order.offsets)

    def forward(
        self, behaviours: Tensor, targets: Tensor, order: Order, attention: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Map behaviours ([M,] T, W) and targets ([M,] B, W) to ([M,] B, out_dim).

        Args:
            behaviours: of the sets that are summed.
            targets: of the same.
            order: where the behaviours lie.
            attention: behaviours (T, A) and targets (B, A) of the set of the attention.
        """
        logits = self.logits(behaviours, targets, order, attention)
        if self.keep is not None:
            kept = seg_topk(logits, order.offsets, self.keep)
            logits = logits.masked_fill(~kept, -torch.inf)
        weights = seg_softmax(logits, order.offsets)
        encoded, target = self.temporal(by_value(behaviours), by_value(targets), order)
        weights = weights.view(-1, *[1] * (encoded.dim() - 2)).expand(encoded.shape[:-1])
        interest = seg_wsum(weights, encoded, order.offsets)
        return by_copy(torch.cat([interest, interest * target], -1))
