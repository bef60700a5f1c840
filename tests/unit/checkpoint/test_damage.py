"""Damaged checkpoints and checkpoints of another model are refused with one sentence."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prismrec.checkpoint import latest, read_manifest, read_table, restore, verify
from prismrec.config import UserError
from prismrec.embeddings.shards import LocalShard
from tests.unit.checkpoint.forms import (
    SHAPES,
    Form,
    dense,
    empty_like,
    fill,
    logical,
    save,
)

FORM = Form("packed", "row_wise", 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path, fill(empty_like(FORM), logical()))


def _restore(path: Path) -> list[LocalShard]:
    values = dense()
    shards = empty_like(Form("separate", "table_wise", 1))[0]
    restore(path, shards, values.model, values.optimizer, values.ema)
    return shards


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and give it the hash of its new content."""
    content = json.loads((path / "manifest.json").read_text())
    del content["sha256"]
    change(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content))


def test_an_edited_byte_is_found_before_anything_changes(path: Path) -> None:
    assert verify(path).step == 1
    file = path / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    for refuse in (_restore, verify, lambda p: read_table(p, "user", "wide")):
        with pytest.raises(UserError, match=r"rank-00001\.safetensors: its SHA-256 .* damaged"):
            refuse(path)
    shards = empty_like(Form("separate", "table_wise", 1))[0]
    values = dense(seed=5)
    with pytest.raises(UserError, match="SHA-256"):
        restore(path, shards, values.model, values.optimizer, values.ema)
    assert all(bool(shard.weight.isnan().all()) for shard in shards)
    assert torch.equal(values.model["tower.weight"], dense(seed=5).model["tower.weight"])


@pytest.mark.parametrize("row_wise_state", [False, True])
def test_only_the_files_that_are_needed_are_read(tmp_path: Path, row_wise_state: bool) -> None:
    """Rank 0 of the same form needs its own file only, also when another is damaged."""
    form = replace(FORM, row_wise_state=row_wise_state)
    whole = logical(row_wise_state=row_wise_state, coupled=True)
    path = save(tmp_path, fill(empty_like(form), whole))
    (path / "rank-00001.safetensors").write_bytes(b"gone")
    shards, values = empty_like(form)[1], dense()
    first = [shard for shard in empty_like(form)[0] if shard.row == 0]
    restore(path, first, values.model, values.optimizer, values.ema, SHAPES)
    assert torch.equal(first[0].states["sum"], whole["user/wide"]["sum"][:4])
    with pytest.raises(UserError, match=r"rank-00001\.safetensors: 4 bytes, \d+ were written"):
        restore(path, empty_like(form)[0] + shards, values.model, None, None, SHAPES)


