"""The modules of managed tables before they are sharded."""

from __future__ import annotations

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.config.embedding import TableOptimizer
from prismrec.config.ids import ManagedIds
from prismrec.data.encode.codes import bucket_span, missing_code
from prismrec.embeddings.collection import build_collection
from prismrec.embeddings.managed.modules import IdMapModule, build_managed
from prismrec.embeddings.managed.spec import ManagedRows
from prismrec.embeddings.managed.tables import ManagedTables
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.shards import LocalShard

CPU = torch.device("cpu")
ROWS = ManagedRows(ManagedIds(kind="managed", policy="lfu", interval=1), buckets=4)


def spec_of(*managed: str) -> EmbeddingSpec:
    tables = tuple(
        TableSpec(
            name,
            4 * 3,
            (name,),
            "sum",
            "packed",
            "row_wise",
            TableOptimizer(),
            managed=ROWS if name in managed else None,
        )
        for name in ("user", "item")
    )
    return EmbeddingSpec((EmbeddingSet("only", 4, 0.1),), tables, ("user", "item"), "fp32")


def test_managed_tables_have_a_collection_of_their_own() -> None:
    meta = torch.device("meta")
    assert build_managed(spec_of(), meta) is None
    names = [
        config.name for config in build_collection(spec_of("user"), meta).embedding_bag_configs()
    ]
    assert names == ["t_item"]
    managed = build_managed(spec_of("user"), meta)
    assert managed is not None
    assert [name for name, _ in managed.named_parameters()] == [
        "_embedding_module.embedding_bags.t_user.weight"
    ]
    assert all(each.is_meta for each in managed.parameters())


def test_only_training_counts_and_gives_rows() -> None:
    managed = build_managed(spec_of("user", "item"), CPU)
    assert managed is not None
    tables = ManagedTables(managed, spec_of("user", "item"))
    weights = managed._embedding_module.embedding_bags.t_user.weight.detach()
    weights.zero_()
    tables.own([LocalShard("user", "only", 12, 4, 0, 0, weights)])
    span = bucket_span(4)
    ids = KeyedJaggedTensor(
        keys=["user", "item"],
        values=torch.tensor([5, 5, 2 * span, missing_code(4)]),
        lengths=torch.tensor([2, 1, 1, 0]),
    )
    managed.eval()
    with torch.no_grad():
        assert not managed(ids)[0]["user"].any()
    before = tables.metrics(lambda sums: sums, CPU)
    assert before["ids/user/lookups"] == 0
    managed.train()
    found = managed(ids)[0]["user"]
    torch.testing.assert_close(found[0], 2 * weights[0])
    torch.testing.assert_close(found[1], weights[6])
    assert weights[0].any()
    after = tables.metrics(lambda sums: sums, CPU)
    assert [after[f"ids/user/{name}"] for name in ("rows_in_use", "lookups", "admissions")] == [
        2,
        3,
        2,
    ]
    assert [after[f"ids/item/{name}"] for name in ("rows_in_use", "lookups", "misses")] == [0, 1, 1]
    assert tables.num_bytes == 2 * 12 * 40


def test_a_shard_is_whole_buckets() -> None:
    module = IdMapModule(ROWS, 0, 12, 3, CPU)
    part = module.rebuild_with_output_id_range((6, 12), [0, 6, 12])
    assert (part.output_size(), part.buckets(), part.first) == (6, 4, 6)
    assert part.input_size() == module.input_size() == 4 * bucket_span(4)
    assert part.open_slots().tolist() == [4]
    with pytest.raises(ValueError, match="rows 5 to 12 of a managed table are no whole buckets"):
        module.rebuild_with_output_id_range((5, 12), [0, 5, 12])
