"""What the recipe's kinds of ids make of its tables: numbers of rows, and encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prismrec.config import Recipe, UserError
from prismrec.config.embedding import TableOptions
from prismrec.config.ids import (
    DirectIds,
    HashedIds,
    ManagedIds,
    QuotientRemainderIds,
    SemanticIds,
    VocabularyIds,
)
from prismrec.data.encode.codes import CodeEncoder, bucket_rows
from prismrec.data.encode.encoders import (
    DirectEncoder,
    Encoder,
    HashEncoder,
    QuotientRemainderEncoder,
    TableRows,
    VocabularyEncoder,
    hash_seeds,
)
from prismrec.data.encode.ids import name_seed
from prismrec.data.encode.numbers.encoders import number_encoders
from prismrec.data.encode.numbers.tables import NumberTable, number_tables
from prismrec.data.encode.semantic import SemanticEncoder, semantic_encoder, semantic_segments
from prismrec.data.encode.vocabulary import read_vocabulary, vocabulary_size
from prismrec.data.schema import DataSchema


@dataclass(frozen=True, slots=True)
class IdTable:
    """One table as its ids see it.

    Args:
        name: of the table.
        options: what the recipe says of it.
        num_ids: ids 0 to num_ids - 1 are known; None where that means nothing for its kind.
        rows: how its rows are shared out.
        rows_per_id: rows that an id looks up; their sum is its vector.
    """

    name: str
    options: TableOptions
    num_ids: int | None
    rows: TableRows
    rows_per_id: int = 1

    @property
    def kind(self) -> str:
        """Kind of its ids, as `embedding.tables.NAME.ids` has it."""
        return self.options.ids.kind

    def encoder(self) -> Encoder:
        """From ids to rows.

        Raises:
            UserError: a vocabulary or a file of codes cannot be read.
        """
        ids, rows = self.options.ids, self.rows
        if isinstance(ids, HashedIds):
            seed = name_seed(self.name) if ids.seed is None else ids.seed
            return HashEncoder(rows, hash_seeds(seed, ids.hashes))
        if isinstance(ids, VocabularyIds):
            return read_vocabulary(ids, rows, f"embedding.tables.{self.name}.ids")
        if isinstance(ids, SemanticIds):
            return semantic_encoder(ids, rows, self.name)
        if isinstance(ids, QuotientRemainderIds):
            assert self.num_ids is not None
            return QuotientRemainderEncoder(rows, self.num_ids, _divisor(ids, self.num_ids))
        return CodeEncoder(rows) if isinstance(ids, ManagedIds) else DirectEncoder(rows)


def encoded_tables(recipe: Recipe, schema: DataSchema) -> dict[str, IdTable | NumberTable]:
    """Every table of a recipe by name: those of ids, then those of numbers.

    Raises:
        UserError: see `id_tables`.
    """
    return {**id_tables(recipe, schema), **number_tables(recipe)}


def id_tables(recipe: Recipe, schema: DataSchema) -> dict[str, IdTable]:
    """Every table that the sparse features of a recipe use, by name, in the order of the features.

    Args:
        recipe: features and tables.
        schema: of the data set, for the number of ids of each column.

    Raises:
        UserError: a column is missing or of another kind, the number of a table's ids is not
            known, or a vocabulary or a file of codes cannot be read.
    """
    counts: dict[str, dict[str, int | None]] = {}
    for index, feature in enumerate(recipe.features.sparse):
        column = schema.column(feature.source, ("id", "ids"), f"features.sparse[{index}]")
        counts.setdefault(feature.table_name, {})[feature.source] = column.num_ids
    for key, name, table in recipe.features.behaviours:
        used_as = f"features.sequences '{key.partition('/')[0]}'"
        counts[table][name] = schema.column(name, ("ids",), used_as).num_ids
    tables = {}
    for name, columns in counts.items():
        options = recipe.embedding.tables.get(name) or TableOptions()
        num_ids, known, per_id = _known_rows(name, options, columns)
        rows = TableRows(known, options.unknown_rows, name_seed(f"{name}/unknown"))
        if isinstance(options.ids, ManagedIds):
            rows = bucket_rows(known, recipe.data.lanes)
        tables[name] = IdTable(name, options, num_ids, rows, per_id)
    return tables


def encoders_of(recipe: Recipe, schema: DataSchema) -> dict[str, Encoder]:
    """The encoder of every field that is looked up, and of every column of behaviours; those of ids of
    one table share theirs.

    Raises:
        UserError: see `id_tables` and `number_encoders`.
    """
    by_table = {name: table.encoder() for name, table in id_tables(recipe, schema).items()}
    of_ids = {each.key: by_table[each.table] for each in recipe.features.id_lists}
    return of_ids | number_encoders(recipe, schema)


def id_digests(recipe: Recipe, encoders: Mapping[str, Encoder]) -> dict[str, str]:
    """SHA-256 of the vocabularies and files of codes that encoders were made from, by table."""
    of_table = {each.table_name: encoders[each.name] for each in recipe.features.sparse}
    return {
        name: encoder.digest
        for name, encoder in of_table.items()
        if isinstance(encoder, VocabularyEncoder | SemanticEncoder)
    }


def _known_rows(
    name: str, options: TableOptions, columns: Mapping[str, int | None]
) -> tuple[int | None, int, int]:
    """Number of ids, where the kind has one, rows for known ids, and rows that an id looks up."""
    ids = options.ids
    if isinstance(ids, VocabularyIds):
        return None, vocabulary_size(ids, f"embedding.tables.{name}.ids"), 1
    if isinstance(ids, SemanticIds):
        segments = semantic_segments(ids, name)
        return None, sum(each.rows for each in segments), len(segments)
    if isinstance(ids, HashedIds | ManagedIds):
        assert options.rows is not None  # the recipe was refused otherwise
        return None, options.rows, ids.hashes if isinstance(ids, HashedIds) else 1
    num_ids = options.rows or _counted(name, ids, columns)
    if isinstance(ids, QuotientRemainderIds):
        divisor = _divisor(ids, num_ids)
        return num_ids, -(-num_ids // divisor) + divisor, 2
    return num_ids, num_ids, 1


def _counted(
    name: str, ids: DirectIds | QuotientRemainderIds, columns: Mapping[str, int | None]
) -> int:
    """The largest number of ids that the schema gives the columns of a table."""
    for column, count in columns.items():
        if count is None:
            raise UserError(
                f"embedding.tables.{name}.rows: missing; ids = '{ids.kind}' needs the number of "
                f"ids, and schema.json gives column '{column}' no num_ids; give one of the two, or "
                "use another kind of ids"
            )
    return max(count for count in columns.values() if count is not None)


def _divisor(ids: QuotientRemainderIds, num_ids: int) -> int:
    """The recipe's divisor, or the root of the number of ids, rounded up."""
    return ids.divisor or math.isqrt(num_ids - 1) + 1
