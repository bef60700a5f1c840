"""From the sections of interactions to the interactions of one set."""

from __future__ import annotations

import dataclasses

import pytest

from prismrec.config import UserError
from prismrec.config.models.interactions import (
    CINKind,
    CrossKind,
    CrossV2Kind,
    DNNKind,
    FFMKind,
    FlatKind,
    FmFMKind,
    FMKind,
    FvFMKind,
    FwFMKind,
    GwPFMKind,
    IPNNKind,
    LayeredKind,
)
from prismrec.models import Fields
from prismrec.models.interactions import (
    CINSpec,
    CrossV1Spec,
    CrossV2Spec,
    DNNSpec,
    FFMSpec,
    FlatSpec,
    FmFMSpec,
    FMSpec,
    FvFMSpec,
    FwFMSpec,
    GwPFMSpec,
    InnerProductsSpec,
    LayeredSpec,
)
from prismrec.models.layers import MLPSpec
from prismrec.models.zoo.interactions import interaction_spec

NAMED = Fields(
    num_sparse=4,
    num_dense=1,
    set_dims=(8, 12),
    num_tasks=1,
    set_fields=(4, 2),
    set_names=(("user", "age", "video", "author", "hour"), ("user", "video", "hour")),
)


@pytest.mark.parametrize(
    ("section", "spec"),
    [
        (FMKind(), FMSpec()),
        (FFMKind(), FFMSpec()),
        (FwFMKind(), FwFMSpec()),
        (FwFMKind(rank=2), FwFMSpec(2)),
        (FvFMKind(), FvFMSpec()),
        (FmFMKind(), FmFMSpec()),
        (IPNNKind(), InnerProductsSpec(with_fields=True)),
        (IPNNKind(include_fields=False), InnerProductsSpec()),
        (CrossKind(num_layers=2), CrossV1Spec(2)),
        (CrossV2Kind(num_layers=2, rank=3), CrossV2Spec(2, 3)),
        (CINKind(maps=(5, 4), activation="relu"), CINSpec((5, 4), "relu")),
        (LayeredKind(kind="wfl"), LayeredSpec("weighted", "layer", 4)),
        (LayeredKind(kind="dfl", pairs="upper"), LayeredSpec("diagonal", "layer", 4, "upper")),
        (LayeredKind(kind="pfl", num_layers=3), LayeredSpec("projected", "layer", 3)),
        (LayeredKind(kind="pft"), LayeredSpec("projected", "term", 4)),
        (LayeredKind(kind="pfe"), LayeredSpec("projected", "element", 4)),
        (
            LayeredKind(kind="pfd", reduce="sum"),
            LayeredSpec("projected", "direct", 4, "all", "sum"),
        ),
        (FlatKind(), FlatSpec()),
        (DNNKind(hidden=(7,), dropout=0.5, norm="batch"), DNNSpec(MLPSpec((7,), 0.5, "batch"))),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_each_kind_is_its_interaction(section, spec):
    assert interaction_spec(section, NAMED, 0) == spec
    assert spec.build(5, 8, None).out_dim > 0


def gwpfm(parts, groups=None):
    section = GwPFMKind(kind="gwpfm", parts=parts, groups=groups)
    return interaction_spec(section, NAMED, 0), interaction_spec(section, NAMED, 1)


def test_parts_and_groups_of_named_fields():
    parts = {"viewer": ("age", "user"), "shown": ("author", "video", "hour")}
    assert gwpfm(parts) == (
        GwPFMSpec((0, 0, 1, 1, 1), (0, 0, 1, 1, 1)),
        GwPFMSpec((0, 1, 1), (0, 1, 1)),
    )
    assert gwpfm(parts, {}) == (
        GwPFMSpec((0, 0, 1, 1, 1), (0, 1, 2, 3, 4)),
        GwPFMSpec((0, 1, 1), (0, 1, 2)),
    )
    assert gwpfm(parts, {"ids": ("user", "video", "author")})[0].groups == (0, 1, 0, 0, 2)


def test_features_of_no_part_are_one_part_together_and_absent_parts_have_no_slot():
    first, second = gwpfm({"shown": ("video", "author"), "profile": ("age",), "x": ("hour",)}, {})
    assert first.parts == (0, 1, 2, 2, 3)
    assert second.parts == (0, 1, 2)
    assert gwpfm({})[0] == GwPFMSpec((0,) * 5, (0,) * 5)


def test_slots_must_divide_the_width():
    with pytest.raises(UserError, match=r"'gwpfm' .* 3 slots, one for each part, and the width 8"):
        gwpfm({"a": ("user",), "b": ("age",)})
    wide = dataclasses.replace(NAMED, set_dims=(6, 12))
    with pytest.raises(UserError, match=r"'ffm' .* 4 slots, one for each partner .* width 6"):
        interaction_spec(FFMKind(), wide, 0)
    assert interaction_spec(FFMKind(), wide, 1) == FFMSpec()


@pytest.mark.parametrize("section", [FMKind(), FFMKind(), FwFMKind(), IPNNKind()])
def test_pairs_need_two_fields(section):
    alone = Fields(1, 0, (8,), 1, (1,))
    with pytest.raises(UserError, match="multiplies pairs .* set 0 has a single one"):
        interaction_spec(section, alone, 0)


def test_fields_without_names_cannot_be_put_into_parts():
    section = GwPFMKind(kind="gwpfm", parts={})
    with pytest.raises(ValueError, match="set 0 has 4 field vectors and 0 names"):
        interaction_spec(section, Fields(4, 0, (8,), 1, (4,)), 0)
