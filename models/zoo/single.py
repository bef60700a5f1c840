"""Models whose sets all serve all tasks alike: an interaction of fields, and a DNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prismrec.config import UserError
from prismrec.config.models.single import DCN, DNN, FM, LR, DCNv2, DeepFM, Interaction, WideDeep
from prismrec.models.experts import ExpertSpec
from prismrec.models.inputs import Fields
from prismrec.models.interactions import (
    CrossV1Spec,
    CrossV2Spec,
    DNNSpec,
    ExternalSpec,
    FlatSpec,
    FMSpec,
    InteractionSpec,
)
from prismrec.models.layers import MLPSpec
from prismrec.models.mixture import BranchSpec, Composition, Merge

Builder = Callable[[Any, Fields], Composition]


def _lr(section: LR, fields: Fields) -> Composition:
    """`b + sum_i w_i x_i`."""
    return Composition((), wide=True)


def _fm(section: FM, fields: Fields) -> Composition:
    """`LR + sum bi(X)`; with several sets each `bi` passes a non-linear projection first.

    Without that non-linearity the sum over sets would be one wider FM.
    """
    for index, (count, _) in enumerate(fields.set_shapes):
        if count < 2:
            raise UserError(
                f"model.name: 'fm' multiplies pairs of fields, and embedding set {index} has a "
                "single one, so that its vectors would never move; let the set cover more "
                "features, or use 'wide_deep' or 'deepfm'"
            )
    projection = MLPSpec((section.projection,), norm="layer")
    return Composition((_fm_branch(section.merge, projection, fields),), wide=True)


def _dnn(section: DNN, fields: Fields) -> Composition:
    """`Linear(MLP(x))`."""
    return Composition((_deep_branch(section, FlatSpec(), fields),))


def _wide_deep(section: WideDeep, fields: Fields) -> Composition:
    """`LR + Linear(MLP(x))`."""
    return Composition((_deep_branch(section, FlatSpec(), fields),), wide=True)


def _deepfm(section: DeepFM, fields: Fields) -> Composition:
    """`LR + sum bi(X) + Linear(MLP(x))`; with several sets each path is merged by itself."""
    deep = _deep_branch(section, FlatSpec(), fields)
    projection = MLPSpec(section.hidden[:1], section.dropout, section.norm)
    return Composition((_fm_branch(section.merge, projection, fields), deep), wide=True)


def _dcn(section: DCN, fields: Fields) -> Composition:
    """`Linear([x_L; MLP(x)])` with a weight vector per cross layer."""
    cross = CrossV1Spec(section.num_cross_layers)
    return Composition((_parallel_branch(section, cross, fields),))


def _dcnv2(section: DCNv2, fields: Fields) -> Composition:
    """`Linear([x_L; MLP(x)])` or `Linear(MLP(x_L))` with a weight matrix per cross layer."""
    cross = CrossV2Spec(section.num_cross_layers, section.cross_rank)
    build = _deep_branch if section.structure == "stacked" else _parallel_branch
    return Composition((build(section, cross, fields),))


def _interaction(section: Interaction, fields: Fields) -> Composition:
    """`Linear(MLP(u))`, u from an interaction outside the package."""
    outside = ExternalSpec(section.interaction, tuple(sorted(section.options.items())))
    return Composition((_deep_branch(section, outside, fields),))


SINGLE: dict[str, Builder] = {
    "lr": _lr,
    "fm": _fm,
    "dnn": _dnn,
    "wide_deep": _wide_deep,
    "deepfm": _deepfm,
    "dcn": _dcn,
    "dcnv2": _dcnv2,
    "interaction": _interaction,
}
"""The composition of each model of this module, by its recipe name."""

_Deep = DNN | WideDeep | DeepFM | DCN | DCNv2 | Interaction


def _fm_branch(merge: Merge, projection: MLPSpec, fields: Fields) -> BranchSpec:
    num_sets = _count_sets(fields)
    if num_sets == 1:
        return BranchSpec((ExpertSpec(0, (FMSpec(),)),), tower=None)
    experts = tuple(ExpertSpec(m, (FMSpec(),), projection) for m in range(num_sets))
    return BranchSpec(experts, merge)


def _deep_branch(section: _Deep, interaction: InteractionSpec, fields: Fields) -> BranchSpec:
    """The first hidden layer belongs to each set, the rest is the tower they share."""
    num_sets = _count_sets(fields)
    _need_hidden(section, num_sets)
    first = MLPSpec(section.hidden[:1], section.dropout, section.norm)
    rest = MLPSpec(section.hidden[1:], section.dropout, section.norm)
    experts = tuple(ExpertSpec(m, (interaction,), first) for m in range(num_sets))
    return BranchSpec(experts, section.merge if num_sets > 1 else "concat", rest)


def _parallel_branch(section: _Deep, cross: InteractionSpec, fields: Fields) -> BranchSpec:
    """Cross network and MLP side by side; with several sets projected before they meet."""
    num_sets = _count_sets(fields)
    _need_hidden(section, num_sets)
    both = (cross, DNNSpec(MLPSpec(section.hidden, section.dropout, section.norm)))
    if num_sets == 1:
        return BranchSpec((ExpertSpec(0, both),))
    projected = MLPSpec(section.hidden[-1:], section.dropout, section.norm)
    experts = tuple(ExpertSpec(m, both, projected) for m in range(num_sets))
    return BranchSpec(experts, section.merge)


def _count_sets(fields: Fields) -> int:
    if not fields.set_dims:
        raise UserError(
            "model.name: only 'lr' works without an embedding set; "
            "set embedding.num_sets to 1 or more"
        )
    return len(fields.set_dims)


def _need_hidden(section: _Deep, num_sets: int) -> None:
    if num_sets > 1 and not section.hidden:
        raise UserError(
            f"model.hidden: {num_sets} embedding sets meet behind a non-linear layer, got no "
            "layer at all; give at least one width"
        )
