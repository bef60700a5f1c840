"""Numeric columns as fields of one embedding set: from (B, D) to (B, D, K).

Columns of equal encoding are read together, by one batched product for each layer. Notation: B batch,
D numeric columns, n of them with one encoding, K width of the set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUMERIC_NORM = 0.1
"""Expected length of a numeric field's vector at the value 1, at the start: of the order of an
embedding row's, so that neither kind of field drowns the other."""
_SLOPE = 0.01


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """The value times a vector, and a vector added if `has_bias`."""

    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class AutoDisSpec:
    """A soft choice among `buckets` vectors, see `AutoDisFields`."""

    buckets: int
    temperature: float
    skip: float


@dataclass(frozen=True, slots=True)
class PiecewiseSpec:
    """Parts of `bins` bins times vectors, see `PiecewiseFields`."""

    bins: int
    has_linear: bool


@dataclass(frozen=True, slots=True)
class PeriodicSpec:
    """Sines and cosines at `frequencies` frequencies, see `PeriodicFields`."""

    frequencies: int
    sigma: float


NumericSpec = ValueSpec | AutoDisSpec | PiecewiseSpec | PeriodicSpec
"""How one numeric column becomes a field."""


class ValueFields(nn.Module):
    """The value times a learned vector, plus another if there is a bias.

    Args:
        num: number n of columns.
        dim: width K of the set.
        has_bias: whether a vector is added, which starts at 0.
    """

    def __init__(self, num: int, dim: int, has_bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, dim))
        self.bias = nn.Parameter(torch.empty(num, dim)) if has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        nn.init.normal_(self.weight, std=NUMERIC_NORM / math.sqrt(self.weight.shape[1]))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Map (B, n) to (B, n, K)."""
        fields = values.unsqueeze(-1) * self.weight
        return fields if self.bias is None else fields + self.bias


class AutoDisFields(nn.Module):
    """A softmax over scores of the value weighs vectors of the column's own.

        h = LeakyReLU(w x) ;  s = W h + skip * h ;  p = softmax(s / temperature) ;  e = p E

    Source: Guo et al., "An Embedding Learning Framework for Numerical Features in CTR Prediction",
    KDD 2021, sections 3.2 and 3.3.

    Args:
        num: number n of columns.
        dim: width K of the set.
        spec: number H of vectors, temperature and weight of the skip.
    """

    def __init__(self, num: int, dim: int, spec: AutoDisSpec) -> None:
        super().__init__()
        buckets = spec.buckets
        self.temperature, self.skip = spec.temperature, spec.skip
        self.first = nn.Parameter(torch.empty(num, buckets))
        self.second = nn.Parameter(torch.empty(num, buckets, buckets))
        self.vectors = nn.Parameter(torch.empty(num, buckets, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        buckets, dim = self.vectors.shape[1:]
        nn.init.normal_(self.first, std=math.sqrt(2 / (1 + buckets)))
        nn.init.normal_(self.second, std=math.sqrt(1 / buckets))
        nn.init.normal_(self.vectors, std=NUMERIC_NORM / math.sqrt(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Map (B, n) to (B, n, K)."""
        hidden = nn.functional.leaky_relu(values.unsqueeze(-1) * self.first, _SLOPE)
        scores = torch.einsum("nij,bnj->bni", self.second, hidden) + self.skip * hidden
        chosen = torch.softmax(scores.float() / self.temperature, -1)
        return torch.einsum("bnh,nhk->bnk", chosen, self.vectors)


