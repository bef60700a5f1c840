"""What a recipe cannot say of the domains of its rows."""

from __future__ import annotations

from collections.abc import Iterator

from prismrec.config.data import FeaturesSection
from prismrec.config.models import Custom
from prismrec.config.section import Section
from prismrec.config.train import TrainSection


def domain_problems(features: FeaturesSection, *, needs_domain: bool) -> Iterator[str]:
    """Why the domains of the rows do not go with the rest of a recipe.

    Args:
        features: `[features]`.
        needs_domain: whether the model or the loss tells domains apart.
    """
    if needs_domain and features.domain is None:
        yield (
            "features.domain: the model or the loss tells domains apart; name the column that holds "
            "the domain of a row"
        )
    if features.unknown_domain is not None and not needs_domain:
        yield (
            "features.unknown_domain: neither the model nor the loss tells domains apart, so no row "
            "needs another domain; leave it out"
        )


def phase_problems(train: TrainSection, model: Section) -> Iterator[str]:
    """Phases of a model that has no heads of domains, and a temperature that nothing has.

    Args:
        train: `[train]`.
        model: `[model]`; what one of another package has is only seen when it is built.
    """
    has_heads = getattr(model, "domain_towers", isinstance(model, Custom))
    if train.phases is not None and not has_heads:
        yield (
            "train.phases: the phases are about a head for each domain; set model.domain_towers = "
            "true in a model that has it, or leave them out"
        )
    is_tempered = train.domain_reduction == "tempered"
    if is_tempered != (train.domain_temperature is not None):
        yield (
            "train.domain_temperature: train.domain_reduction = 'tempered' needs one, and nothing "
            f"else has one; got {train.domain_temperature} and '{train.domain_reduction}'"
        )
