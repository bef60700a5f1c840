"""The managed tables of a sharded model, as the loop sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.managed.id_map import Change
from prismrec.embeddings.managed.modules import IdMapModule
from prismrec.embeddings.managed.newcomers import EMPTY
from prismrec.embeddings.managed.owned_rows import OwnedRows
from prismrec.embeddings.managed.state import MapShard, blank_state, give_state, take_state
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import NEVER, LocalShard

COUNTERS = ("rows_in_use", "lookups", "misses", "admissions", "evictions", "dropped")
"""Names of the numbers of each table, see `ManagedTables.metrics`."""


class ManagedTables:
    """The maps of this rank's shards of the managed tables; there may be none.

    Args:
        model: the sharded model.
        spec: what its tables are.
    """

    def __init__(self, model: nn.Module, spec: EmbeddingSpec) -> None:
        names = {each.name: each.table.name for each in physical_tables(spec)}
        self._spec = spec
        self._modules = {
            names[path.rpartition(".")[2]]: module
            for path, module in model.named_modules()
            if isinstance(module, IdMapModule)
        }

    def own(self, shards: Sequence[LocalShard]) -> None:
        """Let vectors and states follow the owners of their rows from now on.

        Args:
            shards: this rank's blocks of all tables, views.
        """
        deviations = {each.name: each.init_std for each in self._spec.sets}
        for table, module in self._modules.items():
            of_table = [shard for shard in shards if shard.table == table]
            module.owned = OwnedRows(of_table, deviations, self._spec.seed)

    def start_at(self, step: int) -> None:
        """Set the number of steps done."""
        for module in self._modules.values():
            module.step = step

    @property
    def num_bytes(self) -> int:
        """Memory of this rank's maps."""
        return sum(each.id_map.num_bytes for each in self._modules.values())

    def state(self) -> list[MapShard]:
        """A copy of every map in host memory, for a checkpoint."""
        return [take_state(module.id_map, table) for table, module in self._modules.items()]

    def blank(self) -> list[MapShard]:
        """Maps of this rank's rows, to be filled and loaded."""
        return [blank_state(module.id_map, table) for table, module in self._modules.items()]

    def load(self, maps: Sequence[MapShard], step: int) -> None:
        """Go on from maps of the same rows, as of the end of a step."""
        for state in maps:
            give_state(self._modules[state.table].id_map, state)
        self.start_at(step)

    def adopt(self, maps: Sequence[MapShard], steps: int) -> None:
        """Start with the maps of another run: its ids have their rows, with first vectors.

        Args:
            maps: of the same rows, as of the end of a step of that run.
            steps: that step. Here it is step 0, so that what was seen last before has a step below.
        """
        for state in maps:
            for seen in (state.rows, state.newcomers):
                seen["last_seen"] -= steps
            module = self._modules[state.table]
            give_state(module.id_map, state)
            codes = module.id_map.codes.view(-1)
            rows = (codes != EMPTY).nonzero().squeeze(1)
            if module.owned is not None:
                module.owned.follow(Change(rows, codes[rows]), NEVER)

    def metrics(self, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """What happened to the ids of each table since the last call, over all ranks.

        Collective: every rank calls it.

        Args:
            total: sums a tensor over the ranks.
            device: where that tensor has to lie.

        Returns:
            `ids/<table>/...`: `rows_in_use`, rows that some id has now; `lookups` of training, and of
            these `misses`, which found no row; `admissions` and `evictions` of ids; `dropped`,
            lookups of new ids that were forgotten because too many had to be remembered.
        """
        if not self._modules:
            return {}
        rows = []
        for module in self._modules.values():
            seen = module.id_map.take_counters()
            happened = [seen.lookups, int(seen.misses), seen.admissions, seen.evictions]
            rows.append([module.id_map.rows_in_use, *happened, seen.dropped])
        sums = total(torch.tensor(rows, dtype=torch.int64, device=device)).tolist()
        return {
            f"ids/{table}/{name}": float(value)
            for table, values in zip(self._modules, sums, strict=True)
            for name, value in zip(COUNTERS, values, strict=True)
        }
