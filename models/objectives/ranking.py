"""Ranking losses over the global batch: pairs of a positive and a negative, and lists.

Every rank gathers the logits of all (a few bytes a row) and differentiates with respect to its own.
The value that a rank returns is such that the mean over the ranks is the loss of the global batch,
and so is the mean of the gradients. Labels above 1/2 are positives.

Notation: B rows of this rank, A rows of all ranks, W ranks, z logits, w weights.

Source: Lin et al., "Understanding the Ranking Loss for Recommendation with Sparse User Feedback",
KDD 2024, for the pairs beside a cross entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_PAIRS = 1 << 20
"""Pairs that are looked at together: bounds the memory, whatever the batch."""

Reduction = Literal["pair_mean", "group_mean"]


@dataclass(frozen=True, slots=True)
class Rows:
    """One task's rows, of this rank or of all.

    Args:
        logits: z (B,), float32 or wider.
        labels: (B,), above 1/2 for positives.
        weights: w (B,), at least 0; 0 where a row does not count.
        groups: (B,) int64; only rows of one group are compared. None compares all.
        levels: (B,) the second logit of tasks that have one, else None.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    groups: Tensor | None = None
    levels: Tensor | None = None

    def of_all_ranks(self) -> Rows:
        """The rows of all ranks, in the order of the ranks, without a gradient.

        Collective: every rank calls it with as many rows.
        """
        groups = None if self.groups is None else gathered(self.groups)
        levels = None if self.levels is None else gathered(self.levels.detach())
        columns = (gathered(self.logits.detach()), gathered(self.labels), gathered(self.weights))
        return Rows(*columns, groups, levels)

    def take(self, chosen: Tensor | slice) -> Rows:
        """Some of the rows, without levels."""
        groups = None if self.groups is None else self.groups[chosen]
        columns = (self.logits[chosen].detach(), self.labels[chosen], self.weights[chosen])
        return Rows(*columns, groups)

    def alike(self) -> Rows:
        """The rows with weight 1 where they count at all."""
        seen = (self.weights > 0).to(self.weights.dtype)
        return Rows(self.logits, self.labels, seen, self.groups, self.levels)


def world_size() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(values: Tensor) -> Tensor:
    """The rows (B, ...) of all ranks, (A, ...), in the order of the ranks.

    Collective: every rank calls it with the same shape and type.
    """
    if world_size() == 1:
        return values
    every = values.new_empty(world_size() * len(values), *values.shape[1:])
    dist.all_gather_into_tensor(every, values.contiguous())
    return every


def pair_loss(
    rows: Rows,
    reduction: Reduction = "pair_mean",
    *,
    is_weighted: bool = True,
    every: Rows | None = None,
) -> Tensor:
    """RankNet: the mean of `softplus(z_j - z_i)` over positives i and negatives j.

    Exact over all pairs of the global batch, a block of pairs at a time: memory is linear in the
    batch. It says nothing about the level of the logits. 0, with gradient 0, without a pair.

    Collective: every rank calls it.

    Args:
        rows: this rank's rows.
        reduction: "pair_mean" over pairs; "group_mean" over groups of their means over pairs.
        is_weighted: a pair counts w_i w_j; else 1 where both count at all.
        every: the rows of all ranks, where they are at hand; they are gathered if not.
    """
    every = rows.of_all_ranks() if every is None else every
    if not is_weighted:
        rows, every = rows.alike(), every.alike()
    loss: Tensor = _PairLoss.apply(rows.logits, rows, every, reduction)  # type: ignore[no-untyped-call]
    return loss


def list_loss(rows: Rows, every: Rows | None = None) -> Tensor:
    """`-mean over positives i of log softmax(z)_i`, the softmax over the whole batch.

    Its best score is the logarithm of the probability, so it pulls a cross entropy off calibration.

    Collective: every rank calls it; `every` as for `pair_loss`.
    """
    return _over_all(rows, every, lambda logits: logits)


def rcr_loss(rows: Rows, every: Rows | None = None) -> Tensor:
    """`-mean over positives i of log(s(z_i) / sum_k s(z_k))`, s the logistic function.

    Regression-compatible ranking: its best score is the probability, as a cross entropy's.

    Collective: every rank calls it; `every` as for `pair_loss`.
    """
    return _over_all(rows, every, F.logsigmoid)


