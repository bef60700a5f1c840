"""The field vectors of some sets, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prismrec.models.inputs import Fields, Inputs
from prismrec.models.numeric import numeric_fields


class FlatSets(nn.Module):
    """Field vectors of some sets, with those of the numeric columns in each, as one vector per row.

    Args:
        fields: shapes of the model's inputs.
        indices: positions of the sets.
        has_numeric: whether numeric columns are fields of these sets.

    Attributes:
        out_dim: width D of the vector.
    """

    def __init__(self, fields: Fields, indices: Sequence[int], *, has_numeric: bool = True) -> None:
        super().__init__()
        self.indices = tuple(indices)
        columns = fields.num_dense if has_numeric else 0
        self.numeric = nn.ModuleDict(
            {str(m): numeric_fields(fields.numeric_specs, fields.set_dims[m]) for m in self.indices}
            if columns
            else {}
        )
        self.out_dim = sum((fields.set_fields[m] + columns) * fields.set_dims[m] for m in indices)

    def forward(self, inputs: Inputs) -> Tensor:
        """Map one batch to (B, D)."""
        parts = []
        for m in self.indices:
            parts.append(inputs.sets[m].flatten(1))
            if self.numeric:
                parts.append(self.numeric[str(m)](inputs.dense).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
