"""Recipe sections of the modules that read sequences, one kind each.

A kind is a name, or a name and its options: `"tim"`, or `{kind = "tim", encoding = "both"}`. Any
model takes one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from prismrec.config.errors import nearest
from prismrec.config.section import Section
from prismrec.config.sequences import SequenceFeature

Encoding = Literal["position", "interval", "both", "none"]
Combine = Literal["add", "concat"]


class SequenceReader(Section):
    """What every module has."""

    empty_token: bool = False
    """Whether rows without behaviours have a learned vector instead of zeros, and experts are told which
    these are."""


class TIMKind(SequenceReader):
    """Temporal interest module: time in behaviours and target, attention and sum by both."""

    kind: Literal["tim"] = "tim"
    encoding: Encoding = "position"
    """What of a behaviour's time is encoded (target-aware temporal encoding)."""
    combine: Combine = "add"
    """Whether vectors of time are added to those of behaviours and target, or stand behind them."""
    time_dim: int = Field(default=16, ge=1)
    """Width of the vectors that stand behind."""
    attention: bool = True
    """Weigh behaviours by the target (target-aware attention), or all alike."""
    representation: bool = True
    """Multiply what was summed by the target (target-aware representation), or leave it."""
    readout: Literal["pure", "official"] = "pure"
    """`pure` hands interest and target on; `official`, as in the released code, normalises the sum over
    the batch and projects it first."""


class DINKind(SequenceReader):
    """Deep interest network: an attention network looks at each behaviour beside the target."""

    kind: Literal["din"] = "din"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (80, 40)
    """Widths of the layers of the attention network."""
    activation: Literal["sigmoid", "prelu", "dice"] = "sigmoid"
    """Behind each of them; the moments of `dice` are over the global batch."""
    pooling: Literal["softmax", "sum"] = "softmax"
    """Weigh by a softmax of the scores, or by the scores themselves."""

    @field_validator("hidden", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("hidden")
    @classmethod
    def _some(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("at least one layer is needed")
        return value


class DAREKind(SequenceReader):
    """DARE: behaviours are weighed by the vectors of one set and summed by those of another."""

    kind: Literal["dare"] = "dare"
    attention: str
    """Set that weighs, and does nothing else; usually the narrower one. It has to cover targets of
    sequences only."""
    representation: str | None = None
    """Set whose expert gets what is summed; every other set's expert, from its own vectors, if not given."""
    encoding: Encoding = "none"
    """What of a behaviour's time is encoded, in each of the two sets."""
    combine: Combine = "concat"
    """Whether vectors of time are added to those of behaviours and target, or stand behind them with
    a scale of their own."""
    time_dim: int = Field(default=16, ge=1)
    """Width of the vectors that stand behind."""
    keep: int | None = Field(default=None, ge=1)
    """Behaviours that are kept, those that weigh most; all if not given."""


def _named(value: Any) -> Any:
    """A bare kind stands for that kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


AnySequence = TIMKind | DINKind | DAREKind
"""A section of a sequence module."""

SequenceKind = Annotated[
    Annotated[AnySequence, Field(discriminator="kind")], BeforeValidator(_named)
]
"""`"tim"`, or `{kind = "din", hidden = [64]}`."""


def attention_set(module: AnySequence | None) -> str | None:
    """The set that only weighs behaviours, and that no expert reads."""
    return module.attention if isinstance(module, DAREKind) else None


def module_problems(
    module: AnySequence | None, sequences: Sequence[SequenceFeature], sets: dict[str, Any]
) -> Iterator[str]:
    """Why a model cannot read the sequences as it is asked to; nothing if it can.

    Args:
        module: the model's sequence module, if it has one.
        sequences: those of the recipe.
        sets: features of each embedding set by name, None where it covers all.
    """
    if module is None:
        if sequences:
            yield (
                "features.sequences: no part of the model reads them; set model.sequence = 'tim' or "
                "another, or leave them out"
            )
        return
    if not sequences:
        yield "model.sequence: there is no sequence to read; name one in features.sequences"
    if not isinstance(module, DINKind) and module.encoding in ("interval", "both"):
        for each in sequences:
            if not each.has_gaps:
                yield (
                    f"model.sequence.encoding: '{module.encoding}' needs the time of each behaviour, "
                    f"and sequence '{each.name}' has neither `gaps` nor `times`; use 'position'"
                )
    targets = {each.target for sequence in sequences for each in sequence.behaviours}
    if isinstance(module, DAREKind):
        yield from _dare_problems(module, targets, sets)
    attention = attention_set(module)
    for each in sequences:
        own = [behaviour.target for behaviour in each.behaviours]
        readers = [
            name
            for name, covered in sets.items()
            if name != attention and (covered is None or any(t in covered for t in own))
        ]
        if not readers:
            yield (
                f"features.sequences: no set covers a target of '{each.name}' ("
                + ", ".join(own)
                + "), so that nothing reads it; add one to the `features` of a set"
            )


def _dare_problems(module: DAREKind, targets: set[str], sets: dict[str, Any]) -> Iterator[str]:
    for key in ("attention", "representation"):
        name = getattr(module, key)
        if name is not None and name not in sets:
            yield f"model.sequence.{key}: no set is called '{name}'; {nearest(name, sets)}"
    if module.attention == module.representation:
        yield "model.sequence.representation: it is the set of the attention; name another"
    covered = sets.get(module.attention)
    if module.attention in sets and (covered is None or not set(covered) <= targets):
        yield (
            f"model.sequence.attention: set '{module.attention}' only weighs behaviours, and nothing "
            "would train its vectors of other features; its `features` have to be among "
            + ", ".join(sorted(targets))
        )
    if len(sets) < 2:
        yield "embedding.sets: DARE needs a set for its attention and one more; name both"
