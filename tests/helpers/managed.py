"""Managed tables in plain Python: who has which row, and what the vectors then are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prismrec.config.embedding import TableOptimizer
from prismrec.config.ids import ManagedIds
from prismrec.data.encode.codes import bucket_span, id_codes, missing_code
from prismrec.data.encode.ids import NULL_ID
from prismrec.embeddings.managed.initial import first_vectors, set_seed
from prismrec.embeddings.managed.spec import ManagedRows
from prismrec.embeddings.managed.state import MapShard
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.sharded import loss_of
from tests.helpers.tables import Bags, PlainTables, Weights


@dataclass
class PlainMap:
    """The same rules with dictionaries and lists, one bucket after another."""

    options: ManagedIds
    buckets: int
    rows: int
    count: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    row: dict[int, int] = field(default_factory=dict)
    new: dict[int, list[int]] = field(default_factory=dict)

    def bucket(self, code: int) -> int:
        return code // bucket_span(self.buckets)

    def look_up(self, code: int) -> int:
        return self.row.get(code, (self.bucket(code) + 1) * self.rows - 1)

    def record(self, codes: list[int], step: int) -> None:
        for code in codes:
            if code in self.row:
                self.count[code] += 1
                self.last[code] = step
            elif code != missing_code(self.buckets):
                self.new.setdefault(code, []).append(step)

    def score(self, count: int, last: int, step: int) -> float:
        age = float(step - last + 1) ** self.options.decay
        return {"lfu": float(count), "lru": -age, "distance_lfu": count / age}[self.options.policy]

    def drop(self, code: int) -> None:
        for each in (self.row, self.count, self.last):
            del each[code]

    def admit(self, step: int) -> None:
        ttl = self.options.ttl_steps
        for code in [c for c in self.row if ttl is not None and step - self.last[c] >= ttl]:
            self.drop(code)
        for bucket in range(self.buckets):
            self.admit_in(bucket, step)
        self.new.clear()

    def admit_in(self, bucket: int, step: int) -> None:
        fresh = {
            code: (len(steps), max(steps))
            for code, steps in self.new.items()
            if self.bucket(code) == bucket and len(steps) >= self.options.min_count
        }
        here = [code for code in self.row if self.bucket(code) == bucket]
        ranking = [
            (-self.score(self.count[code], self.last[code], step), 0, 0, code) for code in here
        ]
        ranking += [
            (-self.score(count, last, step), 1, -count, code)
            for code, (count, last) in fresh.items()
        ]
        ranking.sort()
        best = [code for *_, code in ranking[: self.rows - 1]]
        for code in here:
            if code not in best:
                self.drop(code)
        first = bucket * self.rows
        taken = set(self.row.values())
        free = [row for row in range(first, first + self.rows - 1) if row not in taken]
        for row, code in zip(free, [code for code in best if code not in self.row], strict=False):
            self.row[code] = row
            self.count[code], self.last[code] = fresh[code]


BUCKETS, BUCKET_ROWS, BATCH, STEPS = 4, 4, 8, 9
MANAGED = {"user": "lfu", "item": "distance_lfu", "shop": "lru"}
"""Policy of each managed table; `tag` is an ordinary one."""
FIELDS = {"user": "user", "item": "item", "history": "item", "tag": "tag", "shop": "shop"}
"""Table of each feature."""
SETS = (EmbeddingSet("wide", 8, 0.5), EmbeddingSet("narrow", 4, 0.25), EmbeddingSet("bias", 4, 0.0))


@dataclass(frozen=True)
class Case:
    """One training on given raw ids.

    Args:
        optimizer: of all tables.
        data_type: of all tables.
        interval: steps between two admissions.
        ttl_steps: steps after which an id unseen loses its row.
        weighted: whether the ids of bags have weights.
        device: "cpu" or "cuda"; what is found comes back to the CPU.
    """

    optimizer: str = "adagrad"
    data_type: str = "fp32"
    interval: int = 2
    ttl_steps: int | None = None
    weighted: bool = True
    device: str = "cpu"


def spec_of_case(case: Case) -> EmbeddingSpec:
    """Three managed tables and an ordinary one, with means and sums."""
    rule = TableOptimizer(name=case.optimizer, learning_rate=0.2)
    tables = []
    for name in dict.fromkeys(FIELDS.values()):
        managed = None
        if name in MANAGED:
            given = ManagedIds(
                kind="managed",
                policy=MANAGED[name],
                interval=case.interval,
                ttl_steps=case.ttl_steps,
            )
            managed = ManagedRows(given, BUCKETS)
        tables.append(
            TableSpec(
                name,
                BUCKETS * BUCKET_ROWS if managed else 8,
                tuple(feature for feature, table in FIELDS.items() if table == name),
                "mean" if name == "shop" else "sum",
                "packed",
                "row_wise",
                rule,
                managed=managed,
                unknown_rows=BUCKETS if managed else 1,
            )
        )
    return EmbeddingSpec(
        sets=SETS,
        tables=tuple(tables),
        fields=tuple(FIELDS),
        data_type=case.data_type,
        is_weighted=case.weighted,
        seed=3,
        allow_coupled_sets=True,
    )


def draw(step: int) -> tuple[Bags, Weights]:
    """Raw ids of a global batch: repeats, empty bags, and other ids as time goes on."""
    generator = torch.Generator().manual_seed(100 + step)
    bags: Bags = {}
    weights: Weights = {}
    for field_name, table in FIELDS.items():
        sizes = torch.randint(0, 4, (BATCH,), generator=generator).tolist()
        sizes[step % BATCH] = 0
        pool = 6 if table == "tag" else 20
        first = 0 if table == "tag" else 5 * step
        bags[field_name] = [
            ((torch.rand(n, generator=generator) ** 2 * pool).long() + first).tolist()
            for n in sizes
        ]
        if table != "tag" and bags[field_name][0]:
            bags[field_name][0][0] = NULL_ID
        weights[field_name] = [(torch.rand(n, generator=generator) + 0.5).tolist() for n in sizes]
    return bags, weights


def rows_of(step: int, maps: dict[str, PlainMap]) -> Bags:
    """The rows that the raw ids of a step look up."""
    bags, _ = draw(step)
    found: Bags = {}
    for field_name, table in FIELDS.items():
        found[field_name] = bags[field_name]
        if table in maps:
            codes = [id_codes(np.array(bag, np.int64), BUCKETS) for bag in bags[field_name]]
            found[field_name] = [[maps[table].look_up(int(c)) for c in each] for each in codes]
    return found


@dataclass
class Expected:
    """What the plain reference says of a case.

    Args:
        outputs: by step, (BATCH, N_m, d_m) of the sets.
        tables: the reference after the last step.
        maps: who has which row then, by table.
        evicted: ids that lost their rows.
        resets: by table, rows with a new owner in the last admission.
    """

    outputs: list[list[Tensor]]
    tables: PlainTables
    maps: dict[str, PlainMap]
    evicted: int
    resets: dict[str, set[int]]


def expected_of(case: Case) -> Expected:
    """Train a case in plain Python."""
    spec = spec_of_case(case)
    together = [
        [(f"{table.name}/{each.name}", 0, each.dim) for each in SETS] for table in spec.tables
    ]
    tables = PlainTables(spec, together)
    maps = {
        table.name: PlainMap(table.managed.options, BUCKETS, BUCKET_ROWS)
        for table in spec.tables
        if table.managed is not None
    }
    found = Expected([], tables, maps, 0, {})
    for step in range(1, STEPS + 1):
        bags, weights = draw(step)
        for name, plain in maps.items():
            plain.record(codes_in(bags, name), step)
            if step % case.interval == 0:
                before = {row: code for code, row in plain.row.items()}
                plain.admit(step)
                after = {row: code for code, row in plain.row.items()}
                changed = {r for r in {*before, *after} if before.get(r) != after.get(r)}
                found.evicted += sum(row in before for row in changed)
                found.resets[name] = changed
                reset(tables, name, changed, after)
        sets = tables.lookup(rows_of(step, maps), weights if case.weighted else None)
        found.outputs.append([each.detach().clone() for each in sets])
        tables.step(loss_of(sets, 0))
    return found


def codes_in(bags: Bags, table: str) -> list[int]:
    """Codes of all ids of a step that a table's features have."""
    ids = [
        i
        for field_name, name in FIELDS.items()
        if name == table
        for b in bags[field_name]
        for i in b
    ]
    return [int(code) for code in id_codes(np.array(ids, np.int64), BUCKETS)]


