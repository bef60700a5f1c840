"""From a recipe's sequence module to what a composition's experts read besides their fields."""

from __future__ import annotations

from dataclasses import replace

from prismrec.config import UserError
from prismrec.config.models.sequence import AnySequence, DAREKind, DINKind, TIMKind
from prismrec.config.section import Section
from prismrec.models.experts import ExpertSpec
from prismrec.models.inputs import Fields
from prismrec.models.layers import MLPSpec
from prismrec.models.mixture import BranchSpec, Composition, MixtureSpec
from prismrec.models.sequence import (
    DARESpec,
    DINSpec,
    EmptyTokenSpec,
    SequenceSpec,
    TemporalSpec,
    TIMSpec,
)


def sequence_spec(section: AnySequence) -> SequenceSpec:
    """The module that a section asks for."""
    spec = _reader_spec(section)
    return EmptyTokenSpec(spec) if section.empty_token else spec


def _reader_spec(section: AnySequence) -> SequenceSpec:
    if isinstance(section, DINKind):
        return DINSpec(section.hidden, section.activation, section.pooling)
    temporal = TemporalSpec(section.encoding, section.combine, section.time_dim)
    if isinstance(section, TIMKind):
        return TIMSpec(temporal, section.attention, section.representation, section.readout)
    return DARESpec(temporal, section.keep)


def with_sequences(composition: Composition, section: Section, fields: Fields) -> Composition:
    """The same model, whose experts also read what the sequence module makes of their set.

    Every expert with layers behind its interactions does. Where an expert has none, its last hidden
    layer is put there: the vector would reach the logit as it is.

    Args:
        composition: the model without sequences.
        section: the recipe's section of the model.
        fields: shapes of its inputs.

    Raises:
        UserError: no expert could read a sequence.
    """
    module: AnySequence | None = getattr(section, "sequence", None)
    if module is None:
        return composition
    readers = {
        index
        for index in range(len(fields.set_dims))
        if any(each.widths[index] for each in fields.sequences)
    }
    if isinstance(module, DAREKind) and module.representation is not None:
        readers &= {fields.sets.index(module.representation)}
    branches = [_branch(each, section, readers) for each in composition.branches]
    if not any(_reads(each) for each in branches):
        raise no_reader(section)
    return replace(composition, branches=tuple(branches), sequence=sequence_spec(module))


def no_reader(section: Section) -> UserError:
    """What is told where nothing in a model could read a sequence."""
    return UserError(
        f"model.sequence: '{getattr(section, 'name', '')}' has no expert with layers that could read a "
        "sequence; use a model with a DNN, such as 'deepfm'"
    )


def _branch(
    branch: BranchSpec | MixtureSpec, section: Section, readers: set[int]
) -> BranchSpec | MixtureSpec:
    if isinstance(branch, MixtureSpec):
        first = branch.layers[0]
        experts = tuple(_reader(each, each.projection, readers) for each in first.experts)
        return replace(branch, layers=(replace(first, experts=experts), *branch.layers[1:]))
    if branch.tower is None:  # the logit is a sum of products
        return branch
    last = MLPSpec(
        getattr(section, "hidden", ())[-1:],
        getattr(section, "dropout", 0.0),
        getattr(section, "norm", "none"),
    )
    experts = tuple(_reader(each, _layers(each, last), readers) for each in branch.experts)
    return replace(branch, experts=experts)


def _layers(expert: ExpertSpec, last: MLPSpec) -> MLPSpec:
    return expert.projection if expert.projection.hidden else last


def _reader(expert: ExpertSpec, projection: MLPSpec, readers: set[int]) -> ExpertSpec:
    if expert.set_index not in readers or not projection.hidden:
        return expert
    return replace(expert, projection=projection, reads_sequences=True)


def _reads(branch: BranchSpec | MixtureSpec) -> bool:
    experts = branch.experts if isinstance(branch, BranchSpec) else branch.layers[0].experts
    return any(each.reads_sequences for each in experts)