def test_a_checkpoint_with_a_short_or_missing_file_is_passed_over(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = save(path.parent, fill(empty_like(FORM), logical()), step=2)
    newest = save(path.parent, fill(empty_like(FORM), logical()), step=3)
    assert latest(path.parent) == newest
    (newest / "rank-00000.safetensors").write_bytes(b"short")
    (newer / "rank-00001.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        assert latest(path.parent) == path
    assert "step-00000003 is passed over" in caplog.text
    assert "No such file" in caplog.text
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes()[:-20])
    assert latest(path.parent) is None


def test_a_directory_without_a_manifest_is_no_checkpoint(path: Path) -> None:
    (path / "manifest.json").unlink()
    assert latest(path.parent) is None
    with pytest.raises(UserError, match=r"is not a checkpoint: manifest\.json cannot be read"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.update(format="other"), "not the manifest of a checkpoint"),
        (lambda m: m.update(version=3), "format version 3, this program reads 1 and 2"),
        (lambda m: m.update(step="1"), "step: Input should be a valid integer"),
        (lambda m: m.update(more=1), "more: Extra inputs"),
        (lambda m: m.pop("dense"), "dense: Field required"),
        (lambda m: m.update(extra=[]), "extra: Input should be an object"),
        (lambda m: m["files"].pop("rank-00001.safetensors"), "rank-00001.safetensors is not list"),
        (lambda m: _weight(m)["blocks"].pop(), "user/wide/weight: blocks hold 32 of 88"),
        (lambda m: _weight(m)["blocks"][1].update(row=3), "row 3, column 0 overlaps"),
        (lambda m: _weight(m).update(dtype="F8"), "weight.dtype: String should match"),
        (lambda m: _weight(m).update(shape=[11, 9]), "weight has shape"),
        (lambda m: m["tables"]["user/wide"]["tensors"].pop("weight"), "a table has no weight"),
        (lambda m: m.update(version=1, tables=[]), "tables: Input should be an object"),
        (lambda m: _weight(m).update(per_row=1), "a row has None numbers, not 1"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    path: Path, change: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    _edit(path, change)
    with pytest.raises(UserError, match=complaint):
        read_manifest(path)


@pytest.mark.parametrize("name", ["../rank-00000.safetensors", "/etc/passwd", "a/b", "x.pkl", ".."])
def test_a_manifest_cannot_name_files_elsewhere(path: Path, name: str) -> None:
    def listed(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"]["rank-00000.safetensors"]

    shutil.copytree(path, path.with_name("copy"))
    _edit(path, listed)
    with pytest.raises(UserError, match="String should match pattern"):
        read_manifest(path)
    path = path.with_name("copy")
    _edit(path, lambda m: _weight(m)["blocks"][0].update(file=name))
    with pytest.raises(UserError, match=r"blocks\.0\.file: String should match pattern"):
        read_manifest(path)


def test_an_edited_manifest_is_refused(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"metric": null', '"metric": 0.99'))
    with pytest.raises(UserError, match=r"manifest\.json: its SHA-256 is wrong"):
        read_manifest(path)
    file.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_manifest(path)


def test_files_and_manifest_must_agree(path: Path) -> None:
    """A file with a right hash but other tensors than the manifest says."""
    file = path / "rank-00000.safetensors"
    key = "tables/user/wide/weight@0,0"

    def put(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, file)
        data = file.read_bytes()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _edit(path, lambda m: m["files"].update({file.name: entry}))

    put({key: torch.zeros(1, 8)})
    with pytest.raises(UserError, match=r"F32 \[1, 8\], the manifest says F32 \[4, 8\]"):
        read_table(path, "user", "wide")
    put({key: torch.zeros(4, 8, dtype=torch.int32)})
    with pytest.raises(UserError, match=r"I32 \[4, 8\], the manifest says F32"):
        read_table(path, "user", "wide")
    put({"other": torch.zeros(4, 8)})
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        read_table(path, "user", "wide")
    data = b"not a tensor file"
    file.write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _edit(path, lambda m: m["files"].update({file.name: entry}))
    with pytest.raises(UserError, match="not a safetensors file"):
        read_table(path, "user", "wide")


def test_a_checkpoint_of_another_model_lists_every_difference(path: Path) -> None:
    shards = empty_like(Form("packed", "table_wise", 1))[0]
    shards[0].states["momentum"] = torch.zeros(11, 8)
    del shards[1].states["sum"]
    shards[2].num_rows = 12
    shards[3].table = "ad"
    values = dense()
    values.model["tower.weight"] = torch.zeros(3, 6)
    values.model["mask"] = torch.zeros(3)
    values.model["head.weight"] = torch.zeros(1)
    del values.optimizer["tower.weight/step"]
    values.ema.clear()
    with pytest.raises(UserError, match="checkpoint of another model") as caught:
        restore(path, shards, values.model, values.optimizer, values.ema)
    for difference in [
        "table ad/narrow is not in the checkpoint",
        "table item/narrow is only in the checkpoint",
        "table item/wide is (12, 8) here and (7, 8) there",
        "optimizer state of user/wide momentum is not in the checkpoint",
        "optimizer state of user/narrow sum is only in the checkpoint",
        "parameter tower.weight is (3, 6) here and (3, 5) there",
        "parameter mask is torch.float32 here and torch.bool there",
        "parameter head.weight is not in the checkpoint",
        "optimizer state tower.weight/step is only in the checkpoint",
        "moving average tower.weight is only in the checkpoint",
    ]:
        assert difference in caught.value.message
    assert "\n" not in caught.value.message
    assert all(bool(shard.weight.isnan().all()) for shard in shards)


def test_a_recipe_with_other_sets_names_them(path: Path) -> None:
    more, fewer = dict(SHAPES), dict(SHAPES)
    for table, rows in (("user", 11), ("item", 7)):
        more[f"{table}/extra"] = (rows, 4)
        del fewer[f"{table}/narrow"]
    values = dense()
    with pytest.raises(UserError, match=r": set extra is not in the checkpoint; use the recipe"):
        restore(path, [], values.model, values.optimizer, values.ema, more)
    with pytest.raises(UserError, match=r": set narrow is only in the checkpoint; use the recipe"):
        restore(path, [], values.model, values.optimizer, values.ema, fewer)
    wider = SHAPES | {"user/wide": (11, 12)}
    with pytest.raises(UserError, match=r"table user/wide is \(11, 12\) here and \(11, 8\) there"):
        restore(path, [], values.model, values.optimizer, values.ema, wider)


def test_another_kind_of_state_is_a_difference(path: Path) -> None:
    shards, values = empty_like(Form("separate", "table_wise", 1, True))[0], dense()
    with pytest.raises(UserError, match=r"user/wide/sum is \(11\) here and \(11, 8\) there"):
        restore(path, shards, values.model, values.optimizer, values.ema)


def test_long_lists_of_differences_are_cut(path: Path) -> None:
    names = {f"layer{n}": torch.zeros(1) for n in range(30)}
    with pytest.raises(UserError, match="; and 15 more; use the recipe"):
        restore(path, empty_like(Form("packed", "table_wise", 1))[0], names, None, None)


def _weight(manifest: dict[str, Any]) -> Any:
    return manifest["tables"]["user/wide"]["tensors"]["weight"]
