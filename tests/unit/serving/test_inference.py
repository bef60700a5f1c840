"""The inference copy against independent predictions from raw values."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from prismrec.config import UserError
from prismrec.serving.bundle import (
    MANIFEST,
    logit_offsets,
    read_manifest,
    sha256,
    write_bundle,
)
from prismrec.serving.inference import InferenceModel
from tests.unit.serving.world import RAW, make_world, random_raw, recipe

MODELS: list[dict[str, Any]] = [
    {"name": "lr"},
    {"name": "deepfm", "hidden": [8, 4]},
    {"name": "dcnv2", "hidden": [8, 4], "merge": "gate", "num_cross_layers": 2},
    {"name": "dnn", "hidden": [4], "norm": "batch"},
]


@pytest.mark.parametrize("model", MODELS, ids=[each["name"] for each in MODELS])
def test_logits_equal_a_row_by_row_prediction(model: dict[str, Any], tmp_path: Path) -> None:
    sets = {"embedding": {}} if model["name"] == "lr" else {}
    world = make_world(model=model, **sets)
    got = world.model(tmp_path).predict_logits(RAW)
    assert torch.allclose(got, world.expected_logits(RAW), atol=2e-6)


def test_packed_and_separate_layouts_serve_the_same(tmp_path: Path) -> None:
    packed = make_world().model(tmp_path)
    section = {"sets": [{"name": "wide", "dim": 8}, {"name": "narrow", "dim": 4}]}
    other = make_world(embedding={**section, "layout": "separate"})
    separate = InferenceModel.load(write_bundle(tmp_path / "separate", other.source, "fp32"))
    raw = random_raw(50)
    assert separate.predict_logits(raw).equal(packed.predict_logits(raw))


def test_unknown_ids_use_the_last_row_and_are_counted(tmp_path: Path) -> None:
    world = make_world()
    model = world.model(tmp_path)
    raw = {name: [values[0]] * 4 for name, values in RAW.items()}
    raw["user_id"] = [5, -1, None, 2**62]
    logits = model.predict_logits(raw)
    assert (logits == logits[0]).all()
    assert torch.allclose(logits, world.expected_logits(raw), atol=2e-6)
    assert model.unknown_ids == {"user_id": 4}
    model.predict_logits({**raw, "user_id": [0, 1, 2, 3], "item": [7, 6, -1, 0]})
    assert model.unknown_ids == {"user_id": 4, "item": 2}


def test_hashed_ids_find_the_rows_that_training_gave_them(tmp_path: Path) -> None:
    from prismrec.data.encode.encoders import HashEncoder, TableRows
    from prismrec.data.encode.ids import name_seed

    embedding = {"dim": 4, "tables": {"user_id": {"rows": 6, "ids": "hash"}}}
    world = make_world(embedding=embedding)
    raw = random_raw(3)
    raw["user_id"] = [10**15 + 7, -3, None]
    encode = HashEncoder(TableRows(6), (name_seed("user_id"),))
    rows, _ = encode(np.array([10**15 + 7, -3]))
    known = {**raw, "user_id": [*rows.tolist(), 99]}
    # A missing value makes pandas hold the ids as floats, but not Arrow.
    arrow = {**raw, "user_id": pa.array(raw["user_id"])}
    got = world.model(tmp_path).predict_logits(arrow)
    assert torch.allclose(got, world.expected_logits(known), atol=2e-6)


def test_negative_sampling_is_undone() -> None:
    """Kept at 1 in 10, a score of 0.2 means 0.0243902439 (odds 0.25 -> 0.025)."""
    offset = logit_offsets(recipe())
    assert offset[1] == 0.0
    assert 1 / (1 + math.exp(-(math.log(0.25) + offset[0]))) == pytest.approx(0.0243902439)


def test_predictions_have_negative_sampling_undone(tmp_path: Path) -> None:
    """The same weights, exported with and without a rate, differ by ln 0.1 in that task alone."""
    sampled = make_world()
    assert [task.negative_rate for task in sampled.recipe.tasks] == [0.1, 1.0]
    tasks = [task.model_dump() | {"negative_rate": 1.0} for task in sampled.recipe.tasks]
    raw = random_raw(20)
    undone = sampled.model(tmp_path / "sampled").predict_logits(raw)
    as_trained = make_world(tasks=tasks).model(tmp_path / "whole").predict_logits(raw)
    torch.testing.assert_close(undone[:, 0], as_trained[:, 0] + math.log(0.1))
    assert undone[:, 1].equal(as_trained[:, 1])


def test_a_request_of_no_rows(tmp_path: Path) -> None:
    model = make_world().model(tmp_path)
    assert tuple(model.probabilities({name: [] for name in RAW}).shape) == (0, 2)


def test_containers_give_the_same(tmp_path: Path) -> None:
    model = make_world().model(tmp_path)
    raw = random_raw(30)
    expected = model.probabilities(raw)
    frame = pd.DataFrame(raw)
    table = pa.table(raw)
    arrays = {name: np.array(v) if np.ndim(v[0]) == 0 else v for name, v in raw.items()}
    for columns in (frame, {n: table[n] for n in table.column_names}, arrays):
        assert model.probabilities({**columns, "note": ["x"] * 30}).equal(expected)


def test_threads_share_one_model(tmp_path: Path) -> None:
    model = make_world().model(tmp_path)
    requests = [random_raw(20, seed) for seed in range(8)]
    expected = [model.predict_logits(raw) for raw in requests]
    got: dict[int, torch.Tensor] = {}

    def ask(index: int) -> None:
        for _ in range(20):
            got[index] = model.predict_logits(requests[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[index].equal(expected[index]) for index in range(8))


def test_loading_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_world().bundle(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, refuse)
    InferenceModel.load(path).predict_logits(RAW)


def test_serving_needs_no_training_code(tmp_path: Path) -> None:
    path = make_world().bundle(tmp_path)
    script = f"""
