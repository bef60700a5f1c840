"""Layers of which each domain has its own, for rows that each belong to one of S domains.

A layer computes what every domain would make of every row in one product and keeps the row's own: no
row moves, nothing waits for the device, and the gradient of another domain's weights is exactly 0.
It costs S times one layer, which is why only heads and small networks are made of them.

Every parameter and buffer here has the domain as its first axis.

Notation: B batch, M copies, S domains, H width.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models.collectives import sum_over_ranks
from prismrec.models.inputs import Inputs
from prismrec.models.layers import MLPSpec, NormKind, stacked_shape, widened
from prismrec.models.products import affine
from prismrec.models.towers import TaskTowers

_FLAT = 1e-12
"""Variance beside the squared mean that rounding alone makes in float32."""


def of_domain(branches: Tensor, domain: Tensor) -> Tensor:
    """The branch of each row's own domain.

    Args:
        branches: ([M,] B, S, H).
        domain: (B,) int64, 0 to S - 1.

    Returns:
        ([M,] B, H).
    """
    index = domain.view(-1, 1, 1).expand(*branches.shape[:-2], 1, branches.shape[-1])
    return branches.gather(-2, index).squeeze(-2)


def parameters_of(stacked: Tensor, domain: Tensor) -> Tensor:
    """The parameters of each row's domain: (S, [M,] H) to ([M,] B, H)."""
    picked = F.embedding(domain, stacked.flatten(1)).unflatten(1, stacked.shape[1:])
    return picked if picked.dim() == 2 else picked.transpose(0, 1)


def domain_affine(x: Tensor, weight: Tensor, bias: Tensor | None, domain: Tensor) -> Tensor:
    """`x W_s^T + b_s` with the weights of each row's domain s.

    Args:
        x: ([M,] B, in).
        weight: (S, [M,] out, in).
        bias: (S, [M,] out), or None.
        domain: (B,) int64.

    Returns:
        ([M,] B, out).
    """
    num_domains = len(weight)
    if weight.dim() == 4:
        weight = weight.transpose(0, 1)
        bias = None if bias is None else bias.transpose(0, 1)
    bias = None if bias is None else bias.flatten(-2)
    branches = affine(x, weight.flatten(-3, -2), bias)
    return of_domain(branches.unflatten(-1, (num_domains, -1)), domain)


class DomainLinear(nn.Module):
    """An affine map for each domain, `x W_s^T + b_s`; see `prismrec.models.layers.Linear`.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        num_domains: S.
        copies: number M of independent maps of each domain, or None.
        bias: whether there are biases.
        is_zero: whether the weights start at 0 instead of being drawn.

    Attributes:
        weight: (S, [M,] out, in).
        bias: (S, [M,] out), or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_domains: int,
        copies: int | None = None,
        *,
        bias: bool = True,
        is_zero: bool = False,
    ) -> None:
        super().__init__()
        self.is_zero = is_zero
        shape = (num_domains, *stacked_shape(copies, out_features, in_features))
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[:-1])) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every matrix from U(-a, a), a = sqrt(6 / (in + out)); biases to 0."""
        bound = 0.0 if self.is_zero else math.sqrt(6.0 / sum(self.weight.shape[-2:]))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Map ([M,] B, in), whose rows have `domain` (B,), to ([M,] B, out)."""
        return domain_affine(x, self.weight, self.bias, domain)


class DomainScale(nn.Module):
    """A scale and a shift per column and domain, from 1 and 0.

    Args:
        width: H.
        num_domains: S.
        copies: number M of stacked inputs, or None.

    Attributes:
        weight: (S, [M,] H).
        bias: (S, [M,] H).
    """

    def __init__(self, width: int, num_domains: int, copies: int | None = None) -> None:
        super().__init__()
        shape = (num_domains, *stacked_shape(copies, width))
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scales 1, shifts 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Scale and shift ([M,] B, H)."""
        scale, shift = parameters_of(self.weight, domain), parameters_of(self.bias, domain)
        # bf16 activations stay bf16: a float32 scale would promote the whole tensor.
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


