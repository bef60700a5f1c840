"""Codecs alone: bounds, the scale that saves small gradients, and what goes with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.config import UserError
from prismrec.config.embedding import Communication, WireType
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.communication import (
    ScaledCodec,
    check_communication,
    make_codecs,
    refused_by_communication,
)
from prismrec.embeddings.plan import Placement
from prismrec.embeddings.plan.rules import impossible_kinds
from tests.helpers.tables import make_spec

NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=64, max_size=64)


def _sent(codec: QuantizedCommCodec, numbers: Tensor) -> Tensor:
    context = codec.create_context()
    wire = codec.encode(numbers.clone(), context)
    assert wire.dtype == codec.quantized_dtype
    assert wire.numel() == codec.calc_quantized_size(numbers.numel(), context)
    return codec.decode(wire, context)


def _codecs(wire: WireType, batch_size: int = 64) -> tuple[QuantizedCommCodec, QuantizedCommCodec]:
    codecs = make_codecs(Communication(forward=wire, backward=wire), batch_size)
    assert codecs is not None
    sent, added = codecs["POOLED_EMBEDDINGS_ALL_TO_ALL"], codecs["POOLED_EMBEDDINGS_REDUCE_SCATTER"]
    assert sent is added
    return sent.forward, sent.backward


@settings(derandomize=True, max_examples=50, deadline=None)
@given(NUMBERS)
def test_numbers_lose_no_more_than_is_said(values: list[float]) -> None:
    numbers = torch.tensor(values)
    for wire, share, least in (("fp16", 2**-11, 2**-25), ("bf16", 2**-8, 1e-38)):
        for codec in _codecs(wire):  # type: ignore[arg-type]
            error = (_sent(codec, numbers) - numbers).abs()
            assert (error <= share * numbers.abs() + least).all()
    for codec in _codecs("int8"):
        error = (_sent(codec, numbers) - numbers).abs().view(-1, 32)
        rows = numbers.view(-1, 32)
        span = rows.max(1).values - rows.min(1).values
        assert (error <= span[:, None] / 255 * 0.51 + 1e-5).all()


def test_gradients_of_a_mean_over_a_large_batch_survive_fp16() -> None:
    gradients = torch.tensor([3e-8, -2.5e-7, 1e-6, 4e-5]).repeat(16)
    _, backward = _codecs("fp16", batch_size=5000)
    ours = _sent(backward, gradients)
    assert ((ours - gradients).abs() <= 2**-11 * gradients.abs() + 2**-25 / 4096).all()
    assert (ours / gradients - 1).abs().max() < 1e-3
    theirs = _sent(QuantizedCommCodec(SparseType.FP16, loss_scale=4096.0), gradients)
    assert (theirs / gradients - 1).abs().max() > 0.1, "FBGEMM keeps them now: drop ScaledCodec"


def test_a_scaled_codec_changes_no_number_that_fp16_holds() -> None:
    numbers = torch.tensor([1.0, -0.5, 3.25, 1024.0])
    assert torch.equal(_sent(ScaledCodec(SparseType.FP16, 8.0), numbers), numbers)


def test_nothing_is_packed_where_nothing_is_asked_for() -> None:
    assert make_codecs(Communication(), 64) is None


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_int8_rules_out_kinds_that_add_up(way: str) -> None:
    communication = Communication.model_validate({way: "int8"})
    assert set(refused_by_communication(communication)) == {"row_wise", "table_row_wise", "grid"}
    spec = replace(make_spec(), communication=communication)
    refused = impossible_kinds(physical_tables(spec)[0], spec, Placement(4, 2, "cpu", 2**30, 8))
    assert "int8 numbers with ranges of their own" in refused["row_wise"]
    assert refused_by_communication(Communication(forward="fp16", backward="bf16")) == {}


def test_what_no_vector_would_have_is_refused() -> None:
    halves = Communication(forward="fp16")
    spec = replace(make_spec(sharding="data_parallel"), communication=halves)
    with pytest.raises(UserError, match="no vector travels where every table is data_parallel"):
        check_communication(spec, 64)
    check_communication(replace(make_spec(), communication=halves), 64)


def test_int8_needs_whole_ranges() -> None:
    spec = replace(make_spec(), communication=Communication(backward="int8"))
    check_communication(spec, 24)
    with pytest.raises(UserError, match="multiple of 8 rows in the batch of a rank, which has 12"):
        check_communication(spec, 12)
