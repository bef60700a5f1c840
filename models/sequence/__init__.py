"""Modules that turn a row's behaviours and its target into a vector."""

from prismrec.models.sequence.base import Order, SequenceModule, SequenceSpec, Widths
from prismrec.models.sequence.dare import DARE, DARESpec
from prismrec.models.sequence.din import DIN, DINSpec
from prismrec.models.sequence.empty import EmptyToken, EmptyTokenSpec
from prismrec.models.sequence.temporal import TemporalSpec
from prismrec.models.sequence.tim import TIM, TIMSpec

__all__ = [
    "DARE",
    "DIN",
    "TIM",
    "DARESpec",
    "DINSpec",
    "EmptyToken",
    "EmptyTokenSpec",
    "Order",
    "SequenceModule",
    "SequenceSpec",
    "TIMSpec",
    "TemporalSpec",
    "Widths",
]
