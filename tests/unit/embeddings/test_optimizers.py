"""Every option of a rule against the formula written out, and what the kernels do not hear."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)
from pydantic import ValidationError
from torch import Tensor

from prismrec.config import UserError
from prismrec.config.embedding import CPU_OPTIMIZERS, KERNEL_OPTIONS, TableOptimizer
from prismrec.config.placement import plain_problem, refused_kinds
from prismrec.embeddings.optimizers import check_optimizers, fused_arguments
from prismrec.embeddings.sets import EmbeddingSpec
from tests.helpers.tables import make_spec

RULES = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}
COLUMNS = {"column_wise", "table_column_wise", "grid"}
WEIGHTS = torch.arange(12.0).view(3, 4) / 10
BAGS, OFFSETS = torch.tensor([1, 1, 2, 1]), torch.tensor([0, 3, 4])
"""Row 1 twice in the first bag and once in the second; row 0 is not looked up."""
GRADIENTS = torch.tensor([[1.0, -2.0, 0.3, 0.5], [0.4, 0.5, -0.6, 3.0]])


def _spec(**options: object) -> EmbeddingSpec:
    optimizer = TableOptimizer.model_validate(options)
    spec = make_spec()
    return replace(spec, tables=(replace(spec.tables[1], optimizer=optimizer),))


def _fused(rule: str, **arguments: Any) -> Tensor:
    """The table after two steps of FBGEMM's kernel."""
    place = (3, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)
    kernel = SplitTableBatchedEmbeddingBagsCodegen([place], optimizer=RULES[rule], **arguments)
    kernel.split_embedding_weights()[0].copy_(WEIGHTS)
    for _ in range(2):
        kernel(BAGS, OFFSETS).backward(GRADIENTS)
    return kernel.split_embedding_weights()[0].clone()


def _written_out(rule: TableOptimizer) -> Tensor:
    weights, sums = WEIGHTS.double(), torch.zeros(3, 4).double()
    clip = rule.clip or float("inf")
    of_bags = GRADIENTS.double().clamp(-clip, clip)
    gradient = torch.stack([0 * of_bags[0], 2 * of_bags[0] + of_bags[1], of_bags[0]])
    for _ in range(2):
        squares = gradient**2
        sums += squares.mean(1, keepdim=True) if rule.name == "rowwise_adagrad" else squares
        step = gradient if rule.name == "sgd" else gradient / (sums.sqrt() + rule.eps)
        weights = weights - rule.learning_rate * step
    return weights


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (rule, options)
        for rule in CPU_OPTIMIZERS
        for options in ({}, {"learning_rate": 0.3}, {"clip": 0.45}, {"eps": 0.7})
        if rule != "sgd" or "eps" not in options
    ],
)
def test_each_option_does_what_its_formula_says(rule: str, options: dict[str, float]) -> None:
    chosen, plain = TableOptimizer(name=rule, **options), TableOptimizer(name=rule)
    arguments = fused_arguments(chosen)
    arguments["learning_rate"] = arguments.pop("lr")
    got = _fused(rule, **arguments)
    torch.testing.assert_close(got.double(), _written_out(chosen), atol=1e-6, rtol=1e-6)
    assert torch.equal(got[0], WEIGHTS[0]), "a row outside of the batch stays"
    if options:
        assert (got - _written_out(plain)).abs().max() > 1e-2


@pytest.mark.parametrize("rule", CPU_OPTIMIZERS)
@pytest.mark.parametrize(
    "ignored",
    [
        {"max_norm": 0.01},
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "weight_decay_mode": WeightDecayMode.DECOUPLE},
        {"weight_decay": 0.5, "weight_decay_mode": WeightDecayMode.L2},
    ],
    ids=str,
)
def test_the_cpu_kernels_still_ignore_what_is_refused_there(
    rule: str, ignored: dict[str, object]
) -> None:
    assert torch.equal(_fused(rule, **ignored), _fused(rule)), "no longer: stop refusing it"


@pytest.mark.parametrize("rule", KERNEL_OPTIONS)
def test_the_cuda_kernels_are_told_what_is_accepted_and_nothing_else(rule: str) -> None:
    package = "fbgemm_gpu.split_embedding_codegen_lookup_invokers"
    source = inspect.getsource(importlib.import_module(f"{package}.lookup_{rule}"))
    told = set(re.findall(r'\["(\w+)"\] = optimizer_args\.', source))
    assert {"gradient_clipping", "max_gradient"} <= told
    options = {each for options in KERNEL_OPTIONS.values() for each in options}
    assert told & options == set(KERNEL_OPTIONS[rule])


