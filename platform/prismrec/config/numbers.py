"""Recipe sections of numbers that become vectors: where a number comes from, and its encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from prismrec.config.encodings import MNSE, EncodingOptions
from prismrec.config.section import Section

MARK = "::"
"""What parts the name of a number from that of one of its fields."""


class VectorsOf(Section):
    """Ids of a column, and vectors that somebody else has learnt for them."""

    column: str
    """Column of kind `id`, or `ids` to the right."""
    vectors: str
    """File with a vector for each id: Parquet with columns `id` and `vector` or a directory with one
    such file, `.npz` with an array of ids and one of vectors, or `.npy`, whose row numbers are the ids;
    a path that every rank can read. Checkpoints and the exported model hold a copy."""


class Similarity(Section):
    """How alike two vectors are that are never trained: of a user and an item, or of an item and others.

    Where a side has no vector, or a history none that has one, the number is missing.
    """

    left: VectorsOf
    """The first side, one id in each row."""
    right: VectorsOf
    """The other side: one id in each row, or a history of them."""
    measure: Literal["cosine", "dot", "l2"] = "cosine"
    """The cosine of their angle, their inner product, or less their distance."""
    history: Literal["mean", "max"] = "mean"
    """What the similarities to the items of a history become."""


class NumberFeature(Section):
    """A number that becomes one or several fields of the model."""

    name: str
    """Name of the feature; fields that are looked up are called `NAME::b2`, `NAME::b3`, ..."""
    column: str | None = None
    """Column of kind `number` that it is read from; its name if not given."""
    similarity: Similarity | None = None
    """In the place of a column: the similarity of two vectors."""
    encoding: EncodingOptions = MNSE()
    """How it is encoded: the name of a kind, or `{kind=..., ...}`."""
    share: str | None = None
    """Numbers that say the same name here share their rows, which makes sense for one unit only."""

    @model_validator(mode="after")
    def _one_source(self) -> NumberFeature:
        if self.column is not None and self.similarity is not None:
            raise ValueError(
                "column: a similarity is not read from a column; leave one of them out"
            )
        return self

    @property
    def source(self) -> str:
        """The column that holds the number."""
        return self.column or self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it is made of."""
        if self.similarity is not None:
            return self.similarity.left.column, self.similarity.right.column
        return (self.source,)

    @property
    def sides(self) -> dict[str, VectorsOf]:
        """The two sides of its similarity by name; none where it is read from a column."""
        if self.similarity is None:
            return {}
        return {"left": self.similarity.left, "right": self.similarity.right}

    @property
    def rows_of(self) -> str:
        """Name of the rows that it looks up in each of its tables."""
        return self.share or self.name

    @property
    def lookups(self) -> tuple[NumberLookup, ...]:
        """The fields that it becomes by a lookup, in the order of the model's fields."""
        return tuple(
            NumberLookup(f"{self.name}{MARK}{name}", self.name, table)
            for name, table in self.encoding.tables.items()
        )


@dataclass(frozen=True, slots=True)
class NumberLookup:
    """A field that looks up what a number is encoded as.

    Args:
        name: of the field.
        number: the number feature that it belongs to.
        table_name: the table that it looks up.
    """

    name: str
    number: str
    table_name: str

    @property
    def pooling(self) -> Literal["sum"]:
        """The rows of a number are added up."""
        return "sum"

    @property
    def weights(self) -> None:
        """The rows of a number have no weights."""
        return
