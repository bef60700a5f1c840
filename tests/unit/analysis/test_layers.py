"""What layers give is what the model's formula says, and reading changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prismrec.analysis.layers import layer_points, layer_rows
from prismrec.analysis.subject import Subject
from tests.unit.analysis.histories import TWO_ALIKE, drawn_model
from tests.unit.analysis.subjects import make_subject

THREE = [{"name": "one", "dim": 4}, {"name": "wide", "dim": 8}, {"name": "two", "dim": 4}]
AME: dict[str, Any] = {
    "model": {
        "name": "ame",
        "interaction": {"kind": "crossv2", "num_layers": 1},
        "hidden": [6, 5],
        "tower": [3],
    },
    "embedding": {"sets": THREE},
}


def _all(subject: Subject) -> dict[str, Tensor]:
    names = [each.name for each in layer_points(subject)]
    batches = list(layer_rows(subject, names))
    return {name: torch.cat([batch.vectors[name] for batch in batches]) for name in names}


def _logits(subject: Subject) -> Tensor:
    with torch.no_grad():
        return torch.cat([subject.model(each.inputs)[0] for each in subject.samples()])


def test_a_mixture_is_read_from_its_fields_to_its_logits(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, **AME)
    before = _logits(subject)
    points = layer_points(subject)
    assert [(each.name, each.part, each.task, each.width) for each in points] == [
        ("one: fields", "fields", None, 24),
        ("two: fields", "fields", None, 24),
        ("wide: fields", "fields", None, 48),
        ("expert 0 (one): CrossV2", "interaction", None, 24),
        ("expert 2 (two): CrossV2", "interaction", None, 24),
        ("expert 0 (one): layer 1", "hidden", None, 6),
        ("expert 2 (two): layer 1", "hidden", None, 6),
        ("expert 0 (one): layer 2", "hidden", None, 5),
        ("expert 2 (two): layer 2", "hidden", None, 5),
        ("expert 1 (wide): CrossV2", "interaction", None, 48),
        ("expert 1 (wide): layer 1", "hidden", None, 6),
        ("expert 1 (wide): layer 2", "hidden", None, 5),
        ("mix of click", "mix", "click", 5),
        ("mix of buy", "mix", "buy", 5),
        ("tower of click: layer 1", "tower", "click", 3),
        ("tower of buy: layer 1", "tower", "buy", 3),
        ("logit of click", "logit", "click", 1),
        ("logit of buy", "logit", "buy", 1),
    ]
    found = _all(subject)
    head: Any = subject.model
    layer, tower = head.branches[0].extraction.layers[0], head.branches[0].tower
    group = layer.experts.groups[0]
    x = found["two: fields"]
    crossed = group.interactions[0].layers[0]
    out = x * (x @ crossed.weight[1].t() + crossed.bias[1]) + x
    torch.testing.assert_close(found["expert 2 (two): CrossV2"], out)
    linear, norm = group.projection.linears[0], group.projection.norms[0]
    h = nn.functional.layer_norm(out @ linear.weight[1].t() + linear.bias[1], (6,))
    h = torch.relu(h * norm.weight[1] + norm.bias[1])
    torch.testing.assert_close(found["expert 2 (two): layer 1"], h)
    last = found["tower of buy: layer 1"] @ tower.head.weight[1].t() + head.first_order.bias[1]
    torch.testing.assert_close(found["logit of buy"], last)
    torch.testing.assert_close(found["logit of buy"].squeeze(1), before[:, 1])
    assert torch.equal(_logits(subject), before)
    assert not any(module._forward_hooks for module in head.modules())


def test_fields_are_those_that_the_model_reads(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, model={"name": "dcnv2", "hidden": [4]})
    fields = _all(subject)["narrow: fields"].unflatten(1, (6, 4))
    expected = torch.cat([each.inputs.sets[1] for each in subject.samples()])
    assert torch.equal(fields[:, :4], expected)


def test_layers_of_a_dnn_beside_an_interaction_are_read(tmp_path: Path) -> None:
    subject = make_subject(
        tmp_path,
        model={"name": "dcnv2", "hidden": [6, 5], "num_cross_layers": 1},
        embedding={"sets": [{"name": "only", "dim": 4}]},
    )
    points = layer_points(subject)
    assert [(each.name, each.part) for each in points[:4]] == [
        ("only: fields", "fields"),
        ("expert 0 (only): CrossV2", "interaction"),
        ("expert 0 (only): DNN layer 1", "hidden"),
        ("expert 0 (only): DNN layer 2", "hidden"),
    ]
    found = _all(subject)
    head: Any = subject.model
    mlp = head.branches[0].experts.groups[0].interactions[1].mlp
    with torch.no_grad():
        expected = mlp(found["only: fields"])
    torch.testing.assert_close(found["expert 0 (only): DNN layer 2"], expected)


def test_layers_of_levels_have_names_of_their_own(tmp_path: Path) -> None:
    subject = make_subject(
        tmp_path,
        model={
            "name": "ple",
            "num_layers": 2,
            "shared_experts": 1,
            "specific_experts": 1,
            "hidden": [4],
            "tower": [3],
        },
        embedding={"sets": [{"name": "only", "dim": 4}]},
    )
    names = [each.name for each in layer_points(subject)]
    assert len(names) == len(set(names))
    for expected in (
        "only: fields",
        "level 1, expert 2 (only): layer 1",
        "level 1, mix, shared",
        "level 2, mix of buy",
        "tower of buy: layer 1",
    ):
        assert expected in names
    assert not any("Flat" in name for name in names)


def test_the_level_of_a_task_has_a_mix_and_a_tower_of_its_own(tmp_path: Path) -> None:
    subject = make_subject(
        tmp_path,
        model={"name": "mmoe", "num_experts": 2, "hidden": [4], "tower": [3]},
        embedding={"sets": [{"name": "only", "dim": 4}]},
        tasks=[
            {"name": "click", "label": "clicked", "loss": {"name": "jrc"}},
            {"name": "buy", "label": "bought"},
        ],
    )
    assert [(each.name, each.task) for each in layer_points(subject)[3:]] == [
        ("mix of click", "click"),
        ("mix of buy", "buy"),
        ("mix of level of click", None),
        ("tower of click: layer 1", "click"),
        ("tower of buy: layer 1", "buy"),
        ("tower of level of click: layer 1", None),
        ("logit of click", "click"),
        ("logit of buy", "buy"),
    ]
    with torch.no_grad():
        columns = torch.cat([subject.model(each.inputs)[0] for each in subject.samples()])
    found = _all(subject)["logit of click"].squeeze(1)
    torch.testing.assert_close(found, columns[:, 0] - columns[:, 2])


def test_what_sequence_modules_make_is_read(tmp_path: Path) -> None:
    subject = drawn_model(tmp_path, TWO_ALIKE).subject
    points = {each.name: each for each in layer_points(subject)}
    assert [points[name].part for name in ("a: fields", "b: sequences")] == ["fields", "sequence"]
    found = _all(subject)
    head: Any = subject.model
    parts = []
    with torch.no_grad():
        for sample in subject.samples():
            parts.append(head.sequences(sample.inputs.sequences)[1])
    torch.testing.assert_close(found["b: sequences"], torch.cat(parts))


def test_networks_of_one_piece_are_read_by_the_names_of_their_modules(tmp_path: Path) -> None:
    subject = make_subject(
        tmp_path,
        model={"name": "aitm", "hidden": [6, 5], "tower": [3], "norm": "none"},
        embedding={"sets": [{"name": "only", "dim": 4}]},
    )
    points = {each.name: each for each in layer_points(subject)}
    assert points["bottoms of buy: layer 2"].width == 5
    assert points["towers of click: layer 1"].part == "tower"
    found = _all(subject)
    head: Any = subject.model
    bottom = head.bottoms.linears[0]
    h = found["fields"] @ bottom.weight[1].t() + bottom.bias[1]
    torch.testing.assert_close(found["bottoms of buy: layer 1"], torch.relu(h))


class _Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.right(torch.relu(self.left(inputs.sets[0][:, 0]))), {}


def test_a_model_from_outside_shows_its_parts(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, embedding={"sets": [{"name": "only", "dim": 4}]})
    torch.manual_seed(0)
    outside = _Outside().eval()
    given = Subject(
        "outside",
        subject.recipe,
        subject.spec,
        outside,
        subject.vectors,
        subject.samples,
        subject.num_rows,
    )
    names = [each.name for each in layer_points(given)]
    assert names == ["left", "right", "logit of click", "logit of buy"]
    found = _all(given)
    torch.testing.assert_close(found["right"], outside.right(torch.relu(found["left"])).detach())
    torch.testing.assert_close(found["right"][:, 1:], found["logit of buy"])


def test_a_point_that_is_not_there(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, **AME)
    with pytest.raises(ValueError, match=r"there is no \['mix of nobody'\] in ctr"):
        next(layer_rows(subject, ["logit of buy", "mix of nobody"]))