def generative_loss(
    rows: Rows, every: Rows | None = None, *, excludes_same_label: bool = False
) -> Tensor:
    """`-mean over rows i of log(e^(z_i of its label) / sum_k e^(z_k of i's label))`.

    A row has two logits: its level z0, and z1 = logit + level. The sum runs over the context of i:
    all rows, or those of its group. Linear in the batch.

    Source: Sheng et al., "Joint Optimization of Ranking and Calibration with Contextualized Hybrid
    Model", KDD 2023, the generative half of JRC.

    Collective: every rank calls it; `every` as for `pair_loss`.

    Args:
        rows: this rank's rows, with levels.
        every: the rows of all ranks.
        excludes_same_label: of the rows with i's label only i itself is in the sum.
    """
    every = rows.of_all_ranks() if every is None else every
    assert rows.levels is not None
    assert every.levels is not None
    levels = _own_in_place(rows.levels, every.levels)
    first = _own_in_place(rows.logits, every.logits) + levels
    counts, positive = every.weights > 0, every.labels > 0.5
    chosen = torch.where(positive, first, levels)
    segments = _segments(every.groups, len(first), first.device)
    contexts = []
    for scores, has_label in ((levels, ~positive), (first, positive)):
        inside = counts & ~has_label if excludes_same_label else counts
        contexts.append(_log_sums(scores, inside, segments))
    context = torch.where(positive, contexts[1], contexts[0])
    if excludes_same_label:
        context = torch.logaddexp(chosen, context)
    total = every.weights.sum()
    losses = torch.where(counts, context - chosen, 0)
    loss = (every.weights * losses).sum() / torch.where(total > 0, total, 1)
    return _per_rank(loss)


def _over_all(rows: Rows, every: Rows | None, score: Any) -> Tensor:
    """A list loss on `score` of the logits, differentiated with respect to this rank's rows."""
    every = rows.of_all_ranks() if every is None else every
    scores = score(_own_in_place(rows.logits, every.logits))
    counts = every.weights > 0
    positive = every.weights * (every.labels > 0.5)
    total = positive.sum()
    of_all = torch.logsumexp(torch.where(counts, scores, -torch.inf), 0)
    # Without a row that counts the sum is empty, and without a positive nothing is asked of it.
    of_all = torch.where(total > 0, of_all, 0)
    return _per_rank((positive * (of_all - scores)).sum() / torch.where(total > 0, total, 1))


def _own_in_place(own: Tensor, every: Tensor) -> Tensor:
    """The values of all ranks, this rank's own with their gradient."""
    if world_size() == 1:
        return own
    first = dist.get_rank() * len(own)
    return torch.cat([every[:first], own, every[first + len(own) :]])


def _of_rank(own: Rows) -> slice:
    """Where this rank's rows are among those of all ranks."""
    first = dist.get_rank() * len(own.logits) if world_size() > 1 else 0
    return slice(first, first + len(own.logits))


def _per_rank(loss: Tensor) -> Tensor:
    """The loss of all rows, with W times its gradient: gradients are averaged over the ranks."""
    ranks = world_size()
    return ranks * loss - (ranks - 1) * loss.detach()


def _segments(groups: Tensor | None, num_rows: int, device: torch.device) -> Tensor:
    """(A,) a number below A for each row, the same for rows of one group; nothing waits for a device."""
    if groups is None:
        return torch.zeros(num_rows, dtype=torch.int64, device=device)
    ordered, order = torch.sort(groups)
    is_new = torch.zeros_like(ordered)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, is_new.cumsum(0))


def _log_sums(scores: Tensor, inside: Tensor, segments: Tensor) -> Tensor:
    """(A,) for each row `log sum exp` of the scores `inside` its segment; -inf where none is."""
    kept = torch.where(inside, scores, -torch.inf)
    most = torch.full_like(kept, -torch.inf).scatter_reduce(0, segments, kept.detach(), "amax")
    most = torch.where(most.isfinite(), most, 0)
    sums = torch.zeros_like(kept).index_add(0, segments, torch.exp(kept - most[segments]))
    found = torch.log(torch.where(sums > 0, sums, 1)) + most
    return torch.where(sums > 0, found, -torch.inf)[segments]


