"""How alike the experts of a mixture are, and how much of each of them a task takes.

Everything comes from one pass: centred second moments in fp64 of all columns of all experts, which add up
over batches and parts of the rows. Moments are taken around each part's own mean and put together by
the rule of Chan et al. (1983), so that large means cost no digits.

Notation: N rows, M experts of a layer, H_p width of expert p, O_p (N, H_p) its output, R readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prismrec.models import Inputs
from prismrec.models.experts import Experts
from prismrec.models.extraction import Layer

MOST_COLUMNS = 4096
"""Columns of a layer's experts whose moments are kept: 128 MiB of them. Of more, every expert is looked at
by as many evenly spaced columns as fit."""

_FLAT = 1e-9
"""A column that deviates by less than this share of its mean is constant: fp32 could not hold less."""
_SUM_ERROR = 1e-4


@dataclass(frozen=True, slots=True)
class ExpertMoments:
    """What some rows say about the outputs of experts; `a + b` is what the rows of both say.

    Args:
        widths: columns of each expert.
        rows: N.
        mean: (sum of widths,) float64.
        scatter: (sum of widths,) squared, float64: sums of products of deviations from the mean.
    """

    widths: tuple[int, ...]
    rows: int
    mean: Tensor
    scatter: Tensor

    def __add__(self, other: ExpertMoments) -> ExpertMoments:
        if self.widths != other.widths:
            raise ValueError(
                f"moments of experts of widths {self.widths} and {other.widths} do not add up"
            )
        rows = self.rows + other.rows
        between = other.mean - self.mean
        mean = self.mean + between * (other.rows / rows)
        weight = self.rows * other.rows / rows
        scatter = (self.scatter + other.scatter).addr_(between, between, alpha=weight)
        return ExpertMoments(self.widths, rows, mean, scatter)

    def correlation(self) -> Tensor:
        """R (M, M) float64, the mean over columns i of p and j of q of |corr(O_pi, O_qj)|.

        A column that does not vary has correlation 0 with all. The diagonal holds an expert's columns
        against each other, each with itself included.
        """
        deviation = self._deviations()
        spread = deviation.where(deviation > 0, 1.0)
        correlations = (self.scatter / self.rows / spread / spread.unsqueeze(1)).abs()
        is_flat = deviation == 0
        correlations[is_flat] = 0
        correlations[:, is_flat] = 0
        sizes = torch.tensor(self.widths, dtype=torch.float64)
        return self._blocks(correlations) / sizes / sizes.unsqueeze(1)

    def covariance_norms(self) -> Tensor:
        """(M, M) float64 Frobenius norms of the covariances (H_p, H_q) of every pair of experts."""
        return self._blocks((self.scatter / self.rows).square()).sqrt()

    def alignment(self) -> Tensor:
        """CKA (M, M) float64: |O_p^T O_q|^2 / (|O_p^T O_p| |O_q^T O_q|) of centred outputs, 0 to 1.

        1 where one expert's output is a turn and a scale of the other's; 0 of an expert that does not
        vary. Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML
        2019, linear CKA.
        """
        squares = self._blocks(self.scatter.square())
        own = squares.diagonal().sqrt()
        return squares / (own * own.unsqueeze(1)).where(own * own.unsqueeze(1) > 0, 1.0)

    def flat_columns(self) -> list[int]:
        """How many columns of each expert do not vary, such as those of units that never fire."""
        is_flat = self._deviations() == 0
        return [int(part.sum()) for part in is_flat.split(list(self.widths))]

    def _deviations(self) -> Tensor:
        deviation = (self.scatter.diagonal().clamp(min=0) / self.rows).sqrt()
        return deviation.where(deviation > _FLAT * self.mean.abs(), 0.0)

    def _blocks(self, values: Tensor) -> Tensor:
        """(M, M) sums of the blocks of a matrix over all columns."""
        sums = torch.zeros(len(self.widths), len(self.widths), dtype=torch.float64)
        place = torch.repeat_interleave(torch.tensor(self.widths))
        by_row = torch.zeros(len(self.widths), values.shape[1], dtype=torch.float64)
        return sums.index_add_(1, place, by_row.index_add_(0, place, values))


def expert_moments(outputs: Sequence[Tensor]) -> ExpertMoments:
    """The moments of one batch.

    Args:
        outputs: (B, H_p) of each expert.
    """
    columns = torch.cat([each.detach().double() for each in outputs], 1)
    mean = columns.mean(0)
    centred = columns - mean
    widths = tuple(each.shape[1] for each in outputs)
    return ExpertMoments(widths, len(columns), mean, centred.t() @ centred)


def summed_over_pairs(matrix: Tensor) -> float:
    """The sum over pairs p < q of different experts of a symmetric matrix (M, M)."""
    return float(matrix.triu(1).sum())


@dataclass(frozen=True, slots=True)
class GateShares:
    """How readers weigh experts, over some rows; `a + b` over the rows of both.

    Args:
        rows: N.
        sums: (R, M) float64 sums over rows of the gates, each the mean over an expert's elements where
            every element has a gate of its own.
        entropies: (R,) float64 sums over rows of the entropies of the gates in nats, likewise.
        is_distribution: whether every gate was one, not negative and with sum 1.
    """

    rows: int
    sums: Tensor
    entropies: Tensor
    is_distribution: bool

    def __add__(self, other: GateShares) -> GateShares:
        return GateShares(
            self.rows + other.rows,
            self.sums + other.sums,
            self.entropies + other.entropies,
            self.is_distribution and other.is_distribution,
        )

    @property
    def shares(self) -> Tensor:
        """(R, M) mean gate of each reader on each expert."""
        return self.sums / self.rows

    @property
    def entropy(self) -> Tensor:
        """(R,) mean entropy in nats: 0 (one expert) to ln M; NaN where gates are no distributions."""
        return self.entropies / self.rows if self.is_distribution else self.entropies * torch.nan


def gate_shares(gates: Tensor, rows: int) -> GateShares:
    """What the gates of one batch say.

    Args:
        gates: (B, R, M), (B, R, M, H) for each element, or (R, M) the same for all rows.
        rows: B.
    """
    gates = gates.detach().double()
    each = gates.unsqueeze(-1) if gates.dim() == 3 else gates
    if gates.dim() == 2:
        each = gates.view(1, *gates.shape, 1).expand(rows, -1, -1, -1)
    is_distribution = bool((each >= 0).all() and ((each.sum(2) - 1).abs() < _SUM_ERROR).all())
    entropies = -torch.special.xlogy(each, each.clamp(min=0)).sum(2)
    return GateShares(
        rows, each.mean(3).sum(0), entropies.mean(2).sum(0).nan_to_num(), is_distribution
    )


@dataclass(slots=True)
class LayerFindings:
    """What a pass found of one layer of experts.

    Args:
        experts: name of each expert: what it reads, and its number there.
        columns: columns of each expert that were looked at, of how many.
        moments: None before the first row.
        gates: None where there are no gates, and before the first row.
    """

    experts: tuple[str, ...]
    columns: tuple[tuple[int, int], ...]
    moments: ExpertMoments | None = None
    gates: GateShares | None = None


def look_at_experts(
    model: nn.Module, batches: Iterable[Inputs], sets: Sequence[str], streams: Sequence[str]
) -> dict[str, LayerFindings]:
    """Run a model over batches and take the outputs of its experts and gates.

    Args:
        model: in evaluation mode.
        batches: rows as it sees them.
        sets: names of its sets, in the order of its inputs.
        streams: names of the readers, whose mixes layers above the lowest one read.

    Returns:
        By the name of the module that holds them, layers of two experts or more, the lowest first.
    """
    found: dict[str, LayerFindings] = {}
    watched: list[tuple[nn.Module, Callable[..., None]]] = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, Experts) or len(module.order) < 2:
            continue
        owner = name.removesuffix(".experts")
        layer = modules[owner]
        kept = _kept(module.widths)
        columns = tuple((len(each), width) for each, width in zip(kept, module.widths, strict=True))
        sources = sets if _is_lowest(owner) else streams
        findings = found[owner] = LayerFindings(expert_names(module, sources), columns)
        watched.append((module, partial(_take_outputs, findings, kept)))
        if isinstance(layer, Layer):
            watched.append((layer.gate, partial(_take_gates, findings)))
    if not found:
        return {}
    with ExitStack() as hooks, torch.no_grad():
        for module, take in watched:
            hooks.callback(module.register_forward_hook(take).remove)
        for inputs in batches:
            model(inputs)
    return found


def expert_names(experts: Experts, sources: Sequence[str]) -> tuple[str, ...]:
    """What each expert reads and, where several read the same, its number there, in output order.

    Args:
        experts: the experts.
        sources: names of what they may read.
    """
    read = [
        plan.set_indices[at * len(plan.set_indices) // len(plan.experts)]
        for plan in experts.plans
        for at in range(len(plan.experts))
    ]
    names = [sources[each] for each in read]
    return tuple(
        name if names.count(name) == 1 else f"{name} {names[: at + 1].count(name)}"
        for at, name in enumerate(names)
    )


def _is_lowest(name: str) -> bool:
    """Whether a layer reads sets: all but those above the first of an `Extraction`."""
    _, _, depth = name.rpartition("layers.")
    return not depth.isdigit() or depth == "0"


def _kept(widths: Sequence[int]) -> list[Tensor]:
    """Evenly spaced columns of each expert, `MOST_COLUMNS` of all experts at most."""
    share = min(1.0, MOST_COLUMNS / sum(widths))
    counts = [max(1, int(width * share)) for width in widths]
    return [
        torch.arange(count) * width // count for count, width in zip(counts, widths, strict=True)
    ]


def _take_outputs(
    findings: LayerFindings, kept: list[Tensor], _: nn.Module, __: Any, outputs: list[Tensor]
) -> None:
    """Forward hook of `Experts`."""
    each = [output for group in outputs for output in group.unbind(0)]
    batch = expert_moments(
        [output.index_select(1, at) for output, at in zip(each, kept, strict=True)]
    )
    findings.moments = batch if findings.moments is None else findings.moments + batch


def _take_gates(findings: LayerFindings, _: nn.Module, args: Any, gates: Tensor) -> None:
    """Forward hook of a gate, whose first argument is the stacks (S, B, N, K) of its sources."""
    batch = gate_shares(gates, args[0][0].shape[1])
    findings.gates = batch if findings.gates is None else findings.gates + batch
