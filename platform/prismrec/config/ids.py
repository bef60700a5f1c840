"""How the ids of a column become rows of a table: one section for every way."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from prismrec.config.section import Section


class DirectIds(Section):
    """An id is its own row."""

    kind: Literal["direct"] = "direct"
    out_of_range: Literal["unknown", "fail"] = "unknown"
    """What an id does that is no row: look up the unknown rows, or end the run with an error. A
    missing id is no error, and neither is an id of a request to the served model."""


class HashedIds(Section):
    """Ids of any value are folded into the rows by a seeded hash; some share a row."""

    kind: Literal["hash"]
    seed: int | None = Field(default=None, ge=0)
    """Seed of the hash; the table's name gives one if not given."""
    hashes: Literal[1, 2] = 1
    """Rows whose sum is an id's vector: with 2, hardly any two ids share both."""


class VocabularyIds(Section):
    """Ids are looked up in a list made from the training data; rare ones are left out of it."""

    kind: Literal["vocabulary"]
    path: str
    """Parquet file with columns `id` and `count`, as `prismrec data vocabulary` writes it; a path or
    URL that every rank can read. Checkpoints and the exported model hold a copy."""
    min_count: int = Field(default=1, ge=1)
    """Ids seen less often than this in the training data are unknown."""


class QuotientRemainderIds(Section):
    """An id's vector is the sum of two rows, that of its quotient and that of its remainder.

    No two ids share both, with far fewer rows than ids.
    """

    kind: Literal["quotient_remainder"]
    divisor: int | None = Field(default=None, ge=2)
    """The divisor, which is also the number of remainders; the root of the number of ids if not
    given, which needs the fewest rows."""


class ManagedIds(Section):
    """Rows are given to ids as they come, one id to a row, and taken back from those least used.

    Such a table is packed and cut by rows; ids of any value are taken.
    """

    kind: Literal["managed"]
    policy: Literal["lfu", "lru", "distance_lfu"] = "distance_lfu"
    """Who loses a row: the least frequent, the least recent, or the least frequent for its age."""
    decay: float = Field(default=1.0, gt=0)
    """Exponent of the age in `lru` and `distance_lfu`."""
    interval: int = Field(default=100, ge=1)
    """Steps between two admissions of new ids; until then these look up the unknown row."""
    min_count: int = Field(default=1, ge=1)
    """Times a new id must be seen within one interval to be given a row."""
    ttl_steps: int | None = Field(default=None, ge=1)
    """Steps without being seen after which an id loses its row in any case."""


class SemanticIds(Section):
    """An id's vector is the sum of rows that its semantic codes choose and ids alike have in common.

    A gram is one level's code, or those of several levels together; each has a row.
    """

    kind: Literal["semantic"]
    path: str
    """Parquet file with columns `id`, `code_0`, `code_1`, ... as `prismrec data semantic-ids` writes it; a
    path or URL that every rank can read. Checkpoints and the exported model hold a copy."""
    form: Literal["level", "prefix", "ngram"] = "prefix"
    """The grams of an id: `level`, the code of each level; `prefix`, the first code, the first two, and
    so on; `ngram`, every `n` levels that follow each other."""
    levels: int | None = Field(default=None, ge=1)
    """Levels that are used, from the first on; all of them if not given."""
    n: int | None = Field(default=None, ge=2)
    """Levels of a gram of `ngram`, 2 if not given; for that form only."""
    numbering: Literal["seen", "all"] = "seen"
    """`seen`: a row for each gram that an id of the file has; `all`: for each that the codes could make,
    so that ids may be added to the file without any row changing its meaning."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows for the grams of the same levels at most; where there are more grams, a hash folds them
    into so many. As many as there are grams if not given."""

    @model_validator(mode="after")
    def _grams(self) -> SemanticIds:
        if self.form != "ngram" and self.n is not None:
            raise ValueError(f"n: form = '{self.form}' has no n; leave it out or use 'ngram'")
        if self.levels is not None and self.gram_length > self.levels:
            raise ValueError(
                f"n: a gram of {self.gram_length} levels does not fit {self.levels}; use a smaller n"
            )
        return self

    @property
    def gram_length(self) -> int:
        """Levels of the shortest gram."""
        return (self.n or 2) if self.form == "ngram" else 1


def _named(value: Any) -> Any:
    """A bare kind stands for that kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


IdOptions = Annotated[
    Annotated[
        DirectIds | HashedIds | VocabularyIds | QuotientRemainderIds | ManagedIds | SemanticIds,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_named),
]
""" `"direct"`, or `{kind = "hash", seed = 7}`."""