class _PairLoss(torch.autograd.Function):
    """The loss and its gradient in one pass over blocks of (own row, any row)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, own: Rows, every: Rows, reduction: Reduction) -> Tensor:
        shares = _shares(own, every, reduction)
        gradient = torch.zeros_like(logits)
        total = logits.new_zeros(())
        for mine, theirs in _sides(own, every):
            side, others, part = own.take(mine), every.take(theirs), shares[mine]
            pushed = torch.empty_like(side.logits)
            for block in _blocks(len(side.logits), len(others.logits)):
                pairs = _pairs(side, others, block) * part[block].unsqueeze(1)
                positive = side.labels[block] > 0.5
                sign = torch.where(positive, 1.0, -1.0).to(logits.dtype).unsqueeze(1)
                margin = sign * (others.logits - side.logits[block].unsqueeze(1))
                total += (pairs * F.softplus(margin)).sum()
                pushed[block] = -(sign * pairs * torch.sigmoid(margin)).sum(1)
            gradient[mine] = pushed
        ctx.save_for_backward(gradient * world_size())
        return total * (world_size() / 2)  # every pair is met from both its sides

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None


def _sides(own: Rows, every: Rows) -> list[tuple[Tensor, Tensor]] | list[tuple[slice, slice]]:
    """Own rows and those they are compared with.

    On a CPU the positives against the negatives and the other way round: with sparse positives a
    small part of all pairs. How many there are only the device knows; elsewhere nothing waits for
    it, and all rows meet all rows.
    """
    if own.logits.device.type != "cpu":
        return [(slice(None), slice(None))]
    sides = []
    for positive in (True, False):
        mine = (own.weights > 0) & ((own.labels > 0.5) == positive)
        theirs = (every.weights > 0) & ((every.labels > 0.5) != positive)
        sides.append((mine.nonzero().flatten(), theirs.nonzero().flatten()))
    return sides


def _shares(own: Rows, every: Rows, reduction: Reduction) -> Tensor:
    """(B,) what a pair of each own row counts for, so that all pairs of all rows come to 1."""
    positive, negative, members = _masses(own, every)
    pairs = positive * negative
    if own.groups is None:
        return torch.where(pairs > 0, 1 / torch.where(pairs > 0, pairs, 1), 0)
    if reduction == "pair_mean":
        # Each row of a group brings its group's pairs; dividing by the rows counts a group once.
        whole = _sum(
            (torch.where(members > 0, pairs / members.clamp(min=1), 0) * _counts(own)).sum()
        )
        return torch.where(whole > 0, 1 / torch.where(whole > 0, whole, 1), 0).expand_as(pairs)
    has_pairs = (pairs > 0).to(pairs.dtype)
    groups = _sum((has_pairs / members.clamp(min=1) * _counts(own)).sum())
    return has_pairs / torch.where(pairs > 0, pairs * groups.clamp(min=1), 1)


def _masses(own: Rows, every: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) weight of the positives, of the negatives, and number of rows in each own row's group."""
    is_positive = every.labels > 0.5
    columns = torch.stack(
        [every.weights * is_positive, every.weights * ~is_positive, _counts(every)], 1
    )
    segments = _segments(every.groups, len(columns), columns.device)
    sums = torch.zeros_like(columns).index_add(0, segments, columns)[segments[_of_rank(own)]]
    return sums[:, 0], sums[:, 1], sums[:, 2]


def _pairs(own: Rows, every: Rows, block: slice) -> Tensor:
    """(block, A) weights of pairs: w_i w_j where one is positive and the other is not, else 0."""
    opposite = (own.labels[block] > 0.5).unsqueeze(1) ^ (every.labels > 0.5)
    if own.groups is not None and every.groups is not None:
        opposite &= own.groups[block].unsqueeze(1) == every.groups
    return opposite * own.weights[block].unsqueeze(1) * every.weights


def _counts(rows: Rows) -> Tensor:
    return (rows.weights > 0).to(rows.logits.dtype)


def _blocks(rows: int, columns: int) -> list[slice]:
    size = max(1, _CHUNK_PAIRS // max(1, columns))
    return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]


def _sum(value: Tensor) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(value)
    return value
