"""Rows of ids that have none of their own: where a table keeps them and what they start from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prismrec.embeddings.access import initialize
from prismrec.embeddings.shards import LocalShard
from tests.helpers.tables import make_spec, whole_tables


@pytest.mark.parametrize(("rows", "unknown"), [(11, 1), (11, 4), (8192 + 3, 3), (8192 + 3, 5)])
def test_rows_of_unknown_ids_start_at_zero_and_all_others_do_not(rows: int, unknown: int) -> None:
    """8,192 rows are drawn at a time: the unknown ones begin after such a block, or inside it."""
    spec = make_spec()
    user = replace(spec.tables[0], rows=rows, unknown_rows=unknown)
    spec = replace(spec, tables=(user, *spec.tables[1:]))
    for name, width in (("wide", 8), ("narrow", 4)):
        weight = whole_tables(spec)[f"user/{name}"]
        assert not weight[rows - unknown :].any()
        assert weight[: rows - unknown].any(dim=1).all()
        # A shard of the last rows is the same as these rows of the whole.
        start = rows - unknown - 2
        part = LocalShard("user", name, rows, width, start, 0, torch.ones(rows - start, width))
        initialize([part], spec)
        assert part.weight.equal(weight[start:])
