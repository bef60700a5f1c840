"""Models whose sets all serve all tasks alike: an interaction of fields, and a DNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from prismrec.config import UserError
from prismrec.config.models.base import Deep
from prismrec.config.models.interactions import (
    AnyInteraction,
    CINKind,
    CrossKind,
    CrossV2Kind,
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
from prismrec.config.models.single import (
    DCN,
    DNN,
    IPNN,
    LR,
    DCNv2,
    DeepFM,
    Interaction,
    Layered,
    Pairwise,
    WideDeep,
    XDeepFM,
)
from prismrec.models.experts import ExpertSpec
from prismrec.models.extraction import LayerSpec
from prismrec.models.inputs import Fields
from prismrec.models.interactions import DNNSpec, ExternalSpec, FMSpec, InteractionSpec
from prismrec.models.layers import IDENTITY, MLPSpec
from prismrec.models.mixture import BranchSpec, Composition, MixtureSpec
from prismrec.models.zoo.interactions import interaction_spec

Builder = Callable[[Any, Fields], Composition]
Merge = Literal["mean", "gate"]
Merged = BranchSpec | MixtureSpec


def _lr(section: LR, fields: Fields) -> Composition:
    """`b + sum_i w_i x_i`."""
    return Composition((), wide=True)


def _pairwise(section: Pairwise, fields: Fields) -> Composition:
    """`LR + sum u(X)`, u the products of all pairs by one of the FM's kind.

    With several sets each u passes a non-linear projection first: without it the sum over sets
    would be one wider model.
    """
    products = _per_set(_PAIRS[section.name](section), fields)
    projection = MLPSpec((section.projection,), norm="layer")
    return Composition((_sum_branch(products, section.merge, projection),), wide=True)


_PAIRS: dict[str, Callable[[Any], AnyInteraction]] = {
    "fm": lambda section: FMKind(),
    "ffm": lambda section: FFMKind(),
    "fwfm": lambda section: FwFMKind(rank=section.rank),
    "fvfm": lambda section: FvFMKind(),
    "fmfm": lambda section: FmFMKind(),
    "gwpfm": lambda section: GwPFMKind(kind="gwpfm", parts=section.parts, groups=section.groups),
}


def _dnn(section: DNN, fields: Fields) -> Composition:
    """`Linear(MLP(x))`."""
    return Composition((_deep_branch(section, _per_set(FlatKind(), fields)),))


def _wide_deep(section: WideDeep, fields: Fields) -> Composition:
    """`LR + Linear(MLP(x))`."""
    return Composition((_deep_branch(section, _per_set(FlatKind(), fields)),), wide=True)


def _deepfm(section: DeepFM, fields: Fields) -> Composition:
    """`LR + sum bi(X) + Linear(MLP(x))`; with several sets each path is merged by itself."""
    deep = _deep_branch(section, _per_set(FlatKind(), fields))
    # A set of one field has no pairs, but the DNN moves its vectors.
    products = [FMSpec()] * _count_sets(fields)
    return Composition((_sum_branch(products, section.merge, _first(section)), deep), wide=True)


def _ipnn(section: IPNN, fields: Fields) -> Composition:
    """`Linear(MLP([x; <e_i, e_j>]))`."""
    products = IPNNKind(include_fields=section.include_fields)
    return Composition((_deep_branch(section, _per_set(products, fields)),))


def _xdeepfm(section: XDeepFM, fields: Fields) -> Composition:
    """`LR + Linear(CIN(X)) + Linear(MLP(x))`; with several sets each path is merged by itself.

    Maps behind a ReLU meet as they are; those without one pass a non-linear projection first.
    """
    maps = _per_set(CINKind(maps=section.maps, activation=section.activation), fields)
    deep = _deep_branch(section, _per_set(FlatKind(), fields))
    has_own = len(maps) == 1 or section.activation == "relu"
    cin = _branch(maps, IDENTITY if has_own else _first(section), section.merge, IDENTITY)
    return Composition((cin, deep), wide=True)


def _dcn(section: DCN, fields: Fields) -> Composition:
    """`Linear([x_L; MLP(x)])` with a weight vector per cross layer."""
    cross = _per_set(CrossKind(num_layers=section.num_cross_layers), fields)
    return Composition((_parallel_branch(section, cross),))


def _dcnv2(section: DCNv2, fields: Fields) -> Composition:
    """`Linear([x_L; MLP(x)])` or `Linear(MLP(x_L))` with a weight matrix per cross layer."""
    cross = CrossV2Kind(num_layers=section.num_cross_layers, rank=section.cross_rank)
    build = _deep_branch if section.structure == "stacked" else _parallel_branch
    return Composition((build(section, _per_set(cross, fields)),))


def _layered(section: Layered, fields: Fields) -> Composition:
    """`LR + Linear([Z; MLP(x)])`, `LR + Linear(MLP(Z))` or `LR + sum Z`, Z from PFL's family."""
    layers = LayeredKind(
        kind=section.name,
        num_layers=section.num_layers,
        pairs=section.pairs,
        reduce="sum" if section.structure == "sum" else "field",
    )
    layered = _per_set(layers, fields)
    if section.structure == "sum":
        _need_hidden(section, len(layered))
        return Composition((_sum_branch(layered, section.merge, _first(section)),), wide=True)
    build = _deep_branch if section.structure == "stacked" else _parallel_branch
    return Composition((build(section, layered),), wide=True)


