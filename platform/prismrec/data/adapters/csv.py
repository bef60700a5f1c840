"""Any delimited text, by a JSON file that says what its columns mean.

The file is a data schema whose columns may say three things more:

    {"name": "shop", "columns": {
        "label":   {"kind": "label"},
        "user":    {"kind": "id"},
        "hour":    {"kind": "id", "num_ids": 24},
        "viewed":  {"kind": "ids", "separator": " "},
        "price":   {"kind": "number"},
        "stamp":   {"kind": "time"},
        "comment": {"kind": "other", "type": "string"}}}

An `id` column without `num_ids` gets a vocabulary; with `num_ids` its integers are the ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from pydantic import BaseModel, ConfigDict, ValidationError

from prismrec.config import UserError, nearest
from prismrec.data.adapters.blocks import TextBlocks
from prismrec.data.adapters.source import DEFAULT_OPTIONS, PrepareOptions, find_files, unreadable
from prismrec.data.adapters.vocabulary import ValueCounts, Vocabulary
from prismrec.data.schema import FILE_NAME, Column, DataSchema, Kind
from prismrec.data.write import write_parts

HOLDS = "*.csv or *.tsv files with a header, and schema.json unless --schema names one"
Type = Literal["string", "int64", "float64", "bool", "date", "timestamp"]
TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("ms"),
}


class CsvColumn(BaseModel):
    """One column of the text.

    Args:
        kind: as in a data schema.
        num_ids: of an `id` or `ids` column whose integers are the ids already.
        description: carried into the data schema.
        type: how the text is read; int64 or text by kind if not given. A `time` column of type
            `timestamp` or `date` becomes milliseconds since 1970.
        separator: parts the values inside one field of an `ids` or `numbers` column.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    num_ids: int | None = None
    description: str = ""
    type: Type | None = None
    separator: str = "|"

    @property
    def is_list(self) -> bool:
        """Whether a field holds several values."""
        return self.kind in ("ids", "numbers")

    @property
    def has_vocabulary(self) -> bool:
        """Whether the values get their ids here."""
        return self.kind in ("id", "ids") and self.num_ids is None

    @property
    def read_as(self) -> pa.DataType:
        """The type a field is parsed as."""
        if self.is_list:
            return pa.string()
        if self.type is not None:
            return TYPES[self.type]
        by_kind = {"id": pa.int64(), "time": pa.int64(), "other": pa.string()}
        return pa.string() if self.has_vocabulary else by_kind.get(self.kind, pa.float64())


class CsvSchema(BaseModel):
    """What the columns of the text mean; columns not named are left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    columns: dict[str, CsvColumn]
    source: str = ""


def prepare(source: Path, out: Path, options: PrepareOptions = DEFAULT_OPTIONS) -> DataSchema:
    """Write the files of `source`, in the order of their names, into `out`.

    Two passes in blocks: the first gives ids to the values seen at least `options.min_count`
    times, the second writes.

    Raises:
        UserError: a file is missing, the schema is none, or a field does not fit its column.
    """
    paths = find_files(source, ["*.csv", "*.tsv"], HOLDS)
    layout = _layout(options.schema or source / FILE_NAME)
    _check_header(paths, layout, options.delimiter)
    blocks = TextBlocks(
        paths,
        csv.ParseOptions(delimiter=options.delimiter),
        csv.ConvertOptions(
            include_columns=list(layout.columns),
            column_types={name: column.read_as for name, column in layout.columns.items()},
            strings_can_be_null=True,
            null_values=["", "NULL", "null", "NaN", "nan"],
        ),
        progress=options.progress,
    )
    vocabularies = _vocabularies(blocks, layout, options.min_count)
    schema = _schema(layout, vocabularies)
    out.mkdir(parents=True, exist_ok=True)
    for name, vocabulary in vocabularies.items():
        vocabulary.write(out, name)
    write_parts(out, _encoded(blocks, layout, vocabularies), schema)
    return schema


def _layout(path: Path) -> CsvSchema:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; name with --schema the JSON file that says what the columns mean"
        )
    try:
        return CsvSchema.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place}: {first['msg']}; see docs/data.md") from None


def _check_header(paths: list[Path], layout: CsvSchema, delimiter: str) -> None:
    for path in paths:
        try:
            with csv.open_csv(path, parse_options=csv.ParseOptions(delimiter=delimiter)) as reader:
                header = reader.schema.names
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable(path, error) from None
        for name in layout.columns:
            if name not in header:
                raise UserError(
                    f"{path}: column '{name}' of the schema is not in the file; "
                    f"{nearest(name, header)}"
                )


def _vocabularies(blocks: TextBlocks, layout: CsvSchema, min_count: int) -> dict[str, Vocabulary]:
    counts = {name: ValueCounts() for name, each in layout.columns.items() if each.has_vocabulary}
    for block in blocks:
        for name, counted in counts.items():
            counted.update(_values(block[name], layout.columns[name]))
    return {name: counted.vocabulary(min_count) for name, counted in counts.items()}


def _values(column: pa.ChunkedArray, meaning: CsvColumn) -> pa.ChunkedArray:
    """The column with its lists cut and its times as integers."""
    if meaning.is_list:
        bags = pc.split_pattern(pc.utf8_trim_whitespace(column), meaning.separator)
        if meaning.has_vocabulary:
            return bags
        inner = pa.float32() if meaning.kind == "numbers" else pa.int64()
        return bags.cast(pa.list_(inner))
    if meaning.kind == "time" and pa.types.is_temporal(column.type):
        return column.cast(pa.timestamp("ms")).cast(pa.int64())
    if meaning.kind == "label":
        return column.cast(pa.int8())
    return column


def _schema(layout: CsvSchema, vocabularies: dict[str, Vocabulary]) -> DataSchema:
    columns = {}
    for name, column in layout.columns.items():
        num_ids = vocabularies[name].num_ids if name in vocabularies else column.num_ids
        columns[name] = Column(kind=column.kind, num_ids=num_ids, description=column.description)
    return DataSchema(name=layout.name, columns=columns, source=layout.source)


def _encoded(
    blocks: TextBlocks, layout: CsvSchema, vocabularies: dict[str, Vocabulary]
) -> Iterator[pa.Table]:
    for block in blocks:
        columns = {}
        for name, meaning in layout.columns.items():
            try:
                values = _values(block[name], meaning)
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{blocks.path}: column '{name}': {str(error).splitlines()[0]}; "
                    "correct the text or its kind"
                ) from None
            if name in vocabularies:
                vocabulary = vocabularies[name]
                encode = vocabulary.encode_bags if meaning.is_list else vocabulary.encode
                values = encode(values)
            columns[name] = values
        yield pa.table(columns)