@pytest.mark.parametrize("rule", KERNEL_OPTIONS)
def test_arguments_are_those_of_the_kernel(rule: str) -> None:
    known = inspect.signature(SplitTableBatchedEmbeddingBagsCodegen).parameters
    set_all = {"eps": 0.1, "beta1": 0.5, "beta2": 0.6, "weight_decay": 0.2, "max_norm": 3.0}
    options = {name: set_all[name] for name in KERNEL_OPTIONS[rule]}
    arguments = fused_arguments(
        TableOptimizer(name=rule, learning_rate=0.25, clip=0.5, **options)  # type: ignore[arg-type]
    )
    assert arguments.pop("lr") == 0.25
    assert arguments.items() >= (options | {"gradient_clipping": True, "max_gradient": 0.5}).items()
    assert set(arguments) <= set(known)
    has_mode = "weight_decay_mode" in arguments
    assert has_mode is (rule == "rowwise_adagrad"), "which decays nothing without it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgd", "eps": 0.1}, "sgd ignore eps.*adagrad or rowwise_adagrad"),
        ({"name": "sgd", "weight_decay": 0.1}, "sgd ignore weight_decay.*or use rowwise_adagrad"),
        ({"name": "adagrad", "weight_decay": 0.1}, "adagrad ignore weight_decay"),
        ({"name": "adagrad", "beta1": 0.5}, "adagrad ignore beta1.*or use adam or lamb"),
        ({"name": "adam", "max_norm": 1.0}, "adam ignore max_norm.*or use rowwise_adagrad"),
    ],
)
def test_what_no_kernel_of_a_rule_hears_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=f"the kernels of {message}"):
        TableOptimizer.model_validate(options)


@pytest.mark.parametrize("name", ["adam", "lamb", "partial_rowwise_adam"])
def test_what_the_cpu_lacks_is_refused_by_name(name: str) -> None:
    there = "sgd, adagrad, rowwise_adagrad"
    with pytest.raises(UserError, match=f"'item'.*'{name}' is not supported .*{there}"):
        check_optimizers(_spec(name=name), "cpu")
    check_optimizers(_spec(name=name), "cuda")


def test_adam_on_the_cpu_is_for_tables_that_are_not_fused() -> None:
    spec = _spec(name="adam", weight_decay=0.1)
    with pytest.raises(UserError, match="small tables can have adam with sharding = 'data_par"):
        check_optimizers(spec, "cpu")
    whole = replace(spec.tables[0], sharding="data_parallel")
    check_optimizers(replace(spec, tables=(whole,)), "cpu")


@pytest.mark.parametrize("name", CPU_OPTIMIZERS)
def test_what_the_cpu_has_passes(name: str) -> None:
    check_optimizers(_spec(name=name, clip=1.0), "cpu")


@pytest.mark.parametrize(
    ("option", "message"),
    [("weight_decay", "ignore weight decay"), ("max_norm", "ignore the largest length")],
)
def test_what_the_cpu_does_not_hear_is_refused(option: str, message: str) -> None:
    spec = _spec(name="rowwise_adagrad", **{option: 0.1})
    with pytest.raises(UserError, match=f"'item'.*{option}: .*{message}"):
        check_optimizers(spec, "cpu")
    check_optimizers(spec, "cuda")


def test_a_sets_own_optimizer_is_checked_too() -> None:
    spec = _spec(name="sgd")
    own = replace(spec.sets[1], optimizer=TableOptimizer(name="adam"))
    with pytest.raises(UserError, match="table 'item', set 'narrow'.*'adam' is not supported"):
        check_optimizers(replace(spec, sets=(spec.sets[0], own)), "cpu")


@pytest.mark.parametrize(
    ("options", "data_type", "refused"),
    [
        ({"name": "sgd"}, "fp32", set()),
        ({"name": "adagrad"}, "fp32", set()),
        ({"name": "adagrad"}, "fp16", {"data_parallel"}),
        ({"name": "sgd", "clip": 0.1}, "fp32", {"data_parallel"}),
        ({"name": "adam"}, "fp32", set()),
        ({"name": "adam"}, "fp16", {"data_parallel"}),
        ({"name": "lamb"}, "fp32", {"data_parallel"} | COLUMNS),
        ({"name": "rowwise_adagrad"}, "fp32", {"data_parallel"} | COLUMNS),
        ({"name": "partial_rowwise_adam"}, "fp16", {"data_parallel"} | COLUMNS),
    ],
)
def test_kinds_that_would_change_the_numbers(
    options: dict[str, object], data_type: str, refused: set[str]
) -> None:
    optimizer = TableOptimizer.model_validate(options)
    assert set(refused_kinds(optimizer, data_type)) == refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgd"}, None),
        ({"name": "adagrad", "eps": 0.1}, None),
        ({"name": "rowwise_adagrad"}, "rowwise_adagrad has no plain form"),
        ({"name": "adam", "weight_decay": 0.1}, None),
        ({"name": "lamb"}, "lamb has no plain form"),
        ({"name": "adagrad", "clip": 1.0}, "cannot be clipped one by one"),
    ],
)
def test_rules_with_a_plain_form(options: dict[str, object], message: str | None) -> None:
    problem = plain_problem(TableOptimizer.model_validate(options))
    assert problem is None if message is None else message in str(problem)
