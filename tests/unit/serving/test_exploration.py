"""Scores that explore, beside an inference copy: the same layer, the same draws, any batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from prismrec.config import UserError
from prismrec.serving import exploration
from prismrec.serving.exploration import Explorer, last_layer, normals
from prismrec.serving.inference import InferenceModel
from tests.unit.serving.world import make_world, random_raw

MODELS: dict[str, dict[str, Any]] = {
    "shared tower": {"name": "dcnv2", "hidden": [8]},
    "a tower for each task": {"name": "ame", "hidden": [8], "tower": [4]},
}


def served(tmp_path: Path, **model: Any) -> InferenceModel:
    return InferenceModel.load(make_world(model=model).bundle(tmp_path))


def cut(raw: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: values[start:stop] for name, values in raw.items()}


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_the_layer_is_what_the_logits_are_made_of(model: dict[str, Any], tmp_path: Path) -> None:
    """One linear map of the layer, of a few weights, gives the logits of 200 rows."""
    inference, raw = served(tmp_path, **model), random_raw(200)
    for at, task in enumerate(inference.tasks):
        phi, logits = last_layer(inference, raw, task)
        assert phi.shape[1] < 20
        rows = torch.cat([phi, torch.ones(len(phi), 1)], 1).double()
        weights = torch.linalg.lstsq(rows, logits[:, None].double(), driver="gelsd").solution
        made = (rows @ weights).squeeze(1)
        assert made.numpy() == pytest.approx(logits.double().numpy(), abs=1e-4)
        assert torch.equal(logits, inference.predict_logits(raw)[:, at])


def test_scores_and_what_they_are_not(tmp_path: Path) -> None:
    inference, raw = served(tmp_path, name="dcnv2", hidden=[8]), random_raw(300)
    explorer = Explorer.of(inference, inference.tasks[0], 1.0)
    before = explorer.score(inference, raw, "greedy", np.arange(300))
    explorer.update(inference, cut(raw, 0, 100))
    explorer.update(inference, cut(raw, 100, 300))
    assert explorer.rows == 300
    logits = inference.predict_logits(raw)[:, 0].double()
    greedy = explorer.score(inference, raw, "greedy", np.arange(300))
    assert torch.equal(greedy.score, torch.sigmoid(logits))
    assert (greedy.deviation < before.deviation).all()
    bound = explorer.score(inference, raw, "ucb", np.arange(300), (2.0, 0))
    assert torch.allclose(bound.score, torch.sigmoid(logits + 2 * greedy.deviation))
    flat = explorer.score(inference, raw, "ucb", np.arange(300), (0.0, 0))
    assert torch.equal(flat.score, greedy.score)
    assert torch.equal(bound.probability, greedy.probability)


def test_a_request_has_one_draw_in_whatever_batches_it_comes(tmp_path: Path) -> None:
    inference, raw = served(tmp_path, name="dcnv2", hidden=[8]), random_raw(60)
    explorer = Explorer.of(inference, inference.tasks[0], 0.5)
    explorer.update(inference, raw)
    request = np.arange(60) // 6 - 3
    whole = explorer.score(inference, raw, "thompson", request, (1.0, 7)).score
    parts = [
        explorer.score(inference, cut(raw, a, a + 20), "thompson", request[a : a + 20], (1.0, 7))
        for a in (0, 20, 40)
    ]
    assert torch.allclose(torch.cat([each.score for each in parts]), whole, atol=1e-6)
    other = explorer.score(inference, raw, "thompson", request, (1.0, 8)).score
    assert not torch.allclose(other, whole, atol=1e-3)
    one = {name: values[:1] * 2000 for name, values in raw.items()}
    drawn = explorer.score(inference, one, "thompson", np.arange(2000))
    assert torch.logit(drawn.score).std().item() == pytest.approx(
        drawn.deviation[0].item(), rel=0.06
    )


def test_the_same_explorer_comes_back_and_belongs_to_its_model(tmp_path: Path) -> None:
    inference, raw = served(tmp_path / "one", name="dcnv2", hidden=[8]), random_raw(50)
    explorer = Explorer.of(inference, inference.tasks[1], 2.0)
    explorer.update(inference, raw)
    explorer.save(tmp_path / "explorer")
    again = Explorer.load(tmp_path / "explorer")
    for rule in ("greedy", "ucb", "thompson"):
        a, b = (each.score(inference, raw, rule, np.arange(50)) for each in (explorer, again))
        assert torch.equal(a.score, b.score)
    assert (again.task, again.rows, again.head.prior) == (inference.tasks[1], 50, 2.0)
    other = served(tmp_path / "two", name="dcnv2", hidden=[4])
    with pytest.raises(UserError, match="fitted to another model than the one given"):
        again.score(other, raw, "greedy", np.arange(50))
    with pytest.raises(UserError, match="already there; choose another directory"):
        explorer.save(tmp_path / "explorer")
    with pytest.raises(UserError, match="no explorer .*`prismrec explore fit` makes one"):
        Explorer.load(tmp_path / "two")


def test_a_damaged_explorer_is_none(tmp_path: Path) -> None:
    inference = served(tmp_path / "one", name="dcnv2", hidden=[8])
    out = tmp_path / "explorer"
    Explorer.of(inference, inference.tasks[0], 1.0).save(out)
    facts, numbers = (out / "exploration.json", out / "exploration.safetensors")
    whole = facts.read_bytes(), numbers.read_bytes()
    for file, content in (
        (numbers, whole[1][:40]),
        (numbers, save({"precision": torch.ones(4, 3)})),
        (facts, whole[0][:20]),
        (facts, b'{"task": "click"}'),
        (facts, b"[]"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match="no explorer .*`prismrec explore fit` makes one"):
            Explorer.load(out)
        facts.write_bytes(whole[0])
        numbers.write_bytes(whole[1])
    assert Explorer.load(out).rows == 0


def test_what_cannot_be_saved_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inference = served(tmp_path / "one", name="dcnv2", hidden=[8])
    explorer = Explorer.of(inference, inference.tasks[0], 1.0)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(exploration, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        explorer.save(tmp_path / "explorer")
    assert {each.name for each in tmp_path.iterdir()} == {"one"}


def test_what_has_no_layer_or_no_task(tmp_path: Path) -> None:
    inference = served(tmp_path / "deep", name="dcnv2", hidden=[8])
    with pytest.raises(UserError, match=r"--task: no task 'clck'; .*click"):
        Explorer.of(inference, "clck", 1.0)
    with pytest.raises(UserError, match=r"--prior: above 0, got 0"):
        Explorer.of(inference, inference.tasks[0], 0)
    world = make_world(model={"name": "lr"}, embedding={})
    flat = InferenceModel.load(world.bundle(tmp_path / "flat"))
    with pytest.raises(UserError, match="'lr' has no hidden layer before its logits"):
        Explorer.of(flat, flat.tasks[0], 1.0)


def test_normals_are_normal_and_depend_on_nothing_else() -> None:
    keys = np.arange(-5000, 5000)
    found = normals(keys, 3, 1)
    assert found.mean(0) == pytest.approx([0, 0, 0], abs=0.05)
    assert found.std(0) == pytest.approx([1, 1, 1], abs=0.03)
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.05
    assert np.array_equal(normals(keys[17:19], 3, 1), found[17:19])
    assert not np.array_equal(normals(keys[:1], 3, 2), found[:1])
    assert not np.array_equal(normals(keys, 3, -1), found)
