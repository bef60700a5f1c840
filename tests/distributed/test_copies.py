"""Copies of the tables on groups of ranks, against a plain reference that averages them."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from prismrec.checkpoint import CheckpointReader
from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers import runs as train
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import Start, make_recipe, train_each, write_rows
from tests.helpers.sharded import BATCH, Case, Trained, draw, loss_of
from tests.helpers.shared_ranks import trained
from tests.helpers.tables import Bags, PlainTables, Weights

KINDS = ("table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "grid")
COPIES, STEPS = 2, 5


def _spec() -> EmbeddingSpec:
    """Every kind, and a table that every rank holds whole; each set has a term of the loss to itself."""
    tables = [
        TableSpec(
            kind,
            9,
            (f"{kind}-a", f"{kind}-b"),
            "mean" if kind == "row_wise" else "sum",
            "spread" if kind == "column_wise" else "packed",
            kind,
            TableOptimizer(name="adagrad", learning_rate=0.1),
        )
        for kind in (*KINDS, "data_parallel")
    ]
    fields = tuple(feature for table in tables for feature in table.features)
    sgd = TableOptimizer(name="sgd", learning_rate=0.1)
    sets = (
        EmbeddingSet("sgd", 8, 0.1, optimizer=sgd),
        EmbeddingSet("beside", 4, 0.1, optimizer=sgd),
        EmbeddingSet("adagrad", 8, 0.1),
        EmbeddingSet("half", 4, 0.1, data_type="fp16", features=fields[:4]),
    )
    return EmbeddingSpec(sets, tuple(tables), fields, data_type="fp32", seed=3)


def _half(batch: tuple[Bags, Weights | None], copy: int) -> Bags:
    rows = slice(copy * BATCH // COPIES, (copy + 1) * BATCH // COPIES)
    return {field: bags[rows] for field, bags in batch[0].items()}


@cache
def _expected(sync_every: int) -> tuple[list[PlainTables], list[list[torch.Tensor]]]:
    """The copies after the last step, and the outputs of every step for the whole batch.

    A copy steps on its own rows with twice their gradients. A data_parallel table, whose gradient
    is the mean over all ranks, takes the step of the whole batch in both.
    """
    copies, outputs = [PlainTables(_spec()) for _ in range(COPIES)], []
    whole = PlainTables(_spec())
    for step in range(STEPS):
        batch = draw(_spec(), step)
        halves = [copy.lookup(_half(batch, index)) for index, copy in enumerate(copies)]
        outputs.append([torch.cat(each).detach() for each in zip(*halves, strict=True)])
        total = sum(loss_of(sets, c * BATCH // COPIES) for c, sets in enumerate(halves))
        together = torch.autograd.grad(total, [c.weights[k] for c in copies for k in c.weights])
        keys = list(whole.weights)
        for index, copy in enumerate(copies):
            for at, key in enumerate(keys):
                mine = together[index * len(keys) + at]
                shared = sum(together[c * len(keys) + at] for c in range(COPIES))
                copy.weights[key].grad = shared if "data_parallel" in key else COPIES * mine
            copy.update()
        if (step + 1) % sync_every == 0:
            for key in keys:
                for name in ("weights", "sums"):
                    held = [getattr(copy, name)[key] for copy in copies]
                    mean = sum(each.detach() for each in held) / COPIES
                    for each in held:
                        each.data.copy_(mean)
    return copies, outputs


AVERAGES = (1, 2, None)


def cases(world_size: int) -> list[Case]:
    """See `tests.helpers.shared_ranks`."""
    if world_size != 4:
        return []
    copied = [Case(_spec(), STEPS, hosts=2, ranks_per_copy=2, sync_every=n) for n in (1, 2)]
    return [*copied, Case(_spec(), STEPS, hosts=2)]


@pytest.fixture(scope="module")
def four_ranks() -> dict[int | None, list[Trained]]:
    """By steps between averages, what each rank came to; None without copies."""
    ranks = trained(4, "test_copies")
    return {key: [rank[index] for rank in ranks] for index, key in enumerate(AVERAGES)}


@pytest.mark.parametrize("sync_every", [1, 2])
def test_copies_step_alone_and_are_averaged(
    four_ranks: dict[int | None, list[Trained]], sync_every: int
) -> None:
    (copies, outputs), ranks = _expected(sync_every), four_ranks[sync_every]
    for step, expected in enumerate(outputs):
        for m, each in enumerate(expected):
            got = torch.cat([rank.outputs[step][m] for rank in ranks])
            _close(got, each, 1e-2 if _spec().sets[m].name == "half" else 1e-5)
    for rank, of_rank in enumerate(ranks):
        for shard in of_rank.shards:
            plain, rows = copies[rank // 2], slice(shard.row, shard.row + shard.weight.shape[0])
            block = (rows, slice(shard.col, shard.col + shard.weight.shape[1]))
            bound = 5e-3 if shard.set_name == "half" else 1e-5
            _close(shard.weight, plain.weights[shard.key].detach()[block], bound)
            for state in shard.states.values():
                _close(state, plain.sums[shard.key][block], 10 * bound)
            assert shard.is_replica is (rank > (0 if shard.table == "data_parallel" else 1))


def test_with_sgd_and_an_average_after_each_step_copies_are_as_one(
    four_ranks: dict[int | None, list[Trained]],
) -> None:
    one, averaged, rarely = (_tables(four_ranks[every]) for every in (None, 1, 2))
    for key, expected in one.items():
        if key.endswith(("/sgd", "/beside")):
            torch.testing.assert_close(averaged[key], expected, atol=2e-6, rtol=2e-6)
        if key.startswith("data_parallel"):
            continue
        if key.endswith("/adagrad"):
            assert (averaged[key] - expected).abs().max() > 1e-3, (
                "its squares are of other gradients"
            )
        assert (rarely[key] - expected).abs().max() > 1e-4


def _tables(ranks: list[Trained]) -> dict[str, torch.Tensor]:
    """Whole tables by `table/set`, from the blocks that a checkpoint would hold."""
    whole: dict[str, torch.Tensor] = {}
    for shard in (each for rank in ranks for each in rank.shards if not each.is_replica):
        table = whole.setdefault(shard.key, torch.full((9, shard.num_cols), torch.nan))
        rows = slice(shard.row, shard.row + shard.weight.shape[0])
        table[rows, shard.col : shard.col + shard.weight.shape[1]] = shard.weight.float()
    return whole


def _close(got: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    torch.testing.assert_close(got.double(), expected, atol=bound, rtol=bound)


SGD = "embedding.optimizer={name='sgd', learning_rate=0.05}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, train.Trained]:
    """Runs of six steps on two ranks, by name; `resumed` stopped after four and went on."""
    place = tmp_path_factory.mktemp("copies")
    data = write_rows(place / "rows")
    common = ("workers.count=2", "train.steps=6", "evaluate.every_steps=2")
    rare = ("embedding.ranks_per_copy=1", "embedding.sync_every=3", "checkpoint.every_steps=4")
    recipes = {
        "one copy": make_recipe(data, *common, SGD),
        "averaged": make_recipe(data, *common, SGD, "embedding.ranks_per_copy=1"),
        "rarely": make_recipe(data, *common, *rare),
    }
    starts = [Start(recipe, place / name) for name, recipe in recipes.items()]
    short = make_recipe(data, *common, *rare, "train.steps=4")
    starts += [
        Start(short, place / "resumed"),
        Start(recipes["rarely"], place / "resumed", "second"),
    ]
    names = [*recipes, "stopped", "resumed"]
    return dict(zip(names, run_ranks(train_each, 2, starts, timeout_s=280)[0], strict=True))


def _saved(run: train.Trained) -> dict[str, torch.Tensor]:
    with CheckpointReader(run.checkpoint) as reader:
        return {key: reader.table(*key.split("/")) for key in reader.manifest.tables}


def test_a_run_with_copies_that_are_always_averaged_is_one_without(
    runs: dict[str, train.Trained],
) -> None:
    one, averaged = runs["one copy"], runs["averaged"]
    assert averaged.losses == pytest.approx(one.losses, abs=1e-5)
    assert averaged.metrics == pytest.approx(one.metrics, abs=1e-4, nan_ok=True)
    tables = _saved(averaged)
    for key, expected in _saved(one).items():
        torch.testing.assert_close(tables[key], expected, atol=1e-6, rtol=1e-5)
    assert one.losses[0] != pytest.approx(one.losses[-1], abs=1e-3)
    for run, whole in ((one, 0.5), (averaged, 1.0)):
        (predicted,), (held,) = (
            run.log[f"memory/{n}_bytes"].values() for n in ("predicted", "table")
        )
        everything = sum(table.numel() * 4 for table in tables.values())
        assert predicted == held
        assert whole * everything <= held <= everything


def test_a_resumed_run_with_copies_goes_on_where_it_was(runs: dict[str, train.Trained]) -> None:
    rarely, resumed = runs["rarely"], runs["resumed"]
    assert runs["stopped"].losses + resumed.losses == rarely.losses
    tables = _saved(resumed)
    for key, expected in _saved(rarely).items():
        assert torch.equal(tables[key], expected), key
