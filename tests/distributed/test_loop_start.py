"""A run does not start with a weight that would never move, or move twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prismrec.config import UserError
from prismrec.data.source import open_data
from prismrec.models import spec_of
from prismrec.train import sharding
from prismrec.train.optimizers import check_coverage
from prismrec.train.process_group import process_group
from prismrec.train.sharding import ShardedModel
from tests.helpers.runs import make_recipe, write_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows")


@pytest.fixture
def sharded(data: Path) -> Iterator[ShardedModel]:
    """On one rank, with a table that is not fused."""
    recipe = make_recipe(data, "embedding.tables.tags={sharding='data_parallel'}")
    with process_group("cpu") as ranks:
        spec = spec_of(recipe, open_data(data).schema)
        yield sharding.shard_model(recipe, spec, ranks, is_bf16=False, total_steps=5)


def test_every_parameter_has_one_optimizer(sharded: ShardedModel) -> None:
    check_coverage(sharded.dmp, sharded.plain)  # as built


def test_a_parameter_without_an_optimizer_is_refused(sharded: ShardedModel) -> None:
    dense, replicas = sharded.plain
    with pytest.raises(UserError, match=r"tags\.weight \(no optimizer\)"):
        check_coverage(sharded.dmp, [dense])
    with pytest.raises(UserError, match=r"would not train as asked: .*linears.*\(no optimizer\)"):
        check_coverage(sharded.dmp, [replicas])


def test_a_parameter_with_two_optimizers_is_refused(sharded: ShardedModel) -> None:
    again = [p for group in sharded.plain[0].param_groups for p in group["params"]][:1]
    with pytest.raises(UserError, match=r"\(two optimizers\)") as caught:
        check_coverage(sharded.dmp, [*sharded.plain, torch.optim.SGD(again, lr=0.1)])
    assert caught.value.message.count("optimizers)") == 1
    fused = [p for n, p in sharded.dmp.named_parameters() if n.endswith("_user.weight")]
    with pytest.raises(UserError, match=r"user\.weight \(two optimizers\)"):
        check_coverage(sharded.dmp, [*sharded.plain, torch.optim.SGD(fused, lr=0.1)])


def test_frozen_weights_need_no_optimizer(sharded: ShardedModel) -> None:
    for parameter in sharded.leaf.parameters():
        parameter.requires_grad_(False)
    check_coverage(sharded.dmp, sharded.plain[1:])
