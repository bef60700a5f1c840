"""STAR: networks of the domains, each the shared one times factors of its own.

Notation: B batch, S domains, T tasks, D width of the flattened vectors x.

Source: Sheng et al., One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR
Prediction, CIKM 2021.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models.domains import DomainMoments, DomainScale, domain_affine, parameters_of
from prismrec.models.heads.flat import FlatSets
from prismrec.models.inputs import Fields, Inputs
from prismrec.models.layers import LayerNorm, Linear, MLPSpec, widened

Norm = Literal["partitioned", "layer", "none"]


class DomainFactor(nn.Module):
    """Factors W_s of a shared matrix and terms b_s of its bias, from 1 and 0.

    Args:
        shape: (out, in) of the matrix.
        num_domains: S.

    Attributes:
        weight: (S, out, in).
        bias: (S, out).
    """

    def __init__(self, shape: torch.Size, num_domains: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_domains, *shape))
        self.bias = nn.Parameter(torch.empty(num_domains, shape[0]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every domain's map is the shared one."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class StarLinear(nn.Module):
    """An affine map whose weights are `W_s * W` and whose bias is `b_s + b`; eq. 5.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        num_domains: S.
    """

    def __init__(self, in_features: int, out_features: int, num_domains: int) -> None:
        super().__init__()
        self.shared = Linear(in_features, out_features)
        self.own = DomainFactor(self.shared.weight.shape, num_domains)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Map (B, in), whose rows have `domain` (B,), to (B, out)."""
        assert self.shared.bias is not None
        weight = self.own.weight * self.shared.weight
        return domain_affine(x, weight, self.own.bias + self.shared.bias, domain)


class PartitionedNorm(nn.Module):
    """Normalisation by the moments of each domain, `(gamma gamma_s) x' + (beta + beta_s)`; eq. 3.

    Collective: in training every rank must run it, forward and backward.

    Args:
        width: number of columns.
        num_domains: S.
    """

    def __init__(self, width: int, num_domains: int) -> None:
        super().__init__()
        self.moments = DomainMoments(width, num_domains)
        self.shared = DomainScale(width, 1)
        self.own = DomainScale(width, num_domains)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Normalise (B, width), whose rows have `domain` (B,)."""
        scale = parameters_of(self.shared.weight * self.own.weight, domain)
        shift = parameters_of(self.shared.bias + self.own.bias, domain)
        normed = self.moments(x, domain)
        return torch.addcmul(shift.to(x.dtype), normed, scale.to(x.dtype))


@dataclass(frozen=True, slots=True)
class StarSpec:
    """What a STAR is.

    Args:
        layers: hidden layers of the network; their `norm` is not read.
        norm: of x: "partitioned" by domain, "layer" per row, "none".
        auxiliary: width of the auxiliary network's hidden layer.
        domain_dim: width of the auxiliary network's vector of a domain.
        reads_features: whether the auxiliary network reads x too.
    """

    layers: MLPSpec
    norm: Norm = "partitioned"
    auxiliary: int = 32
    domain_dim: int = 8
    reads_features: bool = True


class DomainVectors(nn.Module):
    """A vector of each domain.

    Args:
        num_domains: S.
        dim: its width.
    """

    def __init__(self, num_domains: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_domains, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw them anew."""
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, domain: Tensor) -> Tensor:
        """Map domains (B,) to (B, dim)."""
        return F.embedding(domain, self.weight)


class Star(nn.Module):
    """A network of star topology for all tasks, and a small shared one that is told the domain.

    `z = star(norm(x)) + aux([e_s; x])`; the auxiliary network has one hidden layer. Factors start at
    1 and terms at 0, so that at the start every domain has the shared network.

    Args:
        fields: shapes of the inputs.
        spec: see `StarSpec`.
    """

    def __init__(self, fields: Fields, spec: StarSpec) -> None:
        super().__init__()
        self.flat = FlatSets(fields, range(len(fields.set_dims)))
        width, domains = self.flat.out_dim, fields.num_domains
        self.partitioned = PartitionedNorm(width, domains) if spec.norm == "partitioned" else None
        self.norm = LayerNorm(width) if spec.norm == "layer" else nn.Identity()
        widths = [width, *spec.layers.hidden]
        self.layers = nn.ModuleList(
            StarLinear(i, o, domains) for i, o in itertools.pairwise(widths)
        )
        self.dropout = nn.Dropout(spec.layers.dropout)
        self.head = StarLinear(widths[-1], fields.num_tasks, domains)
        self.reads_features = spec.reads_features
        self.vectors = DomainVectors(domains, spec.domain_dim)
        told = spec.domain_dim + (width if spec.reads_features else 0)
        self.auxiliary = nn.Sequential(Linear(told, spec.auxiliary), nn.ReLU())
        self.auxiliary_head = Linear(spec.auxiliary, fields.num_tasks)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T); no auxiliary loss."""
        domain = inputs.domain
        assert domain is not None
        x = self.flat(inputs)
        h = self.norm(x) if self.partitioned is None else self.partitioned(x, domain)
        for layer in self.layers:
            h = self.dropout(F.relu(layer(h, domain)))
        told = self.vectors(domain)
        if self.reads_features:
            told = torch.cat([told, x], 1)
        beside = self.auxiliary(told)
        # Outside autocast: logits rounded to bfloat16 would tie, and AUC would lose.
        with torch.autocast(x.device.type, enabled=False):
            logits = self.head(widened(h), domain) + self.auxiliary_head(widened(beside))
        return logits, {}
