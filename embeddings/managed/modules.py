"""Managed tables as TorchRec modules: the collection, its map modules, and how both are sharded.

TorchRec sends ids by their code's range to the rank that holds their bucket, where the map module
puts rows in the place of codes before the lookup. The module is ours, not TorchRec's
`MCHManagedCollisionModule`: that one keeps a history whose size its first batch fixes for good and
drops what is too much without a word; its filter for rare ids also hides the ids that have rows;
its LFU does not know when an id was last seen; and rows of another number of ranks do not fit it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionContext,
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
from torchrec.distributed.types import Awaitable, ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection, ManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from prismrec.data.encode.codes import bucket_span
from prismrec.embeddings.collection import build_collection, physical_tables
from prismrec.embeddings.managed.id_map import IdMap, MapPart
from prismrec.embeddings.managed.owned_rows import OwnedRows
from prismrec.embeddings.managed.spec import ManagedRows
from prismrec.embeddings.sets import EmbeddingSpec

Features = dict[str, JaggedTensor]


class IdMapModule(ManagedCollisionModule):
    """The map of one shard of a managed table, as TorchRec's collections take it.

    In training mode every lookup counts as one step of training; in evaluation mode it changes
    nothing.

    Args:
        rows: how rows are given to ids.
        first: first row of the shard in the table.
        num_rows: rows of the shard, whole buckets.
        bucket_rows: rows of a bucket.
        device: where the map lies.

    Attributes:
        id_map: the map itself.
        step: steps of training done.
        owned: the shard's vectors and states; given once the table is sharded.
    """

    def __init__(
        self, rows: ManagedRows, first: int, num_rows: int, bucket_rows: int, device: torch.device
    ) -> None:
        super().__init__(device=device, output_segments=[first, first + num_rows])
        if first % bucket_rows or num_rows % bucket_rows:
            raise ValueError(
                f"rows {first} to {first + num_rows} of a managed table are no whole buckets of "
                f"{bucket_rows}"
            )
        self.rows, self.bucket_rows, self.first = rows, bucket_rows, first
        part = MapPart(rows.buckets, bucket_rows, first // bucket_rows, num_rows // bucket_rows)
        self.id_map = IdMap(rows.options, part, device)
        self.step = 0
        self.owned: OwnedRows | None = None
        self._recorded: Tensor | None = None

    def profile(self, features: Features) -> Features:
        """Count the ids of a training step, and give rows to new ids when it is time."""
        self._recorded = None
        if not self.training:
            return features
        (feature,) = features.values()
        codes = feature.values()
        self.step += 1
        rows = self.id_map.record(codes, self.step)
        if self.id_map.is_due(self.step):
            change = self.id_map.admit(self.step)
            if self.owned is not None:
                self.owned.follow(change, self.step)
            rows, _ = self.id_map.look_up(codes)
        self._recorded = rows
        return features

    def remap(
        self,
        features: Features,
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> Features:
        """Put rows of the table in the place of codes."""
        ((name, feature),) = features.items()
        rows = self._recorded
        if rows is None:
            rows, _ = self.id_map.look_up(feature.values())
        self._recorded = None
        values = rows + self.first
        return {
            name: JaggedTensor(values, lengths=feature.lengths(), weights=feature.weights_or_none())
        }

    def forward(self, features: Features, mutate_miss_lengths: bool = True) -> Features:
        """Count and look up, as an unsharded table does."""
        return self.remap(self.profile(features))

    def preprocess(self, features: Features) -> Features:
        """Nothing: ids are made codes by the reader, on its threads."""
        return features

    def evict(self) -> Tensor | None:
        """Nothing for TorchRec to do: rows are reset when they change their owners."""
        return None

    def output_size(self) -> int:
        """Rows of the shard."""
        return self.id_map.part.rows

    def input_size(self) -> int:
        """Number of codes."""
        return bucket_span(self.rows.buckets) * self.rows.buckets

    def buckets(self) -> int:
        """Buckets of the whole table."""
        return self.rows.buckets

    def open_slots(self) -> Tensor:
        """(1,) free rows, those of unknown ids not counted."""
        part = self.id_map.part
        return torch.tensor([part.rows - part.count - self.id_map.rows_in_use])

    def validate_state(self) -> None:
        """Nothing: the map is no part of the module's state dict."""

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int],
        device: torch.device | None = None,
    ) -> IdMapModule:
        """The map of some of the rows, for one rank."""
        first, stop = output_id_range
        return IdMapModule(self.rows, first, stop - first, self.bucket_rows, device or self.device)


class ShardedManagedBags(ShardedManagedCollisionEmbeddingBagCollection):
    """TorchRec's sharded collection of managed tables, which takes means as ours of the others."""

    def input_dist(  # type: ignore[override]
        self, ctx: ManagedCollisionEmbeddingBagCollectionContext, features: KeyedJaggedTensor
    ) -> Awaitable[Awaitable[KJTList]]:
        """Send the codes to the ranks of their buckets."""
        awaitable = super().input_dist(ctx, features)
        ctx.divisor = self._embedding_module.bag_scale(features)
        return awaitable


class ManagedSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Shards a collection of managed tables by rows.

    Args:
        bags: how the tables themselves are sharded; it gives collections with a `bag_scale`.
    """

    def __init__(self, bags: EmbeddingBagCollectionSharder) -> None:
        super().__init__(ebc_sharder=bags, mc_sharder=ManagedCollisionCollectionSharder())

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Kinds a table may take."""
        return ["row_wise"]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Kernels of a table; none with a cache, which would not see rows being reset."""
        return ["fused", "fused_uvm"] if compute_device_type == "cuda" else ["fused"]

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedBags:
        """The collection spread over the ranks by a plan.

        Collective: every rank calls it.
        """
        return ShardedManagedBags(
            module,
            params,
            ebc_sharder=self._e_sharder,
            mc_sharder=self._mc_sharder,
            env=env,
            device=device,
        )

    @property
    def sharded_module_type(self) -> type[nn.Module]:
        """What `shard` gives."""
        return ShardedManagedBags


def build_managed(
    spec: EmbeddingSpec, device: torch.device
) -> ManagedCollisionEmbeddingBagCollection | None:
    """The unsharded collection of the managed tables, None where there are none.

    On the meta device it holds no memory. It takes codes, see `prismrec.data.encode.codes`.
    """
    physical = [each for each in physical_tables(spec) if each.table.is_managed]
    if not physical:
        return None
    bags = build_collection(spec, device, is_managed=True)
    maps: dict[str, ManagedCollisionModule] = {}
    for each in physical:
        rows, count = each.table.managed, each.table.rows
        assert rows is not None
        maps[each.name] = IdMapModule(rows, 0, count, count // rows.buckets, device)
    return ManagedCollisionEmbeddingBagCollection(
        bags, ManagedCollisionCollection(maps, bags.embedding_bag_configs(), need_preprocess=False)
    )
