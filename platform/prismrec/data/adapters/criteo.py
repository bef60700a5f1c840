"""Criteo Kaggle display advertising: tab-separated text, streamed in two passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from prismrec.config import UserError
from prismrec.data.adapters.blocks import TextBlocks
from prismrec.data.adapters.source import (
    DEFAULT_OPTIONS,
    PrepareOptions,
    find_files,
    log1p_signed,
)
from prismrec.data.adapters.vocabulary import ValueCounts, Vocabulary
from prismrec.data.schema import Column, DataSchema
from prismrec.data.write import write_parts

HOLDS = "train.txt of the Criteo Kaggle challenge, or text files of the same 40 columns"
SOURCE = "Criteo Kaggle display advertising challenge (2014), Criteo's research terms"
NOT_ROWS = ("test.txt", "readme.txt", "license.txt")
NUMBERS = tuple(f"I{number}" for number in range(1, 14))
HASHES = tuple(f"C{number}" for number in range(1, 27))


def prepare(source: Path, out: Path, options: PrepareOptions = DEFAULT_OPTIONS) -> DataSchema:
    """Write the labelled rows into `out`, in the order of the file, which is that of time.

    The first pass counts the hashes of every field and gives an id to those seen at least
    `options.min_count` times (10 is usual for the whole file); the second writes. Memory holds
    the distinct hashes and a few blocks of rows, however long the file is. A vocabulary's
    `value` is the hash as a number: `format(value, "08x")` is its spelling in the file.

    Raises:
        UserError: no such file, or a line that is not 40 fields of the right types.
    """
    paths = find_files(source, ["train.txt"], HOLDS) if _has_train(source) else _others(source)
    names = ["label", *NUMBERS, *HASHES]
    types = {"label": pa.int8()} | dict.fromkeys(NUMBERS, pa.int64())
    blocks = TextBlocks(
        paths,
        csv.ParseOptions(delimiter="\t", quote_char=False),
        csv.ConvertOptions(
            column_types=types | dict.fromkeys(HASHES, pa.string()), strings_can_be_null=True
        ),
        names,
        options.progress,
    )
    counts = {name: ValueCounts() for name in HASHES}
    for block in blocks:
        for name in HASHES:
            counts[name].update(_numbers_of(block[name], f"{blocks.path}: {name}"))
    vocabularies = {name: counts[name].vocabulary(options.min_count) for name in HASHES}
    out.mkdir(parents=True, exist_ok=True)
    for name, vocabulary in vocabularies.items():
        vocabulary.write(out, name)
    schema = _schema(vocabularies)
    write_parts(out, _encoded(blocks, vocabularies), schema)
    return schema


def _has_train(source: Path) -> bool:
    return any((source / name).is_file() for name in ("train.txt", "train.txt.gz"))


def _others(source: Path) -> list[Path]:
    found = find_files(source, ["*.txt", "*.tsv"], HOLDS)
    paths = [path for path in found if path.name.removesuffix(".gz").lower() not in NOT_ROWS]
    if not paths:
        raise UserError(f"{source}: no file 'train.txt' (or with .gz); it should hold {HOLDS}")
    return paths


def _numbers_of(column: pa.ChunkedArray, where: str) -> pa.Array:
    """The 32-bit hashes of a field, written in hexadecimal, as int64."""
    try:
        hashes = pc.cast(pc.binary_join_element_wise("0x", column, ""), pa.uint32())
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{where}: not a hash of 8 hexadecimal digits: {error}; is this the Criteo file?"
        ) from None
    return hashes.cast(pa.int64()).combine_chunks()


def _schema(vocabularies: dict[str, Vocabulary]) -> DataSchema:
    meaning = {
        "label": Column(kind="label", description="clicked"),
        "row": Column(kind="time", description="line of the file, which is in order of time"),
    }
    for name in NUMBERS:
        meaning[name] = Column(kind="number", description="as published")
        meaning["log1p_" + name] = Column(
            kind="number", description=f"sign(x) ln(1 + |x|) of {name}"
        )
    for name, vocabulary in vocabularies.items():
        meaning[name] = Column(kind="id", num_ids=vocabulary.num_ids)
    return DataSchema(name="criteo", columns=meaning, source=SOURCE)


def _encoded(blocks: TextBlocks, vocabularies: dict[str, Vocabulary]) -> Iterator[pa.Table]:
    first = 0
    for block in blocks:
        columns = {"label": block["label"], "row": np.arange(first, first + block.num_rows)}
        for name in NUMBERS:
            columns[name] = pc.cast(block[name], pa.float32(), safe=False)
            columns["log1p_" + name] = log1p_signed(block[name])
        for name, vocabulary in vocabularies.items():
            columns[name] = vocabulary.encode(_numbers_of(block[name], name))
        first += block.num_rows
        yield pa.table(columns)