class DomainMoments(nn.Module):
    """Every column to mean 0 and variance 1 over the rows of each domain.

    In training the moments of a domain are those of its rows on all ranks, never those of the whole
    batch, so that a mixed batch is normalised as batches of one domain each would be; rows that do not
    count, such as padding, are left out. In evaluation the running moments stand in. A domain without
    a row in a step keeps its own. The arithmetic is float32 at least, the output has the input's type.
    Source: Sheng et al., One Model to Serve All, CIKM 2021, section 3.2 (partitioned normalization).

    Collective: in training every rank must run it, forward and backward.

    Args:
        width: H.
        num_domains: S.
        copies: number M of stacked inputs, or None.
        eps: added to the variance.
        momentum: weight in (0, 1] of the newest batch in the running moments.

    Attributes:
        counted: (B,), 1 for rows that count and 0 for others, set before each step; None if all do.
        running_mean: (S, [M,] H).
        running_var: (S, [M,] H).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        width: int,
        num_domains: int,
        copies: int | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.counted: Tensor | None = None
        shape = (num_domains, *stacked_shape(copies, width))
        self.register_buffer("running_mean", torch.empty(shape))
        self.register_buffer("running_var", torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Running means 0, running variances 1."""
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Normalise ([M,] B, H), whose rows have `domain` (B,)."""
        wide = widened(x)
        if self.training:
            mean, variance = self._global_moments(wide, domain)
        else:
            mean, variance = self.running_mean, self.running_var
        # What is equal in all rows of a domain is 0, and no rounding error blown up to some size.
        is_flat = variance <= _FLAT * mean.square()
        scale = torch.where(is_flat, 0, torch.rsqrt(variance + self.eps))
        centred = wide - parameters_of(mean, domain)
        return (centred * parameters_of(scale, domain)).to(x.dtype)

    def _global_moments(self, x: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each domain, (S, [M,] H); the running moments move along."""
        is_in = F.one_hot(domain, len(self.running_mean)).to(x.dtype)
        if self.counted is not None:
            is_in = is_in * self.counted.to(x.dtype).unsqueeze(1)
        ones = torch.ones_like(is_in[:, :1])
        sums = sum_over_ranks(_per_domain(torch.cat([_rows(x), ones], 1), is_in))
        counts = sums[:, -1].detach().view(-1, *[1] * (self.running_mean.dim() - 1))
        mean = sums[:, :-1].view_as(self.running_mean) / counts.clamp_min(1)
        # A second look: the difference of two sums would lose what is small beside the mean.
        squares = (x - parameters_of(mean, domain)).square()
        squares = sum_over_ranks(_per_domain(_rows(squares), is_in))
        variance = squares.view_as(self.running_mean) / counts.clamp_min(1)
        with torch.no_grad():
            step = self.momentum * (counts > 0).to(self.running_mean.dtype)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), step.expand_as(mean))
            unbiased = variance * (counts / (counts - 1).clamp_min(1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), step.expand_as(mean))
        return mean, variance


def _rows(x: Tensor) -> Tensor:
    """([M,] B, H) as (B, M H)."""
    return x if x.dim() == 2 else x.transpose(0, 1).flatten(1)


def _per_domain(rows: Tensor, is_in: Tensor) -> Tensor:
    """Sums (S, n) of the rows (B, n) of each domain, by (B, S) whose they are."""
    with torch.autocast(rows.device.type, enabled=False):
        return is_in.mT @ rows


