"""Every model by its recipe name, as a composition of sets, experts, gates and towers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from prismrec.config import Recipe, UserError
from prismrec.config.external import import_function
from prismrec.config.models import Custom
from prismrec.config.section import Section
from prismrec.data.domains import domains_of
from prismrec.data.schema import DataSchema
from prismrec.embeddings.sets import EmbeddingSpec, embedding_spec
from prismrec.models.assembly import sequence_shapes, split_sets
from prismrec.models.inputs import Fields
from prismrec.models.mixture import Composition, RankingModel
from prismrec.models.zoo.heads import HEADS
from prismrec.models.zoo.multitask import MULTITASK
from prismrec.models.zoo.numbers import numeric_specs
from prismrec.models.zoo.sequences import no_reader, with_sequences
from prismrec.models.zoo.single import SINGLE

MODELS: dict[str, Callable[[Any, Fields], Composition | nn.Module]] = {
    **SINGLE,
    **MULTITASK,
    **HEADS,
}
"""What every model is, by its recipe name: a composition, or a module of its own."""


def build_model(section: Section, fields: Fields) -> nn.Module:
    """The model that a recipe's `[model]` section asks for, without its embedding tables.

    Args:
        section: one of the sections of `prismrec.config.models`.
        fields: shapes of the inputs.

    Returns:
        A module with the `forward` of `RankingModel`.

    Raises:
        UserError: the model needs an embedding set or a hidden layer that is not there, or a
            custom model cannot be imported or is not a module.
    """
    if isinstance(section, Custom):
        return _custom(section, fields)
    made = MODELS[str(getattr(section, "name", ""))](section, fields)
    if isinstance(made, Composition):
        return RankingModel(with_sequences(made, section, fields), fields)
    if getattr(section, "sequence", None) is not None:
        raise no_reader(section)
    return made


def needs_linear(section: Section) -> bool:
    """Whether the model has first-order weights, the `linear` input of its `forward`."""
    return getattr(section, "has_first_order", False)


def needs_sets(section: Section) -> bool:
    """Whether the model reads embedding sets, the `sets` input of its `forward`."""
    return getattr(section, "reads_sets", True)


def spec_of(recipe: Recipe, schema: DataSchema) -> EmbeddingSpec:
    """The sets and tables that a recipe's model needs on a data set.

    Raises:
        UserError: see `embedding_spec` and `domains_of`.
    """
    spec = embedding_spec(
        recipe,
        schema,
        needs_sets=needs_sets(recipe.model),
        needs_linear=needs_linear(recipe.model),
    )
    domains = domains_of(recipe, schema)
    return replace(spec, num_domains=domains.count) if domains else spec


def fields_of(recipe: Recipe, spec: EmbeddingSpec) -> Fields:
    """Shapes of the inputs that a recipe's model gets."""
    sets, _ = split_sets(spec, recipe.model)
    return Fields(
        num_sparse=len(spec.fields),
        num_dense=len(recipe.features.numeric),
        set_dims=tuple(each.dim for each in sets),
        num_tasks=recipe.num_logits,
        set_fields=tuple(len(spec.fields_of(each)) for each in sets),
        set_names=tuple((*spec.fields_of(each), *recipe.features.numeric) for each in sets),
        num_domains=spec.num_domains if recipe.reads_domain else 0,
        sets=tuple(each.name for each in sets),
        numeric=numeric_specs(recipe.features.numbers),
        sequences=sequence_shapes(spec, recipe.model),
        tasks=(*recipe.task_names, *(each.name for each in recipe.tasks if each.has_level)),
    )


def _custom(section: Custom, fields: Fields) -> nn.Module:
    model = import_function("model.name", section.name)(fields, section.options)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name: '{section.name}' returned {type(model).__name__}; "
            "it must return a torch.nn.Module"
        )
    return model
