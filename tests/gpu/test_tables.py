"""Tables on the device against the plain reference: every layout, kind, optimizer, width, type and place.

The tables of fp32 agree within 1e-5, absolute and relative, after five steps, and what is looked up within
three times that. fp16 weights are rounded once a step, on CUDA up or down at random: within 5 x 2^-10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import pytest

from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec
from prismrec.train.process_group import process_group
from tests.distributed.test_kinds import SPECS, Expected, check_table, expected_of
from tests.gpu.device import DEVICE, has_dense_kernel, needs_cuda
from tests.helpers.sharded import Case, Trained, places, together, train_case

UVM = ("fused_uvm", "fused_uvm_caching")
WHOLE = "data_parallel"


def without(spec: EmbeddingSpec, is_left_out: Callable[[str], bool]) -> EmbeddingSpec:
    """A specification without some of its tables."""
    tables = tuple(table for table in spec.tables if not is_left_out(table.sharding))
    fields = tuple(feature for table in tables for feature in table.features)

    def kept(each: EmbeddingSet) -> EmbeddingSet:
        if each.features is None:
            return each
        return replace(each, features=tuple(name for name in each.features if name in fields))

    return replace(spec, tables=tables, fields=fields, sets=tuple(map(kept, spec.sets)))


def spec_of(name: str, kernel: str = "auto") -> EmbeddingSpec:
    """One of the specifications of `test_kinds`, its tables in device memory or behind it."""
    spec = SPECS[name]()
    if kernel != "auto" or not has_dense_kernel():
        spec = without(spec, lambda kind: kind == WHOLE)
    return replace(spec, tables=tuple(replace(table, kernel=kernel) for table in spec.tables))


@cache
def trained(name: str, kernel: str = "auto") -> Trained:
    """What the device makes of five steps."""
    with process_group(DEVICE):
        return train_case(Case(spec_of(name, kernel), device=DEVICE))


@cache
def expected(name: str, kernel: str = "auto") -> Expected:
    """What the reference makes of them."""
    spec = spec_of(name, kernel)
    return expected_of(spec, together(spec, places(spec, 1, 1)))


def cells() -> Iterator[object]:
    for name, make in SPECS.items():
        for table in make().tables:
            yield pytest.param(name, table.name, table.sharding, id=f"{name}-{table.name}")


@pytest.mark.parametrize(("name", "table", "kind"), cells())
def test_device_equals_plain(name: str, table: str, kind: str) -> None:
    if kind == WHOLE and not has_dense_kernel():
        pytest.skip("data_parallel: this build of FBGEMM has no dense kernel for CUDA")
    check_table([trained(name)], expected(name), table)


@needs_cuda("unified memory")
@pytest.mark.parametrize("kernel", UVM)
@pytest.mark.parametrize("name", ["cross", "half"])
def test_tables_in_host_memory_equal_plain(name: str, kernel: str) -> None:
    for table in spec_of(name, kernel).tables:
        check_table([trained(name, kernel)], expected(name, kernel), table.name)
