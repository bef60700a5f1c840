"""Sharded tables against a plain reference: every kind, layout and optimizer."""

from __future__ import annotations

import itertools

import pytest
import torch

from prismrec.config import UserError
from tests.helpers.ranks import run_ranks
from tests.helpers.tables import PlainTables, make_spec, whole_tables

BATCH = 8
STEPS = 3


def _bags(step: int) -> dict[str, list[list[int]]]:
    """Bags of a global batch: repeated ids, empty bags, one bag of several."""
    generator = torch.Generator().manual_seed(step)

    def ids(rows: int, low: int, high: int) -> list[list[int]]:
        lengths = torch.randint(low, high, (BATCH,), generator=generator).tolist()
        return [torch.randint(0, rows, (n,), generator=generator).tolist() for n in lengths]

    return {
        "user": ids(11, 1, 2),
        "item": ids(7, 1, 2),
        "history": ids(7, 0, 4),
        "tag": ids(5, 1, 2),
    }


def _loss(sets: list[torch.Tensor], start: int) -> torch.Tensor:
    """A sum over rows, so that ranks' gradients add up to the reference's."""
    total = sets[0].new_zeros(())
    for m, x in enumerate(sets):
        factor = torch.arange(1, x[0].numel() + 1, dtype=x.dtype).view(x[0].shape) / 10
        rows = torch.arange(start + 1, start + 1 + x.shape[0], dtype=x.dtype)
        total = total + (((x * factor).sum((1, 2)) - (m + 1) * rows / BATCH) ** 2).sum()
    return total


def _train(layout: str, kind: str, optimizer: str) -> dict:
    """Three steps on this rank's rows; its shards of the weights afterwards, and its outputs."""
    import torch.distributed as dist
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from prismrec.embeddings import access
    from prismrec.embeddings import optimizers as table_optimizers
    from prismrec.embeddings.collection import SetViews, build_collection, physical_tables
    from prismrec.embeddings.plan import Placement, Sharder, data_parallel_tables, plan_tables

    rank, world = dist.get_rank(), dist.get_world_size()
    spec = make_spec(layout, kind, optimizer)

    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = build_collection(spec, torch.device("meta"))

        def forward(self, kjt):
            return self.tables(kjt)

    holder = Holder()
    plan = plan_tables(holder, spec, Placement(world, world, "cpu", 2**30, 4), dist.group.WORLD)
    replicated = data_parallel_tables(plan)
    key = lambda name: name.rpartition("embedding_bags.")[2].removesuffix(".weight")  # noqa: E731
    bags = {key(n): p for n, p in holder.tables.named_parameters()}
    tables = physical_tables(spec)
    table_optimizers.fuse_optimizers([t for t in tables if t.name not in replicated], bags)
    dmp = DistributedModelParallel(
        holder, device=torch.device("cpu"), plan=plan, sharders=[Sharder()]
    )
    by_name = {t.name: t for t in tables}
    whole = [(by_name[key(n)], p) for n, p in dmp.named_parameters() if key(n) in replicated]
    plain = next(iter(table_optimizers.plain_optimizers(whole)), None)
    states = plain.state if plain else {}
    access.initialize(access.local_shards(dmp, spec, rank, states), spec)
    views, outputs = SetViews(spec), []
    share = BATCH // world
    for step in range(STEPS):
        rows = {f: b[rank * share : (rank + 1) * share] for f, b in _bags(step).items()}
        lengths = [len(bag) for f in spec.fields for bag in rows[f]]
        values = [i for f in spec.fields for bag in rows[f] for i in bag]
        kjt = KeyedJaggedTensor.from_lengths_sync(
            list(spec.fields), torch.tensor(values), torch.tensor(lengths, dtype=torch.int32)
        )
        sets = views(dmp(kjt))
        outputs.append([x.detach().clone() for x in sets])
        if plain:
            plain.zero_grad()
        (_loss(sets, rank * share) * world).backward()  # gradients are averaged over ranks
        if plain:
            plain.step()
    shards = access.local_shards(dmp, spec, rank, states)
    return {
        "outputs": outputs,
        "shards": [(s.key, s.row, s.col, s.weight.clone(), dict(s.states)) for s in shards],
        "kinds": sorted({s.sharding_type for m in plan.plan.values() for s in m.values()}),
    }