class PiecewiseFields(nn.Module):
    """How far a value has come through each bin, times learned vectors, plus a vector.

    A column holds how many bins its number has passed, parts included. Component m is that less m, cut to 0
    and 1, but the first goes on below 0 and the last above 1.

    Source: Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning",
    NeurIPS 2022, section 3.2.

    Args:
        num: number n of columns.
        dim: width K of the set.
        spec: number of bins, and whether the bins passed times a vector are added, which lets all
            others start at 0.
    """

    def __init__(self, num: int, dim: int, spec: PiecewiseSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, spec.bins, dim))
        self.bias = nn.Parameter(torch.empty(num, dim))
        self.linear = nn.Parameter(torch.empty(num, dim)) if spec.has_linear else None
        least, most = torch.zeros(spec.bins), torch.ones(spec.bins)
        least[0], most[-1] = -math.inf, math.inf
        self.register_buffer("least", least, persistent=False)
        self.register_buffer("most", most, persistent=False)
        self.register_buffer("starts", torch.arange(float(spec.bins)), persistent=False)
        self.reset_parameters()

    least: Tensor
    most: Tensor
    starts: Tensor

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        bins, dim = self.weight.shape[1:]
        std = NUMERIC_NORM / math.sqrt(dim)
        nn.init.zeros_(self.bias)
        if self.linear is None:
            nn.init.normal_(self.weight, std=std / math.sqrt(bins))
        else:
            nn.init.zeros_(self.weight)
            nn.init.normal_(self.linear, std=std)

    def parts(self, values: Tensor) -> Tensor:
        """(B, n, bins) how far values (B, n) have come through each bin."""
        passed = values.unsqueeze(-1) - self.starts
        return torch.minimum(torch.maximum(passed, self.least), self.most)

    def forward(self, values: Tensor) -> Tensor:
        """Map (B, n) to (B, n, K)."""
        fields = torch.einsum("bnm,nmk->bnk", self.parts(values), self.weight) + self.bias
        if self.linear is not None:
            fields = fields + (values / len(self.starts)).unsqueeze(-1) * self.linear
        return fields


class PeriodicFields(nn.Module):
    """A linear layer with ReLU on sines and cosines of the value at learned frequencies.

        e = ReLU(W [cos(2 pi c x), sin(2 pi c x)] + b)

    Source: Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning",
    NeurIPS 2022, section 3.3.

    Args:
        num: number n of columns.
        dim: width K of the set.
        spec: number of frequencies and their standard deviation at the start, cut at three of it.
    """

    def __init__(self, num: int, dim: int, spec: PeriodicSpec) -> None:
        super().__init__()
        self.sigma = spec.sigma
        self.frequencies = nn.Parameter(torch.empty(num, spec.frequencies))
        self.weight = nn.Parameter(torch.empty(num, 2 * spec.frequencies, dim))
        self.bias = nn.Parameter(torch.empty(num, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        limit = 3 * self.sigma
        nn.init.trunc_normal_(self.frequencies, std=self.sigma, a=-limit, b=limit)
        # Half of the squares of sines and cosines, and half of the sums below 0.
        width, dim = self.weight.shape[1:]
        nn.init.normal_(self.weight, std=2 * NUMERIC_NORM / math.sqrt(width * dim))
        nn.init.zeros_(self.bias)

    def waves(self, values: Tensor) -> Tensor:
        """(B, n, 2 * frequencies) cosines and then sines of values (B, n)."""
        angles = 2 * math.pi * values.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)

    def forward(self, values: Tensor) -> Tensor:
        """Map (B, n) to (B, n, K)."""
        return torch.relu(torch.einsum("bnm,nmk->bnk", self.waves(values), self.weight) + self.bias)


class MixedFields(nn.Module):
    """Numeric columns of several encodings as fields of one set.

    Args:
        specs: D encodings, in the order of the columns.
        dim: width K of the set.
    """

    def __init__(self, specs: Sequence[NumericSpec], dim: int) -> None:
        super().__init__()
        columns: dict[NumericSpec, list[int]] = {}
        for column, spec in enumerate(specs):
            columns.setdefault(spec, []).append(column)
        self.groups = nn.ModuleList(_fields(spec, len(its), dim) for spec, its in columns.items())
        self._columns = list(columns.values())
        order = [column for its in self._columns for column in its]
        self._back = [order.index(column) for column in range(len(specs))]

    def forward(self, dense: Tensor) -> Tensor:
        """Map (B, D) to (B, D, K)."""
        fields = [
            group(dense[:, columns])
            for group, columns in zip(self.groups, self._columns, strict=True)
        ]
        return torch.cat(fields, 1)[:, self._back]


def numeric_fields(specs: Sequence[NumericSpec], dim: int) -> nn.Module:
    """All numeric columns as fields of one set, each by its own encoding: (B, D) to (B, D, K).

    Args:
        specs: D encodings, in the order of the columns.
        dim: width K of the set.
    """
    if len(set(specs)) == 1:
        return _fields(specs[0], len(specs), dim)
    return MixedFields(specs, dim)


def _fields(spec: NumericSpec, num: int, dim: int) -> nn.Module:
    if isinstance(spec, ValueSpec):
        return ValueFields(num, dim, spec.has_bias)
    if isinstance(spec, AutoDisSpec):
        return AutoDisFields(num, dim, spec)
    if isinstance(spec, PiecewiseSpec):
        return PiecewiseFields(num, dim, spec)
    return PeriodicFields(num, dim, spec)
