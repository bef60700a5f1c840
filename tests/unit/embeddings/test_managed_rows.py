"""What happens to the vectors and states of rows whose owners change."""

from __future__ import annotations

import math

import pytest
import torch

from prismrec.embeddings.managed.id_map import Change
from prismrec.embeddings.managed.initial import first_vectors, set_seed
from prismrec.embeddings.managed.newcomers import EMPTY
from prismrec.embeddings.managed.owned_rows import OwnedRows
from prismrec.embeddings.shards import LocalShard

MASK = 2**64 - 1


def scattered(z: int) -> int:
    """The output step of SplitMix64, in plain integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def by_hand(code: int, column: int, seed: int) -> float:
    row = scattered((code + seed) & MASK)
    bits = scattered((row + (column + 1) * 0x9E3779B97F4A7C15) & MASK)
    radius, angle = ((bits >> 32) + 1) / 2**32, (bits & 0xFFFFFFFF) / 2**32
    return math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)


def test_first_vectors_are_those_of_plain_integers() -> None:
    seed = set_seed(7, "user", "wide")
    codes = [0, 1, 2**62 + 5, 2**63 - 9]
    found = first_vectors(torch.tensor(codes), range(3, 6), seed)
    assert found.dtype == torch.float32
    for code, row in zip(codes, found.tolist(), strict=True):
        want = [by_hand(code, column, seed) for column in (3, 4, 5)]
        assert row == pytest.approx(want, rel=1e-6)


def test_first_vectors_are_normal_and_independent() -> None:
    numbers = first_vectors(torch.arange(50_000), range(8), set_seed(1, "a", "b")).double()
    assert abs(numbers.mean()) < 0.005
    assert abs(numbers.var() - 1) < 0.01
    assert abs((numbers**4).mean() - 3) < 0.05
    between = torch.corrcoef(torch.cat([numbers[1:], numbers[:-1]], 1).T).fill_diagonal_(0)
    assert between.abs().max() < 0.025
    other = first_vectors(torch.arange(50_000), range(8), set_seed(1, "a", "c")).double()
    assert abs((numbers * other).mean()) < 0.005


def shard(name: str, weight: torch.Tensor, states: dict[str, torch.Tensor]) -> LocalShard:
    return LocalShard("user", name, 40, weight.shape[1], 10, 0, weight, states)


@pytest.mark.parametrize("data_type", [torch.float32, torch.float16])
def test_rows_take_the_first_vector_of_their_owner_and_lose_all_state(
    data_type: torch.dtype,
) -> None:
    packed = torch.ones(6, 12, dtype=data_type)
    sums, of_rows = torch.ones(6, 12), torch.ones(6)
    touched = torch.full((6,), -1, dtype=torch.int32)
    parts = [
        shard("wide", packed[:, :8], {"sum": sums[:, :8], "row": of_rows}),
        shard("linear", packed[:, 8:], {"sum": sums[:, 8:], "row": of_rows}),
    ]
    parts[0].touched = parts[1].touched = touched
    rows = OwnedRows(parts, {"wide": 0.5, "linear": 0.0}, seed=7)
    rows.follow(Change(torch.tensor([1, 4]), torch.tensor([77, EMPTY])), step=9)
    want = 0.5 * first_vectors(torch.tensor([77]), range(8), set_seed(7, "user", "wide"))
    assert torch.equal(packed[1, :8], want[0].to(data_type))
    assert not packed[1, 8:].any()
    assert not packed[4].any()
    assert packed[[0, 2, 3, 5]].eq(1).all()
    for state in (sums, of_rows):
        assert not state[[1, 4]].any()
        assert state[[0, 2, 3, 5]].eq(1).all()
    assert touched.tolist() == [-1, 9, -1, -1, 9, -1]


def test_an_id_starts_the_same_in_every_row_and_shard() -> None:
    weights = torch.zeros(6, 8), torch.zeros(3, 8)
    for weight, row in zip(weights, (5, 2), strict=True):
        rows = OwnedRows([shard("wide", weight, {})], {"wide": 0.1}, seed=3)
        rows.follow(Change(torch.tensor([row]), torch.tensor([123])), step=1)
    assert torch.equal(weights[0][5], weights[1][2])
    assert weights[0][5].abs().min() > 0
