"""Models whose heads are a design of their own, each a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from prismrec.config import UserError
from prismrec.config.models.heads import AITM, ESMM, STAR, PEPNet
from prismrec.models.heads.aitm import Aitm, AitmOptions, Calibrator
from prismrec.models.heads.chain import ChainedTasks
from prismrec.models.heads.pepnet import Pepnet, PepnetSpec
from prismrec.models.heads.star import Star, StarSpec
from prismrec.models.inputs import Fields
from prismrec.models.layers import MLPSpec

ModuleBuilder = Callable[[Any, Fields], nn.Module]


def _esmm(section: ESMM, fields: Fields) -> nn.Module:
    """`p_t = sigma(z_1) ... sigma(z_t)`, a tower for each z."""
    return ChainedTasks(_with_sets(fields), _layers(section))


def _aitm(section: AITM, fields: Fields) -> nn.Module:
    """`z_t = attention(g(z_(t-1)), bottom_t(x))`."""
    tower = MLPSpec(section.tower, section.dropout, section.norm)
    calibrator = Calibrator(section.calibrator, section.calibrator_reduction)
    options = AitmOptions(section.transfer, calibrator)
    return Aitm(_with_sets(fields), _layers(section), tower, options)


def _pepnet(section: PEPNet, fields: Fields) -> nn.Module:
    """Towers on `gate(domain) * x` whose units are gated by prior features."""
    domain = section.domain_set
    spec = PepnetSpec(
        prior_set=fields.sets.index(section.prior_set),
        domain_set=None if domain is None else fields.sets.index(domain),
        tower=_layers(section),
        position=section.gate_position,
        gate_hidden=section.gate_hidden,
        gamma=section.gate_scale,
    )
    return Pepnet(fields, spec)


def _star(section: STAR, fields: Fields) -> nn.Module:
    """`x (W_s * W) + b_s + b` in every layer, and an auxiliary network."""
    spec = StarSpec(
        layers=MLPSpec(section.hidden, section.dropout),
        norm=section.norm,
        auxiliary=section.auxiliary,
        domain_dim=section.domain_dim,
        reads_features=section.auxiliary_reads_features,
    )
    return Star(_with_sets(fields), spec)


HEADS: dict[str, ModuleBuilder] = {
    "pepnet": _pepnet,
    "star": _star,
    "esmm": _esmm,
    "aitm": _aitm,
}
"""What makes each model of this module, by its recipe name."""


def _layers(section: ESMM | AITM | PEPNet) -> MLPSpec:
    return MLPSpec(section.hidden, section.dropout, section.norm)


def _with_sets(fields: Fields) -> Fields:
    """The fields, of which there is a set at least."""
    if not fields.set_dims:
        raise UserError("model.name: this model reads embedding sets; set embedding.num_sets to 1")
    return fields
