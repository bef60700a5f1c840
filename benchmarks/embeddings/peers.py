"""The ways of training K sets of F tables that are compared, each as its own users would write it.

All of them use Adagrad. Each gets its ids in the form it takes them in and the gradient of what it
returns; what a model would have to do besides to get one tensor per set is left out, except of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from benchmarks.embeddings.cases import Case
from prismrec.config.embedding import Layout, ShardingKind, TableOptimizer
from prismrec.data.batch import jagged_ids
from prismrec.embeddings.collection import TYPES, SetViews, build_collection
from prismrec.embeddings.plan import Placement, plan_tables
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.sharder import ShardedTables, Sharder, shard_tables
from prismrec.train.process_group import Ranks

RATE, EPS = 1e-6, 1e-8
DENSE_LIMIT = {"cpu": 90_000_000, "cuda": 1 << 30}
"""Weights above which `nn.Embedding` is left out: its gradient is as large, and walked every step."""
_PLANNED_BYTES = 64 << 30
"""Memory that the planners are told of; the tables share it."""

Jagged = tuple[Tensor, Tensor, list[int]]
"""Ids, sizes of bags and ids of each feature: a row-major batch before it is a KeyedJaggedTensor."""


class Peer(Protocol):
    """One way.

    Args:
        name: in the results.
        against: name of the peer that its milliseconds are divided by.
        way: what `traffic` counts.
    """

    name: str
    against: str
    way: str

    def batch(self, ids: Tensor) -> Any:
        """This rank's ids (F, B, bag) in the form that `forward` takes."""

    def forward(self, batch: Any) -> list[Tensor]:
        """The outputs, which get gradients."""

    def update(self) -> None:
        """What is left of the step after backward."""


class _Tables(nn.Module):
    """A collection as DistributedModelParallel wants it: inside a module."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        return self.tables(ids)


@dataclass
class Ours:
    """The package's tables and the views of the sets: one (B, F, width) tensor per set.

    Args:
        name: in the results.
        against: name of the peer to divide by.
        way: "packed" or "separate".
        sharded: the tables.
        views: of their output.
        fields: names of the features.
    """

    name: str
    against: str
    way: str
    sharded: ShardedTables
    views: SetViews
    fields: tuple[str, ...]

    def batch(self, ids: Tensor) -> Jagged:
        """As the reader gives it."""
        return _jagged(ids)

    def forward(self, batch: Jagged) -> list[Tensor]:
        """One tensor per set."""
        return self.views(self.sharded.dmp(jagged_ids(self.fields, *batch)))  # type: ignore[no-any-return]

    def update(self) -> None:
        """Nothing: the tables were updated in backward."""


@dataclass
class TorchRec:
    """An EmbeddingBagCollection of K tables for each feature."""

    name: str
    against: str
    way: str
    dmp: DistributedModelParallel
    fields: tuple[str, ...]

    def batch(self, ids: Tensor) -> Jagged:
        """As for ours."""
        return _jagged(ids)

    def forward(self, batch: Jagged) -> list[Tensor]:
        """One tensor (B, F * K * width), table by table."""
        return [self.dmp(jagged_ids(self.fields, *batch)).values()]

    def update(self) -> None:
        """Nothing: the tables were updated in backward."""


@dataclass
class Raw:
    """FBGEMM's kernel alone, with its ids ready: the limit of every module around it."""

    name: str
    against: str
    way: str
    kernel: SplitTableBatchedEmbeddingBagsCodegen
    copies: int

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and offsets; those of separate tables as often as there are sets."""
        values = ids.reshape(-1).repeat(self.copies)
        count = ids.shape[0] * ids.shape[1] * self.copies
        return values, torch.arange(count + 1, device=ids.device) * ids.shape[2]

    def forward(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        """One tensor (B, F * K * width)."""
        return [self.kernel(*batch)]

    def update(self) -> None:
        """Nothing: the tables were updated in backward."""


@dataclass
class Plain:
    """PyTorch's own modules, K for each feature, and its optimizer."""

    name: str
    against: str
    way: str
    tables: Sequence[Sequence[nn.Module]]
    optimizer: torch.optim.Optimizer
    look_up: Callable[[nn.Module, Tensor], Tensor]

    def batch(self, ids: Tensor) -> list[Tensor]:
        """The ids (B, bag) of each feature."""
        return list(ids.unbind())

    def forward(self, batch: list[Tensor]) -> list[Tensor]:
        """A tensor (B, width) for each feature and set."""
        return [
            self.look_up(table, ids)
            for ids, tables in zip(batch, self.tables, strict=True)
            for table in tables
        ]

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def spec_of(case: Case, layout: Layout) -> EmbeddingSpec:
    """A case's sets and tables in a layout."""
    kind: ShardingKind = "table_wise"
    if case.kind != "one_rank":
        kind = case.kind if layout != "spread" else "auto"  # type: ignore[assignment]
    rule = TableOptimizer(name="adagrad", learning_rate=RATE, eps=EPS)
    fields = _fields(case)
    return EmbeddingSpec(
        sets=tuple(EmbeddingSet(f"set{k}", case.width, 0.01) for k in range(case.k)),
        tables=tuple(
            TableSpec(name, case.rows, (name,), "sum", layout, kind, rule) for name in fields
        ),
        fields=fields,
        data_type=case.data_type,  # type: ignore[arg-type]
    )