def reset(tables: PlainTables, name: str, rows: set[int], owners: dict[int, int]) -> None:
    """First vectors for rows with a new owner, zeros for those without one, and no state."""
    with torch.no_grad():
        for each in SETS:
            key = f"{name}/{each.name}"
            for row in rows:
                tables.sums[key][row] = 0
                tables.weights[key][row] = 0
                if row in owners and each.init_std:
                    seed = set_seed(3, name, each.name)
                    vector = first_vectors(torch.tensor([owners[row]]), range(each.dim), seed)[0]
                    vector = (vector * each.init_std).double()
                    is_half = tables.forms[key].data_type == "fp16"
                    tables.weights[key][row] = vector.half().double() if is_half else vector


@dataclass
class Found:
    """What one rank saw of a case.

    Args:
        outputs: by step, its rows of the sets.
        shards: `table/set`, first row, weight and states of each block, at the end.
        owners: by table, the first row of the rank and the raw id of each of its rows.
        metrics: counters of the tables, over all ranks.
        evaluated: whether evaluation left the maps and counters as they were.
    """

    outputs: list[list[Tensor]]
    shards: list[tuple[str, int, Tensor, dict[str, Tensor]]]
    owners: dict[str, tuple[int, list[int]]]
    metrics: dict[str, float]
    evaluated: bool