class DomainNorm(nn.Module):
    """A normalisation with a scale and a shift of each domain.

    Args:
        kind: "layer" per row; "batch" per column over the rows of each domain.
        width: H.
        num_domains: S.
        copies: number M of stacked inputs, or None.
        eps: added to the variance.
    """

    moments: DomainMoments | None

    def __init__(
        self,
        kind: NormKind,
        width: int,
        num_domains: int,
        copies: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.moments = None
        if kind == "batch":
            self.moments = DomainMoments(width, num_domains, copies, eps)
        self.scale = DomainScale(width, num_domains, copies)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Normalise ([M,] B, H), whose rows have `domain` (B,)."""
        if self.moments is None:
            normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        else:
            normed = self.moments(x, domain)
        return self.scale(normed, domain)


class DomainMLP(nn.Module):
    """An MLP for each domain: linear map, normalisation, ReLU and dropout for each hidden width.

    Args:
        in_features: width of the input.
        spec: what each of them is.
        num_domains: S.
        copies: number M of independent stacks of each domain, or None.

    Attributes:
        out_dim: width of the output.
    """

    def __init__(
        self, in_features: int, spec: MLPSpec, num_domains: int, copies: int | None = None
    ) -> None:
        super().__init__()
        widths = [in_features, *spec.hidden]
        self.out_dim = widths[-1]
        self.linears = nn.ModuleList(
            DomainLinear(i, o, num_domains, copies, bias=spec.norm != "batch")
            for i, o in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            DomainNorm(spec.norm, width, num_domains, copies)
            for width in spec.hidden
            if spec.norm != "none"
        )
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Map ([M,] B, in), whose rows have `domain` (B,), to ([M,] B, out_dim)."""
        for index, linear in enumerate(self.linears):
            x = linear(x, domain)
            if self.norms:
                x = self.norms[index](x, domain)
            x = self.dropout(F.relu(x, inplace=True))
        return x


class HeadOfDomain(nn.Module):
    """Which head each domain takes: its own, unless training has all of them take the first.

    Args:
        num_domains: S.

    Attributes:
        heads: (S,) int64; stored and exported with the weights, so that a model is served with the
            heads that it was trained with.
    """

    heads: Tensor

    def __init__(self, num_domains: int) -> None:
        super().__init__()
        self.register_buffer("heads", torch.arange(num_domains))

    def reset_parameters(self) -> None:
        """Every domain its own."""
        self.heads.copy_(torch.arange(len(self.heads)))

    def forward(self, domain: Tensor) -> Tensor:
        """Heads (B,) of rows of domains (B,)."""
        return self.heads[domain]


class DomainTowers(nn.Module):
    """A tower for each task and domain, in the place of `TaskTowers`.

    Only rows of a domain train its towers, and each has a bias of its own.

    Args:
        in_features: H.
        mlp: the layers of each tower.
        num_tasks: T.
        num_domains: S.
    """

    def __init__(self, in_features: int, mlp: MLPSpec, num_tasks: int, num_domains: int) -> None:
        super().__init__()
        self.copies = None if num_tasks == 1 else num_tasks
        self.of_domain = HeadOfDomain(num_domains)
        self.body = DomainMLP(in_features, mlp, num_domains, self.copies)
        self.head = DomainLinear(self.body.out_dim, 1, num_domains, self.copies)

    def forward(self, h: Tensor, inputs: Inputs) -> Tensor:
        """Logits (B, T).

        Args:
            h: (B, T, H), or (B, 1, H) for one vector that all tasks read.
            inputs: what the model was given, for the rows' domains.
        """
        assert inputs.domain is not None
        heads = self.of_domain(inputs.domain)
        if self.copies is None:
            h = h.squeeze(1)
        else:
            h = h.transpose(0, 1).expand(self.copies, -1, -1)
        h = self.body(h, heads)
        # Outside autocast: logits rounded to bfloat16 would tie, and AUC would lose.
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.head(widened(h), heads)
        return logits if self.copies is None else logits.squeeze(-1).mT

    @torch.no_grad()
    def take_first(self) -> None:
        """Let the rows of every domain go through the first head."""
        self.of_domain.heads.zero_()

    @torch.no_grad()
    def split(self) -> None:
        """Copy the first head to all others, and give every domain its own."""
        for tensor in (*self.parameters(), *self.body.buffers()):
            tensor.copy_(tensor[:1].expand_as(tensor))
        self.of_domain.reset_parameters()


def build_towers(in_features: int, mlp: MLPSpec, num_tasks: int, num_domains: int) -> nn.Module:
    """A tower for each task, or one for each task and domain.

    Args:
        in_features: width of what they read.
        mlp: the layers of each tower.
        num_tasks: T.
        num_domains: S, or 0 for towers that all rows share.

    Returns:
        A module with the `forward` of `TaskTowers`.
    """
    if num_domains:
        return DomainTowers(in_features, mlp, num_tasks, num_domains)
    return TaskTowers(in_features, mlp, num_tasks)
