"""Sections of interactions: a bare name or its options, and what they cannot be."""

import pytest
from pydantic import ValidationError

from prismrec.config.models.interactions import (
    CINKind,
    CrossV2Kind,
    FMKind,
    GwPFMKind,
    InteractionKind,
    LayeredKind,
    part_problems,
)
from prismrec.config.section import Section, kinds_in


class Holder(Section):
    kinds: dict[str, InteractionKind]


def kind_of(value):
    return Holder(kinds={"a": value}).kinds["a"]


@pytest.mark.parametrize(
    "name",
    "fm ffm fwfm fvfm fmfm ipnn cross crossv2 cin flat dnn wfl dfl pfl pft pfe pfd".split(),
)
def test_a_bare_name_is_that_kind_with_its_defaults(name):
    section = kind_of(name)
    assert section.kind == name
    assert section == kind_of({"kind": name})
    assert name in kinds_in(InteractionKind)


def test_options_of_kinds():
    assert kind_of({"kind": "crossv2", "num_layers": 2, "rank": 8}) == CrossV2Kind(
        num_layers=2, rank=8
    )
    assert kind_of({"kind": "cin", "maps": [8, 4]}) == CINKind(maps=(8, 4))
    assert kind_of({"kind": "pfe", "reduce": "sum"}) == LayeredKind(kind="pfe", reduce="sum")
    assert kind_of({"kind": "gwpfm", "parts": {"user": ["u", "age"]}}) == GwPFMKind(
        kind="gwpfm", parts={"user": ("u", "age")}
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gwpfm", "parts\n  Field required"),
        ("fmm", "does not match any of the expected tags"),
        ({"kind": "fm", "rank": 3}, "Extra inputs are not permitted"),
        ({"kind": "cin", "maps": []}, "at least 1 item"),
        ({"kind": "cin", "maps": [0]}, "greater than or equal to 1"),
        ({"kind": "pfl", "num_layers": 1}, "greater than or equal to 2"),
        ({"kind": "gwpfm", "parts": {"user": []}}, "'user' holds no feature; name at least one"),
        (
            {"kind": "gwpfm", "parts": {"user": ["u"], "item": ["i", "u"]}},
            "'u' is in 'user' and in 'item'; a feature belongs to one",
        ),
        (
            {"kind": "gwpfm", "parts": {}, "groups": {"a": ["u", "u"]}},
            "'u' is in 'a' and in 'a'; a feature belongs to one",
        ),
    ],
)
def test_what_a_kind_cannot_be(value, message):
    with pytest.raises(ValidationError, match=message):
        kind_of(value)


class Expert(Section):
    interaction: InteractionKind


class Experts(Section):
    experts: tuple[Expert, ...]
    shared: InteractionKind


def test_parts_that_name_no_feature_are_found_wherever_they_stand():
    wrong = GwPFMKind(kind="gwpfm", parts={"user": ("u", "agee")}, groups={"g": ("x",)})
    section = Experts(
        experts=(Expert(interaction=FMKind()), Expert(interaction=wrong)),
        shared=GwPFMKind(kind="gwpfm", parts={"user": ("u", "age")}),
    )
    assert list(part_problems(section, ["u", "age"])) == [
        "model.experts[1].interaction.parts.user: no feature is called 'agee'; did you mean 'age'?",
        "model.experts[1].interaction.groups.g: no feature is called 'x'; known: 'age', 'u'",
    ]
    assert list(part_problems(section, ["u", "age", "agee", "x"])) == []