def shard(spec: EmbeddingSpec, batch: int, ranks: Ranks) -> ShardedTables:
    """The package's tables, as the training loop makes them.

    Collective: every rank calls it.

    Args:
        spec: what they are.
        batch: rows of a rank's batch.
        ranks: this process among the others.
    """
    placement = Placement(
        ranks.world_size, ranks.local_world_size, ranks.device.type, _PLANNED_BYTES, batch
    )
    model = _Tables(build_collection(spec, torch.device("meta")))
    group = dist.group.WORLD
    assert group is not None
    plan = plan_tables(model, spec, placement, group)
    return shard_tables(model, spec, plan, ranks.device, Sharder())


def ours(case: Case, ranks: Ranks, layout: Layout) -> Ours:
    """Our tables in a layout.

    Collective: every rank calls it.
    """
    spec = spec_of(case, layout)
    return Ours(
        name="ours" if layout == "packed" else f"ours_{layout}",
        against="ours",
        way="packed" if layout == "packed" else "separate",  # each spread set gets its own ids
        sharded=shard(spec, case.batch // ranks.world_size, ranks),
        views=SetViews(spec),
        fields=spec.fields,
    )


def raw(case: Case, ranks: Ranks, way: str) -> Raw:
    """FBGEMM's kernel for packed rows or for separate tables."""
    is_cuda = ranks.device.type == "cuda"
    where = EmbeddingLocation.DEVICE if is_cuda else EmbeddingLocation.HOST
    what = ComputeDevice.CUDA if is_cuda else ComputeDevice.CPU
    copies = case.k if way == "separate" else 1
    width = case.k * case.width // copies
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(case.rows, width, where, what)] * (case.tables * copies),
        optimizer=EmbOptimType.EXACT_ADAGRAD,
        learning_rate=RATE,
        eps=EPS,
        device=ranks.device,
        weights_precision=SparseType.FP16 if case.data_type == "fp16" else SparseType.FP32,
        output_dtype=SparseType.FP32,
    )
    is_packed = way == "packed"
    name, against = ("tbe", "ours") if is_packed else ("tbe_separate", "ours_separate")
    return Raw(name, against, way, kernel, copies)


