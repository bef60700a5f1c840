"""TorchRec's sharding of the collection: every kind on every device, and pooling that no kind changes.

Notation: B rows of a rank's batch, K outputs (a feature of a table), d_k width of output k.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionContext,
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import (
    Awaitable,
    LazyAwaitable,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from prismrec.config.placement import KINDS
from prismrec.config.sequence_tables import SEQUENCE_KINDS
from prismrec.embeddings.access import lookups, table_name
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.managed.modules import ManagedSharder
from prismrec.embeddings.optimizers import fuse_optimizers, plain_optimizers
from prismrec.embeddings.sets import EmbeddingSpec

_NAMES = {"grid": "grid_shard"}
"""TorchRec's names of kinds, where they differ."""


def torchrec_name(kind: str) -> str:
    """What TorchRec calls a kind."""
    return _NAMES.get(kind, kind)


class ShardedBags(ShardedEmbeddingBagCollection):
    """TorchRec's sharded collection whose kernels always sum; a mean is taken of what they return.

    TorchRec leaves a mean to the kernels under some kinds and takes it itself under others, where
    it divides by the sum of the weights instead of the number of ids, divides the outputs of every
    other kind too, and gives tables that share a feature one divisor; under grid it adds up the
    means of the parts. Here a mean is the weighted sum over the number of ids under every kind, and
    what the kernels clip is the gradient of a sum.

    Args:
        module: the unsharded collection.
        arguments: those of TorchRec's class.
    """

    def __init__(self, module: EmbeddingBagCollection, arguments: dict[str, Any]) -> None:
        configs = module.embedding_bag_configs()
        poolings = {config.name: config.pooling for config in configs}
        for config in configs:
            config.pooling = PoolingType.SUM
        super().__init__(module, **arguments)
        for config in configs:
            config.pooling = poolings[config.name]
        _bear_empty_tables(self)
        feeds: dict[str, list[str]] = {}
        for config in configs:
            for feature in config.feature_names:
                feeds.setdefault(feature, []).append(config.name)
        means = {
            feature if len(tables) == 1 else f"{feature}@{table}"
            for feature, tables in feeds.items()
            for table in tables
            if poolings[table] == PoolingType.MEAN
        }
        names = self._embedding_names
        self._features = [name.partition("@")[0] for name in names]
        self._is_mean = torch.tensor([name in means for name in names], device=self._device)
        self._has_mean = bool(means)
        self._rows: Tensor | None = None

    def bag_scale(self, ids: KeyedJaggedTensor) -> Tensor | None:
        """(B, K) factors on the outputs: 1 over the size of the bag where a mean is asked for.

        None where none is. The mean of an empty bag is zero.
        """
        if not self._has_mean:
            return None
        keys = ids.keys()
        if self._rows is None:
            self._rows = torch.tensor([keys.index(f) for f in self._features], device=self._device)
        lengths = ids.lengths().view(len(keys), -1).index_select(0, self._rows)
        sizes = torch.where(self._is_mean.unsqueeze(1), lengths.clamp(min=1), 1)
        return sizes.T.to(torch.float32).reciprocal()

    def input_dist(  # type: ignore[override]
        self, ctx: EmbeddingBagCollectionContext, features: KeyedJaggedTensor
    ) -> Awaitable[Awaitable[KJTList]]:
        """Send the ids to the ranks of their rows."""
        ctx.divisor = self.bag_scale(features)
        return super().input_dist(ctx, features)

    def output_dist(
        self, ctx: EmbeddingBagCollectionContext, output: list[Tensor]
    ) -> LazyAwaitable[KeyedTensor]:
        """Bring the vectors to the ranks of their examples."""
        return self._scaled(ctx, super().output_dist(ctx, output))

    def compute_and_output_dist(
        self, ctx: EmbeddingBagCollectionContext, input: KJTList
    ) -> LazyAwaitable[KeyedTensor]:
        """Look up, and bring the vectors to the ranks of their examples."""
        return self._scaled(ctx, super().compute_and_output_dist(ctx, input))

    def _scaled(
        self, ctx: EmbeddingBagCollectionContext, pooled: LazyAwaitable[KeyedTensor]
    ) -> LazyAwaitable[KeyedTensor]:
        if self._has_mean:
            if ctx.divisor is None:
                raise RuntimeError("mean pooling: `bag_scale` was not taken of this batch's ids")
            pooled.callbacks.append(partial(_scale, factors=ctx.divisor, widths=self._dim_per_key))
        return pooled


def _bear_empty_tables(module: nn.Module) -> None:
    """Let FBGEMM's kernels on CPU do with tables that have no row on this rank.

    Backward takes neighbours with the same number of rows before them for one table, so that an
    empty one lends its width to the next, and reads past the end of these numbers where the last is
    empty. A kernel without any row takes itself for one of a GPU.
    """
    for lookup in lookups(module):
        for kernel in lookup.modules():
            if not isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen) or not kernel.use_cpu:
                continue
            before = [0]
            for rows, *_ in kernel.embedding_specs:
                before.append(before[-1] + max(1, rows))
            of_features = [before[table] for table in kernel.feature_table_map]
            kernel.hash_size_cumsum = torch.tensor([*of_features, before[-1]])
            if not kernel.weights_host.numel():
                kernel.weights_host = nn.Parameter(kernel.weights_host.new_zeros(1))


class Sharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every kind on every device.

    Args:
        codecs: how vectors and gradients are packed for their way, by communication; None sends
            them as they are.
    """

    def __init__(self, codecs: dict[str, QuantizedCommCodecs] | None = None) -> None:
        super().__init__(qcomm_codecs_registry=codecs)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Kinds a table may take."""
        return [torchrec_name(kind) for kind in KINDS]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedBags:
        """The collection spread over the ranks by a plan.

        Collective: every rank calls it.
        """
        return ShardedBags(
            module,
            {
                "table_name_to_parameter_sharding": params,
                "env": env,
                "fused_params": self.fused_params,
                "device": device,
                "qcomm_codecs_registry": self.qcomm_codecs_registry,
                "module_fqn": module_fqn,
            },
        )

    @property
    def sharded_module_type(self) -> type[nn.Module]:  # type: ignore[override]
        """What `shard` gives."""
        return ShardedBags


def _scale(pooled: KeyedTensor, factors: Tensor, widths: Tensor) -> KeyedTensor:
    """Each output (B, d_k) times its factor."""
    of_keys, values = pooled.length_per_key(), pooled.values()
    if len(set(of_keys)) == 1:
        blocks = values.view(len(values), len(of_keys), -1)
        scaled = (blocks * factors.unsqueeze(-1)).view_as(values)
    else:
        scaled = values * factors.repeat_interleave(widths, 1, output_size=values.shape[1])
    return KeyedTensor(pooled.keys(), of_keys, scaled, key_dim=1)


class ShardedUnpooled(ShardedEmbeddingCollection):
    """TorchRec's sharded collection of vectors that are not pooled.

    Args:
        module: the unsharded collection.
        arguments: those of TorchRec's class.
    """

    def __init__(self, module: EmbeddingCollection, arguments: dict[str, Any]) -> None:
        super().__init__(module, **arguments)
        _bear_empty_tables(self)
        for lookup in lookups(self):
            for kernel in lookup.modules():
                if isinstance(kernel, DenseTableBatchedEmbeddingBagsCodegen) and kernel.use_cpu:
                    kernel.forward = partial(_rows_of, kernel)


def _rows_of(
    kernel: DenseTableBatchedEmbeddingBagsCodegen, indices: Tensor, offsets: Tensor
) -> Tensor:
    """A row for each id of whole tables, which FBGEMM's kernel on CPU pools although told not to.

    Args:
        kernel: holds the tables, of one width.
        indices: (L,) ids of F features of B rows each.
        offsets: (F * B + 1,).
    """
    starts = kernel.hash_size_cumsum[:-1]
    ends = offsets[:: (len(offsets) - 1) // len(starts)]
    places = indices + starts.repeat_interleave(ends.diff(), output_size=len(indices))
    return F.embedding(places, kernel.weights.view(-1, kernel.max_D))


class UnpooledSharder(EmbeddingCollectionSharder):
    """TorchRec's sharder of such collections; their vectors travel as they are."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Kinds a table may take."""
        return list(SEQUENCE_KINDS)

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedUnpooled:
        """The collection spread over the ranks by a plan.

        Collective: every rank calls it.
        """
        return ShardedUnpooled(
            module,
            {
                "table_name_to_parameter_sharding": params,
                "env": env,
                "fused_params": self.fused_params,
                "device": device,
                "module_fqn": module_fqn,
            },
        )

    @property
    def sharded_module_type(self) -> type[ShardedUnpooled]:
        """What `shard` gives."""
        return ShardedUnpooled


@dataclass(frozen=True, slots=True)
class ShardedTables:
    """A model whose tables are spread over the ranks.

    Args:
        dmp: TorchRec's wrapper.
        plain: optimizers of the data_parallel tables, which backward does not update.
    """

    dmp: DistributedModelParallel
    plain: list[torch.optim.Optimizer]

    def plain_states(self) -> dict[Tensor, dict[str, Any]]:
        """State of the plain optimizers by parameter."""
        return {p: state for each in self.plain for p, state in each.state.items()}


def shard_tables(
    model: nn.Module,
    spec: EmbeddingSpec,
    plan: ShardingPlan,
    device: torch.device,
    sharder: Sharder,
    env: ShardingEnv | None = None,
) -> ShardedTables:
    """Give every table its optimizer and its place.

    Collective: every rank calls it.

    Args:
        model: holds the unsharded collections, on the meta device.
        spec: what its tables are.
        plan: where each physical table goes.
        device: of this rank.
        sharder: how it goes there.
        env: ranks that share the tables; all of them if not given.
    """
    tables = {each.name: each for each in physical_tables(spec)}
    replicated = {
        name
        for module in plan.plan.values()
        for name, place in module.items()  # type: ignore[attr-defined]
        if place.sharding_type == "data_parallel"
    }
    weights = {table_name(name): p for name, p in model.named_parameters()}
    fuse_optimizers([each for name, each in tables.items() if name not in replicated], weights)
    sharders = [sharder, ManagedSharder(sharder), UnpooledSharder()]
    dmp = DistributedModelParallel(model, env=env, device=device, plan=plan, sharders=sharders)
    whole = [
        (tables[table_name(name)], parameter)
        for name, parameter in dmp.named_parameters()
        if table_name(name) in replicated
    ]
    return ShardedTables(dmp, plain_optimizers(whole))
