from __future__ import annotations

from dataclasses import replace

import pytest

from prismrec.config import UserError
from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.optimizers import check_optimizers, moves_absent_rows
from prismrec.embeddings.plan import refused_kinds
from prismrec.embeddings.sets import EmbeddingSpec
from tests.helpers.tables import make_spec


def _spec(**options: object) -> EmbeddingSpec:
    optimizer = TableOptimizer.model_validate(options)
    spec = make_spec()
    return replace(spec, tables=(replace(spec.tables[1], optimizer=optimizer),))


@pytest.mark.parametrize("name", ["adam", "lamb", "partial_rowwise_adam"])
def test_what_the_cpu_lacks_is_refused_by_name(name: str) -> None:
    there = "sgd, adagrad, rowwise_adagrad"
    with pytest.raises(UserError, match=f"'{name}' is not supported .*'item'.*{there}"):
        check_optimizers(_spec(name=name), "cpu")
    check_optimizers(_spec(name=name), "cuda")


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_what_the_cpu_has_passes_without_weight_decay_only(name: str) -> None:
    check_optimizers(_spec(name=name), "cpu")
    with pytest.raises(UserError, match="ignore weight decay.*'item'"):
        check_optimizers(_spec(name=name, weight_decay=0.01), "cpu")
    check_optimizers(_spec(name=name, weight_decay=0.01), "cuda")
    with pytest.raises(UserError, match="ignore the largest length.*'item'"):
        check_optimizers(_spec(name=name, max_norm=1.0), "cpu")


@pytest.mark.parametrize(
    ("options", "data_type", "refused"),
    [
        ({"name": "sgd"}, "fp32", set()),
        ({"name": "adagrad"}, "fp32", set()),
        ({"name": "adagrad"}, "fp16", {"data_parallel"}),
        ({"name": "sgd", "weight_decay": 0.1}, "fp32", {"data_parallel"}),
        ({"name": "adam"}, "fp32", {"data_parallel"}),
        ({"name": "lamb"}, "fp32", {"data_parallel", "column_wise"}),
        ({"name": "rowwise_adagrad"}, "fp32", {"data_parallel", "column_wise"}),
        ({"name": "partial_rowwise_adam"}, "fp16", {"data_parallel", "column_wise"}),
    ],
)
def test_kinds_that_would_change_the_numbers(
    options: dict[str, object], data_type: str, refused: set[str]
) -> None:
    optimizer = TableOptimizer.model_validate(options)
    assert set(refused_kinds(optimizer, data_type)) == refused


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({"name": "sgd"}, False),
        ({"name": "rowwise_adagrad"}, False),
        ({"name": "adagrad", "weight_decay": 0.1}, True),
        ({"name": "adam"}, True),
    ],
)
def test_rules_that_move_rows_outside_the_batch(options: dict[str, object], moves: bool) -> None:
    assert moves_absent_rows(TableOptimizer.model_validate(options)) is moves
