"""A model as one program of torch's own: the same logits from the file alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prismrec.config import UserError
from prismrec.serving import program as program_module
from prismrec.serving.columns import to_arrow
from prismrec.serving.inference import InferenceModel
from prismrec.serving.program import (
    FILES,
    ProgramFormat,
    ProgramModel,
    describe_program,
    program_inputs,
    write_program,
)
from prismrec.serving.recode import recode_bundle
from prismrec.serving.tables import TableType
from tests.unit.serving.world import AME, RAW, make_world, random_raw

CROSS = {"name": "dcnv2", "hidden": [8, 4]}

ALONE = """
import sys, torch
path, tensors, wanted = sys.argv[1:]
run = torch.jit.load(path) if path.endswith(".ts") else torch.export.load(path).module()
with torch.no_grad():
    got = run(*torch.load(tensors, weights_only=True))
assert torch.allclose(got, torch.load(wanted, weights_only=True), atol=1e-4), "other numbers"
assert not [name for name in sys.modules if name.split(".")[0] in ("prismrec", "fbgemm_gpu")]
print("same")
"""


def model_of(folder: Path, table_type: TableType = "fp32") -> InferenceModel:
    """Five sets that cover and pool bags in their own ways, below a cross network."""
    world = make_world(embedding={"sets": AME}, model=CROSS)
    if table_type == "fp32":
        return world.model(folder)
    made = recode_bundle(world.bundle(folder), folder / "made", table_type, "fp32")
    return InferenceModel.load(made)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "table_type"),
    [
        ("torch.export", "int8"),
        ("torchscript", "int4"),
        ("torchscript", "fp32"),
        pytest.param("torch.export", "fp32", marks=SLOW),
        pytest.param("torch.export", "fp16", marks=SLOW),
        pytest.param("torch.export", "int4", marks=SLOW),
        pytest.param("torchscript", "fp16", marks=SLOW),
        pytest.param("torchscript", "int8", marks=SLOW),
    ],
)
def test_a_program_says_what_the_model_says(
    tmp_path: Path, kind: ProgramFormat, table_type: TableType
) -> None:
    model = model_of(tmp_path, table_type)
    path = tmp_path / FILES[kind]
    assert write_program(model, path, kind, to_arrow(random_raw(40), model.columns)) < 1e-4
    program = ProgramModel(model, path, kind)
    for raw in (RAW, random_raw(1), random_raw(300, 5)):
        got, expected = program.probabilities(raw), model.probabilities(raw)
        assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("torch.export", marks=SLOW), "torchscript"])
def test_it_runs_with_torch_alone(tmp_path: Path, kind: ProgramFormat) -> None:
    model = model_of(tmp_path)
    path = tmp_path / FILES[kind]
    write_program(model, path, kind, to_arrow(random_raw(9), model.columns))
    tensors = program_inputs(model, to_arrow(RAW, model.columns))
    described = describe_program(model)["inputs"]
    assert [str(each.dtype) for each in tensors] == [f"torch.{each['type']}" for each in described]
    assert described[3]["name"] == "item/rows"
    torch.save(list(tensors), tmp_path / "in.pt")
    torch.save(model.predict_logits(RAW), tmp_path / "out.pt")
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, str(path), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.stdout == "same\n", ended.stderr


def test_fake_negatives_are_taken_out_of_a_program_too(tmp_path: Path) -> None:
    tasks = [
        {"name": "click", "label": "clicked", "negative_rate": 0.1},
        {"name": "buy", "label": "bought", "loss": "fnc"},
    ]
    model = make_world(model=CROSS, tasks=tasks).model(tmp_path)
    path = tmp_path / FILES["torchscript"]
    write_program(model, path, "torchscript", to_arrow(random_raw(40), model.columns))
    got = ProgramModel(model, path, "torchscript").probabilities(RAW)
    assert torch.allclose(got, model.probabilities(RAW), atol=1e-5)


def bare_rows(ids: int, rows: int = 40) -> dict[str, Any]:
    """Rows of which the first seven have so many ids of a field in all."""
    raw = random_raw(rows)
    return {**raw, "tags": ([[1] * ids] + [[]] * 6 + raw["tags"][7:])[:rows]}


@pytest.mark.parametrize(("ids", "rows"), [(0, 40), (1, 40), (1, 1)])
def test_no_length_of_a_trace_is_0_or_1(tmp_path: Path, ids: int, rows: int) -> None:
    model = make_world(model=CROSS).model(tmp_path)
    traced = program_module._example(model, to_arrow(bare_rows(ids, rows), model.columns))
    assert min(len(each) for each in traced) > 1
    with torch.no_grad():
        assert program_module.RankingProgram(model)(*traced).shape == (7, 2)


@SLOW
@pytest.mark.parametrize("ids", [0, 1])
def test_rows_it_is_made_with_may_have_no_id_of_a_field(tmp_path: Path, ids: int) -> None:
    kind: ProgramFormat = "torch.export"
    model = make_world(model=CROSS).model(tmp_path)
    bare = bare_rows(ids)
    path = tmp_path / FILES[kind]
    write_program(model, path, kind, to_arrow(bare, model.columns))
    program = ProgramModel(model, path, kind)
    for raw in (RAW, bare, random_raw(1), random_raw(300, 5)):
        assert torch.allclose(program.probabilities(raw), model.probabilities(raw), atol=1e-5)


def test_a_program_that_fails_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise AssertionError("Guard failed: args[1] == 1")

    model = make_world(model=CROSS).model(tmp_path)
    monkeypatch.setattr(program_module, "load_program", lambda *_: broken)
    with pytest.raises(UserError, match=r"cannot make a program .*Guard failed.*without --format"):
        write_program(model, tmp_path / "p", "torchscript", to_arrow(random_raw(9), model.columns))


def test_the_inputs_of_a_program_look_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_world().model(tmp_path)
    monkeypatch.setattr(type(model), "inputs", None)
    assert len(program_inputs(model, to_arrow(RAW, model.columns))) == 3 * 4 + 1


def test_what_is_no_program(tmp_path: Path) -> None:
    world = make_world()
    made = recode_bundle(world.bundle(tmp_path), tmp_path / "made", "fp32", "bf16")
    with pytest.raises(UserError, match=r"'ctr' cannot be a program: programs compute in fp32"):
        write_program(InferenceModel.load(made), tmp_path / "p.pt2", "torch.export", {})
    assert not (tmp_path / "p.pt2").exists()