def train_all(cases: list[Case]) -> list[Found]:
    """Train each case on this rank, `run_ranks`' function.

    Collective: every rank calls it.
    """
    return [_train(case) for case in cases]


def _train(case: Case) -> Found:
    import torch.distributed as dist

    from prismrec.embeddings.access import initialize, local_shards
    from prismrec.embeddings.collection import SetViews, build_collection
    from prismrec.embeddings.managed.modules import build_managed
    from prismrec.embeddings.managed.tables import ManagedTables
    from prismrec.embeddings.plan.expand import sharding_plan
    from prismrec.embeddings.sharder import Sharder, shard_tables
    from tests.helpers.sharded import places

    rank, world = dist.get_rank(), dist.get_world_size()
    spec, meta = spec_of_case(case), torch.device("meta")
    holder = torch.nn.ModuleDict(
        {"tables": build_collection(spec, meta), "managed": build_managed(spec, meta)}
    )
    device = torch.device(case.device)
    plan = sharding_plan(holder, places(spec, world, 1), case.device, world)
    sharded = shard_tables(holder, spec, plan, device, Sharder())
    shards = local_shards(sharded.dmp, spec, rank, {})
    initialize(shards, spec)
    managed = ManagedTables(sharded.dmp, spec)
    managed.own(shards)
    modules, views, outputs = sharded.dmp.module, SetViews(spec), []
    share = BATCH // world
    for step in range(1, STEPS + 1):
        sets = _looked_up(modules, views, draw(step), rank * share, share, case)
        outputs.append([each.detach().cpu().clone() for each in sets])
        (loss_of(sets, rank * share) * world).backward()
    before = managed.state()
    metrics = managed.metrics(_summed, device)
    sharded.dmp.eval()
    with torch.no_grad():
        _looked_up(modules, views, draw(1), rank * share, share, case)
    after = managed.state()
    silent = managed.metrics(_summed, device)
    return Found(
        outputs=outputs,
        shards=[(s.key, s.row, s.weight.cpu().clone(), _on_cpu(s.states)) for s in shards],
        owners={each.table: (each.row, each.rows["ids"].tolist()) for each in after},
        metrics=metrics,
        evaluated=_same(before, after)
        and all(not value for name, value in silent.items() if not name.endswith("/rows_in_use")),
    )


def _looked_up(
    modules: Any,
    views: Any,
    batch: tuple[Bags, Weights],
    first: int,
    share: int,
    case: Case,
) -> list[Tensor]:
    from prismrec.embeddings.collection import side_by_side

    plain = _kjt(batch, ["tag"], (first, share), case)
    managed = _kjt(batch, [f for f in FIELDS if f != "tag"], (first, share), case)
    device = torch.device(case.device)
    pooled = side_by_side(
        [modules["tables"](plain.to(device)), modules["managed"](managed.to(device))[0]]
    )
    return views(pooled)


def _kjt(batch: tuple[Bags, Weights], fields: list[str], rows: tuple[int, int], case: Case) -> Any:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    bags, weights = batch
    here = slice(rows[0], rows[0] + rows[1])
    ids = np.array([i for f in fields for bag in bags[f][here] for i in bag], np.int64)
    values = ids if fields == ["tag"] else id_codes(ids, BUCKETS)
    of_ids = [w for f in fields for bag in weights[f][here] for w in bag]
    return KeyedJaggedTensor.from_lengths_sync(
        fields,
        torch.from_numpy(values),
        torch.tensor([len(bag) for f in fields for bag in bags[f][here]], dtype=torch.int32),
        torch.tensor(of_ids) if case.weighted else None,
    )


def _on_cpu(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: state.cpu() for name, state in states.items()}


def _summed(tensor: Tensor) -> Tensor:
    import torch.distributed as dist

    dist.all_reduce(tensor)
    return tensor


def _same(first: list[MapShard], second: list[MapShard]) -> bool:
    return all(
        torch.equal(getattr(a, part)[name], getattr(b, part)[name])
        for a, b in zip(first, second, strict=True)
        for part in ("rows", "newcomers")
        for name in ("ids", "counts", "last_seen")
    )
