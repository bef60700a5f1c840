"""Interactions by their recipe kind, for the fields of one embedding set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prismrec.config import UserError
from prismrec.config.models.interactions import (
    AnyInteraction,
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
    Members,
)
from prismrec.models.inputs import Fields
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
    InteractionSpec,
    LayeredSpec,
)
from prismrec.models.interactions.layered import Aggregator, Function
from prismrec.models.layers import MLPSpec


def interaction_spec(section: AnyInteraction, fields: Fields, set_index: int) -> InteractionSpec:
    """The interaction that a section of a recipe asks for, on one embedding set.

    Args:
        section: which interaction, with its options.
        fields: shapes and names of the model's inputs.
        set_index: position of the set that it reads.

    Raises:
        UserError: the set has one field where pairs are multiplied, or a width that cannot be cut
            into the slots of an FFM or GwPFM.
    """
    if isinstance(section, _PAIRWISE):
        _need_pairs(section.kind, fields, set_index)
    return _SPECS[type(section)](section, fields, set_index)


_PAIRWISE = (FMKind, FFMKind, FwFMKind, FvFMKind, FmFMKind, GwPFMKind, IPNNKind)


def _ffm(section: FFMKind, fields: Fields, set_index: int) -> FFMSpec:
    count, _ = fields.set_shapes[set_index]
    _need_slots("ffm", count - 1, "one for each partner of a field", fields, set_index)
    return FFMSpec()


def _gwpfm(section: GwPFMKind, fields: Fields, set_index: int) -> GwPFMSpec:
    names = fields.names_of(set_index)
    rest = {name: -1 for name in names}
    alone = {name: -1 - position for position, name in enumerate(names)}
    parts = _numbers(section.parts, rest)
    groups = parts if section.groups is None else _numbers(section.groups, alone)
    _need_slots("gwpfm", max(parts) + 1, "one for each part", fields, set_index)
    return GwPFMSpec(parts, groups)


def _numbers(named: Members, unnamed: dict[str, int]) -> tuple[int, ...]:
    """What each field of a set belongs to, numbered from 0 in the order of the fields."""
    places = dict(unnamed)
    for number, members in enumerate(named.values()):
        places.update((name, number) for name in members if name in places)
    found = {place: number for number, place in enumerate(dict.fromkeys(places.values()))}
    return tuple(found[place] for place in places.values())


_LAYERED: dict[str, tuple[Function, Aggregator]] = {
    "wfl": ("weighted", "layer"),
    "dfl": ("diagonal", "layer"),
    "pfl": ("projected", "layer"),
    "pft": ("projected", "term"),
    "pfe": ("projected", "element"),
    "pfd": ("projected", "direct"),
}


def _layered(section: LayeredKind, fields: Fields, set_index: int) -> LayeredSpec:
    function, aggregator = _LAYERED[section.kind]
    return LayeredSpec(function, aggregator, section.num_layers, section.pairs, section.reduce)


_SPECS: dict[type, Callable[[Any, Fields, int], InteractionSpec]] = {
    FMKind: lambda section, fields, set_index: FMSpec(),
    FFMKind: _ffm,
    FwFMKind: lambda section, fields, set_index: FwFMSpec(section.rank),
    FvFMKind: lambda section, fields, set_index: FvFMSpec(),
    FmFMKind: lambda section, fields, set_index: FmFMSpec(),
    GwPFMKind: _gwpfm,
    IPNNKind: lambda section, fields, set_index: InnerProductsSpec(section.include_fields),
    CrossKind: lambda section, fields, set_index: CrossV1Spec(section.num_layers),
    CrossV2Kind: lambda section, fields, set_index: CrossV2Spec(section.num_layers, section.rank),
    CINKind: lambda section, fields, set_index: CINSpec(section.maps, section.activation),
    LayeredKind: _layered,
    FlatKind: lambda section, fields, set_index: FlatSpec(),
    DNNKind: lambda section, fields, set_index: DNNSpec(
        MLPSpec(section.hidden, section.dropout, section.norm)
    ),
}


def _need_pairs(kind: str, fields: Fields, set_index: int) -> None:
    if fields.set_shapes[set_index][0] < 2:
        raise UserError(
            f"model: '{kind}' multiplies pairs of fields, and embedding set {set_index} has a "
            "single one, so that its vectors would never move; let the set cover more features, or "
            "use 'dnn'"
        )


def _need_slots(kind: str, slots: int, which: str, fields: Fields, set_index: int) -> None:
    _, dim = fields.set_shapes[set_index]
    if dim % slots:
        raise UserError(
            f"model: '{kind}' cuts a field's vector into {slots} slots, {which}, and the width "
            f"{dim} of embedding set {set_index} is no multiple of that; use a width that {slots} "
            "and 4 divide"
        )
