"""Who listens to whom: which experts a task sees, and which of them it may move.

A reader is whoever takes a mix of the experts of a layer: each task and, below the last layer, the
shared stream. Notation: R readers, M experts.

Source: Su et al., STEM: Unleashing the Power of Embeddings for Multi-Task Recommendation, AAAI 2024,
for experts that all tasks see and only some move; Tang et al., Progressive Layered Extraction,
RecSys 2020, for experts that only some tasks see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Table = tuple[tuple[bool, ...], ...]
"""R x M: a row for each reader, a column for each expert."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Forward visibility and gradient of a layer's experts.

    Args:
        use: whether a reader's gate may choose an expert; None where all may.
        keep: whether a reader's loss reaches an expert; None where all do. It changes no value.
    """

    use: Table | None = None
    keep: Table | None = None

    def check(self, num_readers: int, num_experts: int) -> None:
        """Refuse tables of another shape, and readers that see no expert.

        Raises:
            ValueError: see above.
        """
        for name, table in (("use", self.use), ("keep", self.keep)):
            shape = {len(row) for row in table or ()}
            if table is not None and (len(table) != num_readers or shape != {num_experts}):
                raise ValueError(
                    f"`{name}` must have {num_readers} rows, one for each reader, of "
                    f"{num_experts} experts, got {len(table)} rows of {sorted(shape)}"
                )
        blind = [r for r, row in enumerate(self.use or ()) if not any(row)]
        if blind:
            raise ValueError(f"readers {blind} see no expert; `use` needs one for each")


EVERYONE = Routing()
"""All readers see and move all experts."""


def own_and_shared(owners: Sequence[int], readers: Sequence[int], shared: int) -> Table:
    """The table of readers that have only their own experts and the shared ones.

    Args:
        owners: the owner of each expert.
        readers: the owner that each reader is, or belongs to; `shared` for the shared stream.
        shared: the owner of shared experts.
    """
    return tuple(tuple(owner in (reader, shared) for owner in owners) for reader in readers)


def everything(num_readers: int, num_experts: int) -> Table:
    """The table of readers that have all experts."""
    return ((True,) * num_experts,) * num_readers
