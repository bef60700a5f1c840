"""A model outside the package that tells domains apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prismrec.models import Fields, Inputs
from prismrec.models.domains import DomainTowers
from prismrec.models.layers import MLPSpec

SECTION = {"name": "tests.helpers.domain_model:build", "reads_domain": True}
"""`[model]` of a recipe."""


class ByDomain(nn.Module):
    """A tower for each domain on the vectors of the first set and the numeric columns."""

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        width = fields.set_fields[0] * fields.set_dims[0] + fields.num_dense
        spec = MLPSpec((8,), norm="layer")
        self.towers = DomainTowers(width, spec, fields.num_tasks, fields.num_domains)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T)."""
        h = torch.cat([inputs.sets[0].flatten(1), inputs.dense], 1)
        return self.towers(h.unsqueeze(1), inputs), {}


def build(fields: Fields, options: dict[str, Any]) -> nn.Module:
    """Called by `build_model`."""
    return ByDomain(fields)
