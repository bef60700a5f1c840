"""Copies of other number types, made of an fp32 copy, and how long they take."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from prismrec.config import UserError
from prismrec.serving.bundle import check_files, read_manifest
from prismrec.serving.columns import to_arrow
from prismrec.serving.inference import InferenceModel
from prismrec.serving.latency import measure_latency
from prismrec.serving.recode import folder_bytes, recode_bundle
from prismrec.serving.tables import TableType
from tests.unit.serving.world import RAW, make_world, random_raw


@pytest.mark.parametrize("table_type", get_args(TableType))
def test_tables_are_those_of_an_export(tmp_path: Path, table_type: TableType) -> None:
    world = make_world()
    made = recode_bundle(world.bundle(tmp_path), tmp_path / "made", table_type, "fp32")
    (tmp_path / "direct").mkdir()
    direct = world.bundle(tmp_path / "direct", table_type)
    assert read_manifest(made) == read_manifest(direct)  # with the SHA-256 of every file
    check_files(made, read_manifest(made))
    logits = InferenceModel.load(made).predict_logits(RAW)
    assert torch.equal(logits, InferenceModel.load(direct).predict_logits(RAW))


def test_a_bf16_dense_part(tmp_path: Path) -> None:
    world = make_world()
    exact = world.bundle(tmp_path)
    made = recode_bundle(exact, tmp_path / "made", "fp32", "bf16")
    stored = load_file(made / "head.safetensors")
    for name, weight in load_file(exact / "head.safetensors").items():
        wanted = torch.bfloat16 if weight.dim() > 1 else weight.dtype
        assert stored[name].dtype == wanted, name
        assert torch.equal(stored[name], weight.to(wanted))
    assert folder_bytes(made) < folder_bytes(exact)
    model = InferenceModel.load(made)
    for raw in (RAW, random_raw(200)):
        expected = InferenceModel.load(exact).predict_logits(raw)
        got = model.predict_logits(raw)
        difference = (got - expected).abs().max()
        # Eight bits of precision: near, and not what fp32 gives.
        assert 1e-4 < difference < 0.02 * expected.abs().max() + 0.02
        assert got.dtype == torch.float32


def test_what_is_refused(tmp_path: Path) -> None:
    world = make_world()
    small = recode_bundle(world.bundle(tmp_path), tmp_path / "small", "int8", "fp32")
    with pytest.raises(UserError, match=r"has int8 tables and a fp32 dense part; other types are"):
        recode_bundle(small, tmp_path / "other", "fp16", "fp32")
    with pytest.raises(UserError, match=r"small: already there; choose another directory"):
        recode_bundle(tmp_path / "bundle-fp32", small, "int8", "fp32")
    file = tmp_path / "bundle-fp32" / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"differs from its SHA-256"):
        recode_bundle(tmp_path / "bundle-fp32", tmp_path / "other", "int8", "fp32")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle-fp32", "small"}


def test_latency_is_measured_in_turns(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self._name = name

        def probabilities(self, columns: dict[str, pa.Array]) -> torch.Tensor:
            asked.append((self._name, len(columns["item"])))
            return torch.zeros(len(columns["item"]), 2)

    model = make_world().model(tmp_path)
    columns = to_arrow(random_raw(3), model.columns)
    found = measure_latency({"a": Fake("a"), "b": Fake("b")}, columns, (1, 7))
    assert asked == [("a", 1), ("b", 1)] * 201 + [("a", 7), ("b", 7)] * 201
    times = measure_latency({"model": model}, columns, (2,))["model"]["2"]
    assert 0 < times["p50_ms"] <= times["p99_ms"]
    assert found["b"]["7"]["calls"] == 200