def _train_all(cases: list[tuple[str, str, str]]) -> list[dict]:
    return [_train(*case) for case in cases]


KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")
CASES = [
    (layout, kind, optimizer)
    for layout, kind, optimizer in itertools.product(
        ("packed", "separate"), KINDS, ("sgd", "adagrad")
    )
] + [
    ("separate", "table_wise", "rowwise_adagrad"),
    ("separate", "row_wise", "rowwise_adagrad"),
    ("separate", "table_wise", "mixed"),
]


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(_train_all, 2, CASES, timeout_s=240)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_sharded_equals_plain(two_ranks, case):
    layout, kind, optimizer = case
    reference = PlainTables(make_spec(layout, kind, optimizer))
    ranks = [results[CASES.index(case)] for results in two_ranks]
    assert ranks[0]["kinds"] == [kind]
    for step in range(STEPS):
        sets = reference.lookup(_bags(step))
        for m, expected in enumerate(sets):
            got = torch.cat([rank["outputs"][step][m] for rank in ranks])
            torch.testing.assert_close(got.double(), expected.detach(), atol=2e-6, rtol=2e-6)
        reference.step(_loss(sets, 0))
    covered = {key: torch.zeros_like(w) for key, w in reference.weights.items()}
    for rank in ranks:
        for key, row, col, weight, states in rank["shards"]:
            block = (slice(row, row + weight.shape[0]), slice(col, col + weight.shape[1]))
            expected = reference.weights[key].detach()[block]
            torch.testing.assert_close(weight.double(), expected, atol=3e-6, rtol=3e-6)
            covered[key][block] += 1
            if optimizer == "adagrad":
                torch.testing.assert_close(
                    states["accumulator"].double(), reference.sums[key][block], atol=1e-5, rtol=1e-5
                )
    copies = 2 if kind == "data_parallel" else 1
    assert all((c == copies).all() for c in covered.values())


def test_packed_and_separate_agree_to_the_bit(two_ranks):
    for optimizer, kind in itertools.product(("sgd", "adagrad"), ("table_wise", "row_wise")):
        packed = two_ranks[0][CASES.index(("packed", kind, optimizer))]
        separate = two_ranks[0][CASES.index(("separate", kind, optimizer))]
        for step in range(STEPS):
            for ours, theirs in zip(
                packed["outputs"][step], separate["outputs"][step], strict=True
            ):
                assert torch.equal(ours, theirs)


def test_initial_weights_do_not_depend_on_the_block():
    from prismrec.embeddings.access import initialize
    from prismrec.embeddings.shards import LocalShard

    spec = make_spec()
    whole = whole_tables(spec)["user/wide"]
    part = LocalShard("user", "wide", 11, 8, 3, 4, torch.empty(8, 4))
    initialize([part], spec)
    assert torch.equal(part.weight, whole[3:, 4:])
    assert (whole[-1] == 0).all(), "the unknown row starts at zero"
    assert 0.05 < whole[:-1].std() < 0.2


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("column_wise", "rowwise_adagrad"), ("data_parallel", "rowwise_adagrad")],
)
def test_placements_that_would_change_the_numbers_are_refused(kind, optimizer):
    from prismrec.embeddings.collection import physical_tables
    from prismrec.embeddings.plan import Placement, _constraint

    spec = make_spec("separate", kind, optimizer)
    with pytest.raises(UserError, match=f"sharding = '{kind}' is not possible"):
        _constraint(physical_tables(spec)[0], spec, Placement(2, 2, "cpu", 2**30, 4))
