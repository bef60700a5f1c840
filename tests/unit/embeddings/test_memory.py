"""Bytes against hand counts: tables of 11, 7 and 5 rows (23), sets of widths 8 and 4."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prismrec.embeddings.memory import TableBytes, block_bytes, local_bytes
from prismrec.embeddings.plan import table_bytes
from prismrec.embeddings.shards import LocalShard
from tests.helpers.tables import make_spec

WEIGHTS = 23 * 12 * 4


@pytest.mark.parametrize(
    ("layout", "optimizer", "state"),
    [
        ("packed", "sgd", 0),
        ("packed", "adagrad", 23 * 12 * 4),
        ("separate", "adagrad", 23 * 12 * 4),
        ("packed", "adam", 2 * 23 * 12 * 4),
        ("packed", "lamb", 2 * 23 * 12 * 4),
        ("packed", "rowwise_adagrad", 23 * 4),
        ("separate", "rowwise_adagrad", 2 * 23 * 4),
        ("packed", "partial_rowwise_adam", 23 * 12 * 4 + 23 * 4),
        ("separate", "partial_rowwise_adam", 23 * 12 * 4 + 2 * 23 * 4),
    ],
)
def test_table_bytes(layout: str, optimizer: str, state: int) -> None:
    spec = make_spec(layout, optimizer=optimizer)
    assert table_bytes(spec) == WEIGHTS + state
    # half the weights' bytes, but state stays float32
    assert table_bytes(replace(spec, data_type="fp16")) == WEIGHTS // 2 + state


def test_tables_of_different_rules_add_up() -> None:
    # adagrad on 11 rows, sgd on 7, rowwise_adagrad on 5 of two separate tables
    assert table_bytes(make_spec("separate", optimizer="mixed")) == WEIGHTS + 11 * 48 + 2 * 5 * 4


def test_a_shard_without_columns_has_no_state_of_rows() -> None:
    assert block_bytes("rowwise_adagrad", "fp32", 9, 0) == TableBytes()
    assert block_bytes("rowwise_adagrad", "fp32", 0, 8) == TableBytes()


def test_local_bytes_count_shared_state_once() -> None:
    weight, per_row = torch.zeros(10, 12), torch.zeros(10)
    shards = [
        LocalShard("t", "wide", 10, 8, 0, 0, weight[:, :8], {"accumulator": per_row}),
        LocalShard("t", "narrow", 10, 4, 0, 0, weight[:, 8:], {"accumulator": per_row}),
        LocalShard("u", "wide", 6, 8, 0, 0, weight[:6, :8].half(), {"accumulator": weight[:6, :8]}),
    ]
    assert local_bytes(shards) == TableBytes(480 + 6 * 8 * 2, 40 + 6 * 8 * 4)
    assert local_bytes(shards).total == 808
