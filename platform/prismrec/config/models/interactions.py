"""Recipe sections of the interactions, one kind each: what an expert does with its set's vectors.

A kind is a name, or a name and its options: `"fm"`, or `{kind = "cin", maps = [32, 32]}`. The models
that are one interaction take the same options under their own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from prismrec.config.errors import nearest
from prismrec.config.section import Section

Width = Annotated[int, Field(ge=1)]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_tuples(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: _as_tuple(members) for name, members in value.items()}


Members = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_as_tuples)]
"""Features, sparse or numeric, by the name of what they belong to."""


class FMKind(Section):
    """Sum of the element-wise products of all pairs of fields."""

    kind: Literal["fm"] = "fm"


class FFMKind(Section):
    """Products of all pairs of fields, with a slot of a field's vector for each partner.

    The width of the set must be a multiple of its number of fields less one.
    """

    kind: Literal["ffm"] = "ffm"


class RankOptions(Section):
    """Weights of pairs of fields."""

    rank: int | None = Field(default=None, ge=1)
    """Rank of the weights as a matrix over fields, for less work; each pair is free if not given."""


class FwFMKind(RankOptions):
    """Products of all pairs of fields, each pair with a weight."""

    kind: Literal["fwfm"] = "fwfm"


class FvFMKind(Section):
    """Products of all pairs of fields, each pair with a vector of weights."""

    kind: Literal["fvfm"] = "fvfm"


class FmFMKind(Section):
    """Products of all pairs of fields, each pair with a matrix between them."""

    kind: Literal["fmfm"] = "fmfm"


class PartOptions(Section):
    """Parts and groups of the fields of a GwPFM."""

    parts: Members
    """Features by the name of their part. A field's vector is cut into a slot for each part, and its
    partner's part says which is used; features of no part are one more part together. The width of
    a set must be a multiple of the number of parts that it covers."""
    groups: Members | None = None
    """Features by the name of their group; a pair's weight is that of its two groups. A feature of no
    group is a group by itself, so `{}` gives every pair its weight; the parts if not given."""

    @field_validator("parts", "groups")
    @classmethod
    def _each_once(
        cls, value: dict[str, tuple[str, ...]] | None
    ) -> dict[str, tuple[str, ...]] | None:
        seen: dict[str, str] = {}
        for name, members in (value or {}).items():
            if not members:
                raise ValueError(f"'{name}' holds no feature; name at least one or leave it out")
            for member in members:
                if member in seen:
                    raise ValueError(
                        f"'{member}' is in '{seen[member]}' and in '{name}'; a feature belongs to one"
                    )
                seen[member] = name
        return value


class GwPFMKind(PartOptions):
    """Products of all pairs of fields, with a slot for each part and a weight for two groups."""

    kind: Literal["gwpfm"]


class IPNNKind(Section):
    """Inner products of all pairs of fields."""

    kind: Literal["ipnn"] = "ipnn"
    include_fields: bool = True
    """Whether the fields' vectors themselves stand beside the products."""


class CrossKind(Section):
    """Cross network with a weight vector per layer."""

    kind: Literal["cross"] = "cross"
    num_layers: int = Field(default=3, ge=1)


class CrossV2Kind(Section):
    """Cross network with a weight matrix per layer."""

    kind: Literal["crossv2"] = "crossv2"
    num_layers: int = Field(default=3, ge=1)
    rank: int | None = Field(default=None, ge=1)
    """Rank of each matrix; full rank if not given."""


class CINOptions(Section):
    """A compressed interaction network."""

    maps: Annotated[tuple[Width, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = (16, 16)
    """Number of maps of each layer; layer l holds products of l + 1 fields."""
    activation: Literal["identity", "relu"] = "identity"
    """Applied to the maps of each layer."""


class CINKind(CINOptions):
    """Compressed interaction network: weighted sums of products with the fields, layer by layer."""

    kind: Literal["cin"] = "cin"


LayeredName = Literal["wfl", "dfl", "pfl", "pft", "pfe", "pfd"]
"""w, d or p: a weight, a diagonal or a projection (matrix) for each pair of fields; f: a term for
each field; l, t, e or d: layers add up with a weight per layer, term or element, or directly."""


class LayeredOptions(Section):
    """Layers of products with one field more each."""

    num_layers: int = Field(default=4, ge=2)
    """Number of layers; the first one is the fields themselves."""
    pairs: Literal["all", "offdiag", "upper"] = "all"
    """Which fields meet: all, none itself, or only those before a field."""


class LayeredKind(LayeredOptions):
    """Layers of products with one field more each, added up: PFL and its family."""

    kind: LayeredName
    reduce: Literal["field", "sum"] = "field"
    """Whether a vector per field comes out, or their sum."""


class FlatKind(Section):
    """No interaction: the fields' vectors side by side."""

    kind: Literal["flat"] = "flat"


class DNNKind(Section):
    """A multi-layer perceptron on the fields' vectors."""

    kind: Literal["dnn"] = "dnn"
    hidden: Annotated[tuple[Width, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = (400,)
    """Widths of the layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm: Literal["layer", "batch", "none"] = "layer"
    """Normalisation after each linear layer; batch moments are over the global batch."""


def _named(value: Any) -> Any:
    """A bare kind stands for that kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


AnyInteraction = (
    FMKind
    | FFMKind
    | FwFMKind
    | FvFMKind
    | FmFMKind
    | GwPFMKind
    | IPNNKind
    | CrossKind
    | CrossV2Kind
    | CINKind
    | LayeredKind
    | FlatKind
    | DNNKind
)
"""A section of an interaction."""

InteractionKind = Annotated[
    Annotated[AnyInteraction, Field(discriminator="kind")], BeforeValidator(_named)
]
"""`"fm"`, or `{kind = "crossv2", num_layers = 2}`."""


def part_problems(section: Section, features: Sequence[str], where: str = "model") -> Iterator[str]:
    """Parts and groups anywhere in a model's section that name features which do not exist.

    Args:
        section: the model's section.
        features: names of the sparse features and numeric columns.
        where: key of the section.
    """
    if isinstance(section, PartOptions):
        for key, named in (("parts", section.parts), ("groups", section.groups or {})):
            for name, members in named.items():
                for member in members:
                    if member not in features:
                        yield (
                            f"{where}.{key}.{name}: no feature is called '{member}'; "
                            + nearest(member, features)
                        )
    for key in type(section).model_fields:
        for place, below in _sections_below(getattr(section, key)):
            yield from part_problems(below, features, f"{where}.{key}{place}")


def _sections_below(value: Any) -> Iterator[tuple[str, Section]]:
    """Sections in a value, in lists and by name, each with its place there."""
    if isinstance(value, Section):
        yield "", value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from ((f".{name}{place}", below) for place, below in _sections_below(each))
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from ((f"[{index}]{place}", below) for place, below in _sections_below(each))
