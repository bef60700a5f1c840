"""The model of the GPU measurements and its variants: what they compute, and what a rung should save."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from benchmarks.gpu.dlrm import TRIAL, Core, Shape, batches
from benchmarks.gpu.ladder import PIPELINE, Bench, Step, climb, copied_bytes, saving
from benchmarks.gpu.narrow import NarrowBatch
from benchmarks.gpu.results import Asked, Results
from benchmarks.gpu.where import covered, kind_of
from prismrec.train.process_group import Ranks


def test_the_core_is_the_published_model() -> None:
    core = Core(TRIAL)
    vectors, numbers = torch.randn(5, 3, 16), torch.randn(5, 4)
    weights = dict(core.named_parameters())

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        out = x @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    of_numbers = torch.relu(linear("bottom.2", torch.relu(linear("bottom.0", numbers))))
    x0 = x = torch.cat([of_numbers, vectors.flatten(1)], 1)
    for layer in range(3):
        x = x0 * linear(f"cross.layers.{layer}.1", linear(f"cross.layers.{layer}.0", x)) + x
    for layer in (0, 2):
        x = torch.relu(linear(f"top.{layer}", x))
    torch.testing.assert_close(core(vectors, numbers), linear("top.4", x))


def test_sizes_are_those_of_the_published_model() -> None:
    with torch.device("meta"):
        core = Core(Shape(rows=1))
    width = 27 * 128
    bottom, top = (13, 512, 256, 128), (width, 1024, 1024, 512, 256, 1)
    mlps = sum(i * o for widths in (bottom, top) for i, o in pairwise(widths))
    assert core.products == mlps + 3 * 2 * 512 * width
    assert Shape(rows=999).table_bytes == 26 * 1000 * 128 * 4 * 2


def test_narrow_ids_are_the_same_ids() -> None:
    (batch,) = batches(TRIAL, 8, "zipf", 1, is_pinned=False)
    narrow = NarrowBatch.of(batch)
    assert narrow.sparse.values().dtype == torch.int32
    moved = narrow.to(torch.device("cpu"))
    assert moved.sparse.values().dtype == torch.int64
    assert torch.equal(moved.sparse.values(), batch.sparse.values())
    assert torch.equal(moved.sparse.lengths(), batch.sparse.lengths())
    assert moved.sparse.keys() == batch.sparse.keys()
    assert torch.equal(moved.labels, batch.labels)


def test_a_batch_has_the_bytes_that_are_counted() -> None:
    (batch,) = batches(TRIAL, 8, "random", 1, is_pinned=False)
    parts = [batch.sparse.values(), batch.sparse.lengths(), batch.dense, batch.labels, batch.valid]
    parts += [batch.weights, batch.domain, batch.group, batch.time]
    assert copied_bytes(_bench()) == sum(part.numel() * part.element_size() for part in parts)


def _bench() -> Bench:
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    return Bench(Asked("cpu", False, Results(None), {}), ranks, TRIAL, 8)


def test_what_a_rung_should_save_is_counted_from_the_ceilings() -> None:
    bench, core = _bench(), Core(TRIAL)
    ceilings = {
        "fp32 product": 1e-3,
        "bf16 product": 2e-3,
        "copy in device memory": 1e-3,
        "host to device, pinned": 1e-3,
    }
    # 8 rows, two operations a weight forward and four backward, at 1e9 and 2e9 operations per second
    products = 8 * 6 * core.products
    fp32, bf16 = Step("fp32"), Step("bf16")
    saved = saving(bench, fp32, bf16, ceilings)
    assert saved == pytest.approx(1e3 * (products / 1e9 - products / 2e9))
    dense = 4 * sum(each.numel() for each in core.parameters())
    fused = replace(bf16, is_fused=True)
    assert saving(bench, bf16, fused, ceilings) == pytest.approx(1e3 * 11 * dense / 1e6)
    assert saving(bench, fused, PIPELINE, ceilings) == pytest.approx(
        1e3 * copied_bytes(bench) / 1e6
    )
    assert saving(bench, PIPELINE, replace(PIPELINE, is_narrow=True), ceilings) == 0
    with pytest.raises(KeyError):
        saving(bench, fp32, Step("tf32"), ceilings)


def test_a_rung_that_fails_without_a_word_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Bench, step: Step) -> None:
        raise AssertionError if step == PIPELINE else RuntimeError("first\nsecond")

    monkeypatch.setattr(Bench, "measured", fail)
    bench = _bench()
    assert climb(bench) == 4
    (table,) = bench.run.results.tables
    said = {row[2] for row in table.rows}
    assert {"does not hold: AssertionError: ", "does not hold: RuntimeError: first"} <= said


def test_kernels_are_told_apart_by_name() -> None:
    names = {
        "Memcpy HtoD (Pinned -> Device)": "host to device copies",
        "split_embedding_backward_codegen_adagrad_unweighted_kernel_warp_per_row_1": "tables, backward",
        "split_embedding_codegen_forward_unweighted_v2_kernel": "tables, lookup",
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT": "matrix products",
        "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel": "tables, sorting of ids",
        "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer",
        "void at::native::vectorized_elementwise_kernel<4, relu>": "other arithmetic",
    }
    for name, kind in names.items():
        assert kind_of(name).startswith(kind), name
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
