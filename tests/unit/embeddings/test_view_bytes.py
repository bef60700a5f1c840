"""What taking the sets out of the looked-up vectors costs: bytes counted, operation by operation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.collection import SetViews, build_collection
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.allocations import Allocations

BATCH = 64
FIELDS = ("user", "item", "seen", "tag", "shop")
SETS = (EmbeddingSet("wide", 16, 0.1), EmbeddingSet("mid", 8, 0.1), EmbeddingSet("small", 4, 0.1))
WIDTH = 16 + 8 + 4


def _spec(layout: str = "packed", sets: tuple[EmbeddingSet, ...] = SETS) -> EmbeddingSpec:
    """`item` and `seen`, neighbours among the fields, share a table; tables in no order."""
    features = {"tag": ("tag",), "goods": ("seen", "item"), "shop": ("shop",), "user": ("user",)}
    tables = tuple(
        TableSpec(name, 9, of_table, "sum", layout, "auto", TableOptimizer())
        for name, of_table in features.items()
    )
    return EmbeddingSpec(sets, tables, FIELDS, "fp32")


def _looked_up(spec: EmbeddingSpec) -> KeyedTensor:
    torch.manual_seed(0)
    keys, rows = list(spec.fields), torch.randint(0, 9, (len(spec.fields) * BATCH,))
    ones = torch.ones(len(rows), dtype=torch.int32)
    collection = build_collection(spec, torch.device("cpu"))
    pooled: KeyedTensor = collection(KeyedJaggedTensor.from_lengths_sync(keys, rows, ones))
    return KeyedTensor(
        pooled.keys(), pooled.length_per_key(), pooled.values().detach().requires_grad_()
    )


def _bytes(spec: EmbeddingSpec, pooled: KeyedTensor) -> tuple[int, int, list[Tensor]]:
    """Bytes that forward and backward allocate, and the sets."""
    views = SetViews(spec)
    with Allocations() as forward:
        sets = views(pooled)
    gradients = [torch.randn_like(each) for each in sets]
    with Allocations() as backward:
        torch.autograd.grad(sets, pooled.values(), gradients)
    return forward.bytes, backward.bytes, sets


@pytest.mark.parametrize("layout", ["packed", "separate", "spread"])
def test_in_field_order_nothing_is_allocated_but_the_gradient(layout: str) -> None:
    spec = _spec(layout)
    pooled = _looked_up(spec)
    assert [key.partition("@")[0] for key in pooled.keys()][:5] == list(FIELDS)
    forward, backward, sets = _bytes(spec, pooled)
    assert forward == 0
    assert backward == BATCH * len(FIELDS) * WIDTH * 4, "one buffer for all sets"
    storage = pooled.values().untyped_storage().data_ptr()
    assert all(each.untyped_storage().data_ptr() == storage for each in sets)


def test_sets_of_other_forms_stay_views() -> None:
    """fp16, another rate, another pooling, some of the fields: tables beside the packed ones."""
    others: list[dict[str, Any]] = [
        {"name": "half", "data_type": "fp16"},
        {"name": "quick", "learning_rate": 0.5},
        {"name": "means", "pooling": "mean"},
        {"name": "some", "features": ("item", "seen"), "learning_rate": 0.25},
        {"name": "more", "dim": 12, "data_type": "fp16"},
    ]
    spec = _spec(sets=(*SETS, *(replace(SETS[1], **each) for each in others)))
    forward, _, sets = _bytes(spec, _looked_up(spec))
    assert forward == 0
    assert [tuple(each.shape[1:]) for each in sets[-2:]] == [(2, 8), (5, 12)]


def test_a_row_that_a_set_of_some_fields_makes_wider_has_its_full_sets_copied() -> None:
    """`user` has rows of 32 columns, the others of 28: `wide`, `mid`, `small` lie unevenly."""
    spec = _spec(sets=(*SETS, EmbeddingSet("own", 4, 0.1, features=("user",))))
    forward, backward, sets = _bytes(spec, _looked_up(spec))
    assert forward == BATCH * len(FIELDS) * WIDTH * 4
    assert backward == BATCH * (len(FIELDS) * WIDTH + 4) * 4
    assert sets[3].shape == (BATCH, 1, 4)


def test_outputs_in_another_order_are_copied_once() -> None:
    spec = _spec()
    pooled = _looked_up(spec)
    keys = ["seen", "user", "tag", "item", "shop"]
    moved = KeyedTensor(
        keys,
        [WIDTH] * 5,
        torch.cat([pooled[key] for key in keys], 1).detach().requires_grad_(),
    )
    forward, backward, sets = _bytes(spec, moved)
    assert forward == backward == BATCH * len(FIELDS) * WIDTH * 4
    for ours, expected in zip(sets, SetViews(spec)(pooled), strict=True):
        assert torch.equal(ours, expected)
