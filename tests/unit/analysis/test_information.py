"""Mutual information by counts: vectors, bounds, and what chance adds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.analysis.information import (
    count_pairs,
    entropy,
    information,
    mutual_information,
)


def test_a_table_of_eight_rows() -> None:
    found = information(torch.tensor([[1, 3], [3, 1]]))
    assert found.nats == pytest.approx(0.1308120360, abs=1e-10)
    assert found.correction == pytest.approx(0.0625)
    assert found.corrected == pytest.approx(0.0683120360, abs=1e-10)
    assert found.entropy == pytest.approx(math.log(2))
    assert found.share == pytest.approx(0.0683120360 / math.log(2))
    assert found.rows == 8


def test_a_copy_says_everything_and_the_rest_nothing() -> None:
    copy = information(torch.diag(torch.tensor([30, 10, 60])))
    assert copy.nats == pytest.approx(copy.entropy)
    assert copy.correction == pytest.approx(4 / 200)
    nothing = information(torch.outer(torch.tensor([1, 2, 7]), torch.tensor([3, 5])))
    assert nothing.nats == pytest.approx(0, abs=1e-12)


def test_classes_that_do_not_occur_take_no_part() -> None:
    padded = torch.zeros(5, 3, dtype=torch.int64)
    padded[1, :2], padded[4, :2] = torch.tensor([1, 3]), torch.tensor([3, 1])
    plain, found = information(torch.tensor([[1, 3], [3, 1]])), information(padded)
    assert found.nats == pytest.approx(plain.nats)
    assert found.correction == pytest.approx(plain.correction)


@pytest.mark.parametrize("counts", [torch.zeros(3, 2), torch.tensor([[4, 0], [6, 0]])])
def test_without_rows_or_without_two_labels_there_is_nothing_to_know(counts: torch.Tensor) -> None:
    found = information(counts)
    assert (found.nats, found.correction, found.entropy, found.share) == (0, 0, 0, 0)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(table=st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=2, max_size=6))
def test_bounds_and_merging(table: list[list[int]]) -> None:
    counts = torch.tensor(table)
    found = information(counts)
    assert -1e-12 <= found.nats <= min(found.entropy, math.log(len(table))) + 1e-9
    merged = torch.cat([counts[:1] + counts[1:2], counts[2:]])
    assert information(merged).nats <= found.nats + 1e-9
    turned = information(counts.t())
    assert turned.nats == pytest.approx(found.nats, abs=1e-9)
    together, _ = mutual_information(torch.stack([counts, counts * 2]))
    assert together.tolist() == pytest.approx([found.nats, found.nats], abs=1e-9)


def test_chance_alone_is_what_the_correction_takes_off() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 20, (200, 500), generator=generator)
    labels = torch.randint(0, 2, (200, 500), generator=generator)
    found = [
        information(count_pairs(code, label, 20, 2))
        for code, label in zip(codes, labels, strict=True)
    ]
    plain = sum(each.nats for each in found) / 200
    left = sum(each.corrected for each in found) / 200
    spread = torch.tensor([each.nats for each in found]).std()
    assert found[0].noise == pytest.approx(float(spread), rel=0.15)
    assert plain == pytest.approx(19 / 1000, rel=0.1)
    assert abs(left) < 0.1 * plain


def test_a_label_rarer_than_the_classes_says_nothing_reliable() -> None:
    enough = information(torch.tensor([[9, 1], [8, 1], [0, 0], [7, 1]]))
    assert (enough.classes, enough.rarest, enough.is_reliable) == (3, 3, True)
    assert not information(torch.tensor([[9, 1], [8, 1], [7, 0]])).is_reliable
    assert not information(torch.tensor([[9, 0], [8, 0]])).is_reliable


def test_pairs_are_counted() -> None:
    codes, others = torch.tensor([0, 2, 2, 2, 1]), torch.tensor([1, 0, 1, 1, 1])
    assert count_pairs(codes, others, 4, 2).tolist() == [[0, 1], [0, 1], [1, 2], [0, 0]]
    chosen = torch.tensor([True, True, False, True, False])
    assert count_pairs(codes, others, 4, 2, chosen).tolist() == [[0, 1], [0, 0], [1, 1], [0, 0]]


def test_entropy() -> None:
    assert float(entropy(torch.tensor([1, 1, 0, 2]))) == pytest.approx(1.5 * math.log(2))