import sys
from pathlib import Path
from prismrec.serving.inference import InferenceModel
InferenceModel.load(Path({str(path)!r}))
taken = [m for m in sys.modules if m.split(".")[0] in ("torchrec", "mlflow", "ray")]
taken += [m for m in sys.modules if m.startswith(("prismrec.train", "prismrec.checkpoint"))]
sys.exit(f"imported {{taken}}" if taken else 0)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_manifest_says_what_the_copy_is(tmp_path: Path) -> None:
    path = make_world().bundle(tmp_path, "int8")
    manifest = read_manifest(path)
    assert manifest.table_type == "int8"
    assert manifest.tasks == ["click", "buy"]
    assert manifest.table_rows == {"user_id": 6, "goods": 8, "tags": 5}
    assert manifest.set_dims == {"wide": 8, "narrow": 4, "linear": 4}
    assert manifest.origin == {"step": 7}
    assert set(manifest.data_schema.columns) == set(RAW)  # no label, no carried column
    assert manifest.typed_recipe() == recipe()
    assert set(manifest.sha256) == {
        "head.safetensors",
        *(f"tables/000{index}.safetensors" for index in range(3)),
    }


def test_no_password_is_stored(tmp_path: Path) -> None:
    world = make_world(
        data={"path": "s3://key:hunter2@bucket/rows"},
        tracking={"uri": "http://me:hunter2@host:5000"},
    )
    path = world.bundle(tmp_path)
    assert "hunter2" not in (path / MANIFEST).read_text()
    assert read_manifest(path).typed_recipe().data.path == "s3://bucket/rows"


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    world = make_world()
    world.tables["tags", "wide"] = torch.zeros(4, 8)
    with pytest.raises(UserError, match=r"table 'tags/wide': \(4, 8\) weights .* make it \(5, 8\)"):
        world.bundle(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bundle-fp32").mkdir()
    with pytest.raises(UserError, match=r"bundle-fp32: already there; choose another place"):
        make_world().bundle(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = make_world().bundle(tmp_path)
    with pytest.raises(UserError, match=r"not an inference copy, it has no bundle.json"):
        InferenceModel.load(tmp_path)
    table = path / "tables" / "0001.safetensors"
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"tables/0001.safetensors: differs from its SHA-256"):
        InferenceModel.load(path)
    table.unlink()
    with pytest.raises(UserError, match=r"tables/0001.safetensors: is missing"):
        InferenceModel.load(path)


def test_another_format_and_another_head_are_refused(tmp_path: Path) -> None:
    path = make_world().bundle(tmp_path)
    weights = load_file(path / "head.safetensors")
    save_file({f"x{name}": tensor for name, tensor in weights.items()}, path / "head.safetensors")
    _edit(path, sha256={"head.safetensors": sha256(path / "head.safetensors")})
    with pytest.raises(UserError, match=r"does not fit the model that the recipe describes"):
        InferenceModel.load(path)
    _edit(path, format=2)
    with pytest.raises(UserError, match=r"bundle.json: format 2, but prismrec .* reads format 1"):
        InferenceModel.load(path)
    (path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"bundle.json: not readable as JSON"):
        InferenceModel.load(path)


def _edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **changes}))