def torchrec_tables(case: Case, ranks: Ranks) -> TorchRec:
    """TorchRec's collection of K tables for each feature, by its own planner and sharder.

    Collective: every rank calls it.
    """
    fields = _fields(case)
    configs = [
        EmbeddingBagConfig(
            name=f"{field}_set{k}",
            embedding_dim=case.width,
            num_embeddings=case.rows,
            feature_names=[field],
            data_type=TYPES[case.data_type],
        )
        for field in fields
        for k in range(case.k)
    ]
    model = _Tables(EmbeddingBagCollection(tables=configs, device=torch.device("meta")))
    _apply_optimizer_in_backward(
        torch.optim.Adagrad, model.tables.parameters(), {"lr": RATE, "eps": EPS}
    )
    kind = case.kind if case.kind != "one_rank" else "table_wise"
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=ranks.world_size,
            compute_device=ranks.device.type,
            local_world_size=ranks.local_world_size,
            ddr_cap=_PLANNED_BYTES,
            hbm_cap=_PLANNED_BYTES,
        ),
        batch_size=case.batch // ranks.world_size,
        constraints={each.name: ParameterConstraints(sharding_types=[kind]) for each in configs},
    )
    sharders = [_AnyKind()]
    group = dist.group.WORLD
    assert group is not None
    plan = planner.collective_plan(model, sharders, group)
    dmp = DistributedModelParallel(model, device=ranks.device, plan=plan, sharders=sharders)
    return TorchRec("ebc", "ours", "separate", dmp, fields)


class _AnyKind(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, which leaves row_wise out on CPU although it works there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise"]


def embedding_bags(case: Case, ranks: Ranks) -> Plain:
    """`nn.EmbeddingBag` with sparse gradients."""
    tables = [
        [
            nn.EmbeddingBag(case.rows, case.width, mode="sum", sparse=True, device=ranks.device)
            for _ in range(case.k)
        ]
        for _ in range(case.tables)
    ]
    return Plain("embedding_bag", "ours", "sparse", tables, _adagrad(tables), _call)


def dense_embeddings(case: Case, ranks: Ranks) -> Plain:
    """`nn.Embedding` with gradients of all rows."""
    tables = [
        [nn.Embedding(case.rows, case.width, device=ranks.device) for _ in range(case.k)]
        for _ in range(case.tables)
    ]
    return Plain("embedding", "ours", "dense", tables, _adagrad(tables), _call_and_sum)


def peers_of(case: Case, ranks: Ranks) -> list[Callable[[], Peer]]:
    """What makes each peer of a case, ours first.

    Rows of all sets side by side can be wider than a shard may be; then nothing is packed, and the
    others are held against separate tables.

    Collective: every rank makes them all, in this order.
    """
    makers: list[Callable[[], Peer]] = []
    if case.can_pack:
        makers.append(lambda: ours(case, ranks, "packed"))
    if case.k > 1:  # a set alone is its own neighbour
        makers.append(lambda: ours(case, ranks, "separate"))
    makers.append(lambda: torchrec_tables(case, ranks))
    if case.ranks > 1:
        if case.kind == "table_wise" and case.k > 1:
            makers.append(lambda: ours(case, ranks, "spread"))
        return makers
    if case.device == "cuda" and case.k > 1:
        makers.append(lambda: ours(case, ranks, "spread"))
    if case.can_pack:
        makers.append(lambda: raw(case, ranks, "packed"))
    if case.k > 1:
        makers.append(lambda: raw(case, ranks, "separate"))
    if case.data_type == "fp32":  # PyTorch's Adagrad knows no weights of fp16
        makers.append(lambda: embedding_bags(case, ranks))
        if case.numbers <= DENSE_LIMIT[case.device]:
            makers.append(lambda: dense_embeddings(case, ranks))
    return makers


def _fields(case: Case) -> tuple[str, ...]:
    return tuple(f"f{index}" for index in range(case.tables))


def _jagged(ids: Tensor) -> Jagged:
    features, rows, bag = ids.shape
    lengths = torch.full((features * rows,), bag, dtype=torch.int32, device=ids.device)
    return ids.reshape(-1), lengths, [rows * bag] * features


def _adagrad(tables: Sequence[Sequence[nn.Module]]) -> torch.optim.Optimizer:
    weights = [parameter for row in tables for table in row for parameter in table.parameters()]
    return torch.optim.Adagrad(weights, lr=RATE, eps=EPS)


def _call(table: nn.Module, ids: Tensor) -> Tensor:
    return table(ids)  # type: ignore[no-any-return]


def _call_and_sum(table: nn.Module, ids: Tensor) -> Tensor:
    vectors: Tensor = table(ids)
    return vectors.squeeze(1) if ids.shape[1] == 1 else vectors.sum(1)
