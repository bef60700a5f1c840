"""Interactions that a recipe names outside the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prismrec.config import UserError
from prismrec.config.external import import_function
from prismrec.models.interactions.base import Interaction


class Copies(Interaction):
    """Independent interactions of one kind, each on its own embedding set.

    Code outside the package knows one (B, N, K) tensor only, so the copies run one after another.

    Args:
        interactions: M of them, of equal `out_dim`.
    """

    def __init__(self, interactions: list[Interaction]) -> None:
        super().__init__()
        self.interactions = nn.ModuleList(interactions)
        self.out_dim = interactions[0].out_dim

    def forward(self, X: Tensor) -> Tensor:
        """Map (M, B, N, K) to (M, B, out_dim)."""
        return torch.stack([each(x) for each, x in zip(self.interactions, X, strict=True)])


@dataclass(frozen=True, slots=True)
class ExternalSpec:
    """Asks for `function(num_fields, dim, options)` of another package.

    Args:
        name: `package.module:function`.
        options: handed on as a dictionary.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def build(self, num_fields: int, dim: int, copies: int | None) -> Interaction:
        """One interaction, or `copies` of them.

        Raises:
            UserError: the function cannot be imported or returns something else.
        """
        function = import_function("model.interaction", self.name)
        built = [function(num_fields, dim, dict(self.options)) for _ in range(copies or 1)]
        for each in built:
            if not isinstance(each, nn.Module) or not isinstance(
                getattr(each, "out_dim", None), int
            ):
                raise UserError(
                    f"model.interaction: '{self.name}' returned {type(each).__name__}; it must "
                    "return a torch.nn.Module with `out_dim`, the width of its output"
                )
        return built[0] if copies is None else Copies(built)