def _interaction(section: Interaction, fields: Fields) -> Composition:
    """`Linear(MLP(u))`, u from an interaction outside the package."""
    outside = ExternalSpec(section.interaction, tuple(sorted(section.options.items())))
    return Composition((_deep_branch(section, [outside] * _count_sets(fields)),))


SINGLE: dict[str, Builder] = {
    "lr": _lr,
    "fm": _pairwise,
    "ffm": _pairwise,
    "fwfm": _pairwise,
    "fvfm": _pairwise,
    "fmfm": _pairwise,
    "gwpfm": _pairwise,
    "dnn": _dnn,
    "wide_deep": _wide_deep,
    "deepfm": _deepfm,
    "ipnn": _ipnn,
    "xdeepfm": _xdeepfm,
    "dcn": _dcn,
    "dcnv2": _dcnv2,
    "wfl": _layered,
    "dfl": _layered,
    "pfl": _layered,
    "pft": _layered,
    "pfe": _layered,
    "pfd": _layered,
    "interaction": _interaction,
}
"""The composition of each model of this module, by its recipe name."""


def _per_set(section: AnyInteraction, fields: Fields) -> list[InteractionSpec]:
    """An interaction of one kind on every set."""
    return [interaction_spec(section, fields, m) for m in range(_count_sets(fields))]


def _sum_branch(products: Sequence[InteractionSpec], merge: Merge, projection: MLPSpec) -> Merged:
    """The sum of the one set's products; those of several sets projected before they meet."""
    if len(products) == 1:
        return _branch(products, IDENTITY, merge, None)
    return _branch(products, projection, merge, IDENTITY)


def _deep_branch(section: Deep, interactions: Sequence[InteractionSpec]) -> Merged:
    """The first hidden layer belongs to each set, the rest is the tower they share."""
    _need_hidden(section, len(interactions))
    rest = MLPSpec(section.hidden[1:], section.dropout, section.norm)
    return _branch(interactions, _first(section), section.merge, rest)


def _parallel_branch(section: Deep, interactions: Sequence[InteractionSpec]) -> Merged:
    """An interaction and an MLP side by side; with several sets projected before they meet."""
    num_sets = len(interactions)
    _need_hidden(section, num_sets)
    deep = DNNSpec(MLPSpec(section.hidden, section.dropout, section.norm))
    last = MLPSpec(section.hidden[-1:], section.dropout, section.norm)
    experts = tuple(
        ExpertSpec(m, (interaction, deep), last if num_sets > 1 else IDENTITY)
        for m, interaction in enumerate(interactions)
    )
    return _merged(experts, section.merge, IDENTITY)


def _branch(
    interactions: Sequence[InteractionSpec],
    projection: MLPSpec,
    merge: Merge,
    tower: MLPSpec | None,
) -> Merged:
    """An expert for each set; a single one has nothing to be merged with."""
    experts = tuple(ExpertSpec(m, (each,), projection) for m, each in enumerate(interactions))
    if tower is None:
        return BranchSpec(experts, tower=None)
    return _merged(experts, merge, tower)


def _merged(experts: tuple[ExpertSpec, ...], merge: Merge, tower: MLPSpec) -> Merged:
    """The experts of all sets, met by their mean or by a gate per task."""
    if len(experts) == 1:
        return BranchSpec(experts, tower=tower)
    if merge == "gate":
        return MixtureSpec((LayerSpec(experts),), tower)
    return BranchSpec(experts, merge, tower)


def _first(section: Deep) -> MLPSpec:
    return MLPSpec(section.hidden[:1], section.dropout, section.norm)


def _count_sets(fields: Fields) -> int:
    if not fields.set_dims:
        raise UserError(
            "model.name: only 'lr' works without an embedding set; "
            "set embedding.num_sets to 1 or more"
        )
    return len(fields.set_dims)


def _need_hidden(section: Deep, num_sets: int) -> None:
    if num_sets > 1 and not section.hidden:
        raise UserError(
            f"model.hidden: {num_sets} embedding sets meet behind a non-linear layer, got no "
            "layer at all; give at least one width"
        )
