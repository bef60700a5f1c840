"""Auxiliary losses that keep experts apart: the covariance of their outputs, or the correlation.

Both look at the cross blocks of one matrix over all columns of all experts. Which rows and ranks it
is taken over changes the value: its entries are small numbers in absolute value, and noise makes
those larger the fewer the rows, about sqrt(2 / (pi rows)) for independent columns. So a weight of
such a loss belongs to a number of rows.

Notation: B rows of this rank, M experts, H width of an expert's output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prismrec.models.collectives import sum_over_ranks
from prismrec.models.layers import widened

Scope = Literal["local", "global"]
Normalize = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True)
class RowsSpec:
    """The rows that a loss looks at.

    Args:
        rows: how many of a rank's batch, evenly spaced; None for all.
        scope: "local" for each rank's rows by themselves, "global" for those of all ranks.
        normalize: "mean" divides the products by the number of rows, "sum" does not; the weight that
            does the same under "sum" is that of "mean" divided by the rows.
    """

    rows: int | None = None
    scope: Scope = "local"
    normalize: Normalize = "mean"


LOCAL_ROWS = RowsSpec()
"""All rows of a rank."""


@dataclass(frozen=True, slots=True)
class CovarianceSpec:
    """`w / H^2 sum_{p>q} |(O_p - mean)^T (O_q - mean)|_1`, the covariance loss of Crocodile.

    The slide that states it writes p >= q and no division by the rows. p = q adds the variances,
    which pulls experts towards constants, and the stated cost counts only p > q; so that is what we
    take it for, and the rest are options. Source: Lin et al., Crocodile: Cross Experts Covariance
    for Disentangled Learning in Multi-Domain Recommendation, 2024.

    Args:
        weight: w.
        pairs: "p>q" pairs of different experts; "p>=q" also the columns of one expert.
        include_variance: whether "p>=q" counts the diagonal of an expert with itself.
        over: the rows.
    """

    weight: float
    pairs: Literal["p>q", "p>=q"] = "p>q"
    include_variance: bool = False
    over: RowsSpec = LOCAL_ROWS


@dataclass(frozen=True, slots=True)
class CorrelationSpec:
    """`w sum_{p<q} norm(C_pq)` of the correlations C_pq (H, H), the loss of D-MoE.

    Source: "Enhancing CTR Prediction with De-correlated Expert Networks", 2025, arXiv 2505.17925.
    The norm, the layer and the division by the rows are not clear from what we could read.

    Args:
        weight: w.
        norm: "fro_sq" mean of the squares; "fro" Frobenius norm, "spectral" largest singular value,
            "l1" sum of absolute values, each over H^2.
        per_pair: whether to divide by the number of pairs of experts.
        eps: added to the variances.
        over: the rows; "sum" gives the norm of the product without a division by the rows.
    """

    weight: float
    norm: Literal["fro_sq", "fro", "spectral", "l1"] = "fro_sq"
    per_pair: bool = False
    eps: float = 1e-5
    over: RowsSpec = LOCAL_ROWS


DecorrelationSpec = CovarianceSpec | CorrelationSpec


class Decorrelation(nn.Module):
    """The loss that a spec asks for, on the outputs of experts (M, B, H).

    The arithmetic is float32 at least. A single expert has loss 0, unless its own columns count.

    Args:
        spec: which loss.
        num_experts: M.
        width: H.
    """

    blocks: Tensor

    def __init__(self, spec: DecorrelationSpec, num_experts: int, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_pairs = max(1, math.comb(num_experts, 2))
        self.width = width
        # Block (p, q) of the columns of all experts counts where p > q.
        blocks = torch.ones(num_experts, num_experts).tril(-1)
        blocks = blocks.repeat_interleave(width, 0).repeat_interleave(width, 1)
        if isinstance(spec, CovarianceSpec) and spec.pairs == "p>=q":
            own = torch.eye(num_experts).repeat_interleave(width, 0).repeat_interleave(width, 1)
            blocks = blocks + own - (0 if spec.include_variance else torch.eye(len(own)))
        self.register_buffer("blocks", blocks, persistent=False)

    def forward(self, experts: Tensor, counted: Tensor | None) -> Tensor:
        """The weighted loss, a scalar.

        Collective: every rank, with "global" scope.

        Args:
            experts: O (M, B, H).
            counted: (B,), 1 for rows that count, else 0; None if all do.
        """
        spec = self.spec
        covariance, rows = _covariance(experts, counted, spec.over)
        if isinstance(spec, CovarianceSpec):
            scale = rows if spec.over.normalize == "sum" else 1.0
            return spec.weight / self.width**2 * scale * (covariance * self.blocks).abs().sum()
        deviation = (covariance.diagonal() + spec.eps).sqrt()
        correlation = covariance / deviation / deviation.unsqueeze(1)
        if spec.over.normalize == "sum":
            correlation = correlation * rows
        loss = self._normed(correlation) / self.width**2
        return spec.weight / (self.num_pairs if spec.per_pair else 1) * loss

    def _normed(self, correlation: Tensor) -> Tensor:
        """The sum over pairs of experts of the norm of their block."""
        norm = self.spec.norm if isinstance(self.spec, CorrelationSpec) else "l1"
        if norm == "fro_sq":
            return (correlation.square() * self.blocks).sum()
        if norm == "l1":
            return (correlation.abs() * self.blocks).sum()
        blocks = correlation.unflatten(0, (-1, self.width)).unflatten(-1, (-1, self.width))
        first, second = torch.tril_indices(blocks.shape[0], blocks.shape[2], -1).unbind()
        pairs = blocks.transpose(1, 2)[first, second]
        order: Literal["fro"] | int = "fro" if norm == "fro" else 2
        return torch.linalg.matrix_norm(pairs, order).sum()


def _covariance(experts: Tensor, counted: Tensor | None, over: RowsSpec) -> tuple[Tensor, Tensor]:
    """The covariance (M H, M H) of all columns of all experts, and the number of rows."""
    num_rows = experts.shape[1]
    if over.rows is not None and over.rows < num_rows:
        index = torch.arange(over.rows, device=experts.device) * num_rows // over.rows
        experts = experts.index_select(1, index)
        counted = None if counted is None else counted.index_select(0, index)
    columns = widened(experts).transpose(0, 1).flatten(1)
    if counted is None:
        counted = columns.new_ones(len(columns))
    weights = counted.to(columns.dtype).unsqueeze(1)
    # The covariance does not change, to first order, with the mean it is taken around.
    sums = torch.cat([(columns.detach() * weights).sum(0), weights.sum().view(1)])
    is_global = over.scope == "global" and dist.is_available() and dist.is_initialized()
    if is_global:
        dist.all_reduce(sums)
    rows = sums[-1].clamp_min(1)
    centred = (columns - sums[:-1] / rows) * weights
    with torch.autocast(columns.device.type, enabled=False):
        products = centred.mT @ centred
    if over.scope == "global":
        products = sum_over_ranks(products)
    return products / rows, rows
