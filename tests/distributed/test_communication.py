"""Types on the wire: what they lose is within the stated bound, and they are in use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from prismrec.config.embedding import Communication, TableOptimizer
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.sharded import Case, Trained, draw, loss_of
from tests.helpers.shared_ranks import trained
from tests.helpers.tables import PlainTables

BATCH, RATE = 32, 0.1
PLAIN = ("data_parallel",)
SENT = ("table_wise", "column_wise", "table_column_wise")
"""Kinds whose vectors travel whole, or in pieces side by side."""
ADDED = ("row_wise", "table_row_wise", "grid")
"""Kinds whose vectors travel in parts that are added up."""
TYPES = [
    (forward, backward)
    for other in ("fp16", "bf16", "int8")
    for forward, backward in ((other, "fp32"), ("fp32", other))
]
LOSS = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""What a number may lose, as a share of it."""
STEP = 1 / 255 / 2
"""What a number may lose in int8, as a share of the range of those it travels with."""


def _spec(forward: str = "fp32", backward: str = "fp32") -> EmbeddingSpec:
    kinds = PLAIN + SENT + (() if "int8" in (forward, backward) else ADDED)
    rule = TableOptimizer(name="sgd", learning_rate=RATE)
    tables = tuple(
        TableSpec(kind, 11, (f"{kind}-a", f"{kind}-b"), "sum", "packed", kind, rule)
        for kind in kinds
    )
    fields = tuple(feature for table in tables for feature in table.features)
    return EmbeddingSpec(
        (EmbeddingSet("wide", 8, 0.1), EmbeddingSet("mean", 8, 0.1, pooling="mean")),
        tables,
        fields,
        data_type="fp32",
        seed=3,
        communication=Communication(forward=forward, backward=backward),
    )


def cases(world_size: int) -> list[Case]:
    """See `tests.helpers.shared_ranks`."""
    keys = [("fp32", "fp32"), *TYPES] if world_size == 2 else []
    return [Case(_spec(*types), steps=1, batch=BATCH) for types in keys]


@pytest.fixture(scope="module")
def two_ranks() -> dict[tuple[str, str], list[Trained]]:
    """By types, what both ranks came to after one step."""
    ranks = trained(2, "test_communication")
    keys = [("fp32", "fp32"), *TYPES]
    return {key: [rank[index] for rank in ranks] for index, key in enumerate(keys)}


@dataclass
class _Exact:
    """One step of the reference, and what its numbers are made of.

    Args:
        outputs: of the sets.
        sizes: the sums of the absolute values behind each of them.
        range: of the gradients of the outputs.
        updated: weights afterwards.
        moved: for each weight, the learning rate times the sum of the absolute gradients behind it.
        counts: for each weight, the vectors that travel back to it.
    """

    outputs: list[torch.Tensor]
    sizes: list[torch.Tensor]
    range: torch.Tensor
    updated: dict[str, torch.Tensor]
    moved: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor]


def _exact(spec: EmbeddingSpec) -> _Exact:
    batch = draw(spec, 0, BATCH)
    plain, absolute = PlainTables(spec), PlainTables(spec)
    counting = PlainTables(replace(spec, sets=tuple(replace(s, pooling="sum") for s in spec.sets)))
    sets = plain.lookup(*batch)
    gradients = torch.autograd.grad(loss_of(sets, 0, BATCH), sets)
    again = plain.lookup(*batch)
    sum((g.abs() * x).sum() for g, x in zip(gradients, again, strict=True)).backward()
    moved = {key: RATE * weight.grad for key, weight in plain.weights.items()}
    for weight in plain.weights.values():
        weight.grad = None
    plain.step(loss_of(plain.lookup(*batch), 0, BATCH))
    absolute.weights = {key: weight.detach().abs() for key, weight in absolute.weights.items()}
    sum(x.sum() for x in counting.lookup(*batch)).backward()
    return _Exact(
        outputs=[each.detach() for each in sets],
        sizes=absolute.lookup(*batch),
        range=_range(list(gradients)),
        updated={key: weight.detach() for key, weight in plain.weights.items()},
        moved=moved,
        counts={key: weight.grad for key, weight in counting.weights.items()},
    )


@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_what_is_lost_is_within_the_bound(
    two_ranks: dict[tuple[str, str], list[Trained]], types: tuple[str, str]
) -> None:
    spec, exact = _spec(*types), _exact(_spec(*types))
    (forward, backward), ranks = types, two_ranks[types]
    for m, (expected, size) in enumerate(zip(exact.outputs, exact.sizes, strict=True)):
        got = torch.cat([rank.outputs[0][m] for rank in ranks]).double()
        for index, field in enumerate(spec.fields):
            # added parts lose as much again for each of the two ranks
            times = 3 if spec.table_of(field).name in ADDED else 1
            bound = 1e-6 + times * LOSS.get(forward, 0.0) * size[:, index]
            bound += STEP * _range(exact.outputs) if forward == "int8" else 0.0
            assert ((got - expected)[:, index].abs() <= bound).all(), field
    # after a forward pass that lost something, gradients differ by more than their own way
    for shard in (s for rank in ranks for s in rank.shards if forward == "fp32"):
        rows, cols = shard.weight.shape
        block = (slice(shard.row, shard.row + rows), slice(shard.col, shard.col + cols))
        bound = 1e-6 + LOSS.get(backward, 0.0) * exact.moved[shard.key][block]
        if backward == "int8":
            bound = bound + RATE * STEP * exact.range * exact.counts[shard.key][block]
        error = (shard.weight.double() - exact.updated[shard.key][block]).abs()
        assert (error <= bound).all(), shard.key


@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_every_kind_uses_the_type(
    two_ranks: dict[tuple[str, str], list[Trained]], types: tuple[str, str]
) -> None:
    spec, plain, exact = _spec(*types), _spec(), two_ranks["fp32", "fp32"]
    for m in range(len(spec.sets)):
        got, expected = (
            torch.cat([rank.outputs[0][m] for rank in ranks]) for ranks in (two_ranks[types], exact)
        )
        for index, field in enumerate(spec.fields):
            same = torch.equal(got[:, index], expected[:, plain.fields.index(field)])
            assert same is (types[0] == "fp32" or spec.table_of(field).name in PLAIN), field
    if types[0] == "fp32" and types[1] != "int8":  # there the loss has other terms
        weights = [
            {(shard.key, shard.row, shard.col): shard.weight for shard in rank.shards}
            for rank in exact
        ]
        changed = {
            shard.table
            for rank, of_rank in enumerate(two_ranks[types])
            for shard in of_rank.shards
            if not torch.equal(shard.weight, weights[rank][shard.key, shard.row, shard.col])
        }
        assert changed == {table.name for table in spec.tables} - set(PLAIN)


def _range(tensors: list[torch.Tensor]) -> torch.Tensor:
    everything = torch.cat([each.flatten() for each in tensors])
    return everything.max() - everything.min()
