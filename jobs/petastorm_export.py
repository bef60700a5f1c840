"""Reads a data set with petastorm and writes it as plain Parquet; runs in petastorm's own environment.

It imports nothing of prismrec, whose Arrow and numpy are newer than petastorm can do with: its text is sent
there and run as a program. One argument, a JSON object: `url`, `out`, `columns` (null for all), `shard`,
`shards` and `has_schema`, whether the data set has a schema of petastorm's. One JSON object on standard
output: `rows`, and `columns` by name with `shape` and `note`, or the reason why one is left out.
"""

from __future__ import annotations

import decimal
import json
import os
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PART_ROWS = 50_000
"""Rows of a part, which are held in memory."""


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Write the parts of one shard."""
    from petastorm import make_batch_reader, make_reader

    options = {"num_epochs": 1, "shuffle_row_groups": False, "reader_pool_type": "dummy"}
    if order["shards"] > 1:
        options |= {"cur_shard": order["shard"], "shard_count": order["shards"]}
    columns = order["columns"]
    facts: dict[str, Any] = {}
    if order["has_schema"]:
        columns, facts = readable(order["url"], columns)
        with make_reader(order["url"], schema_fields=columns, **options) as reader:
            rows = write_rows(reader, sorted(columns), order)
    else:
        with make_batch_reader(order["url"], schema_fields=columns, **options) as reader:
            rows = write_batches(reader, order)
    return {"rows": rows, "columns": facts}


def readable(url: str, wanted: list[str] | None) -> tuple[list[str], dict[str, Any]]:
    """Names of the fields that are read, and what is to be said of every field."""
    from petastorm.etl.dataset_metadata import get_schema_from_dataset_url

    fields = get_schema_from_dataset_url(url).fields
    facts: dict[str, Any] = {}
    for name, field in fields.items():
        codec = type(field.codec).__name__
        if wanted is not None and name not in wanted:
            continue
        if codec == "CompressedImageCodec":
            facts[name] = {"left_out": "a picture, which is no feature"}
        else:
            facts[name] = {"shape": list(field.shape), "codec": codec}
    return [name for name, fact in facts.items() if "left_out" not in fact], facts


def write_rows(reader: Any, columns: list[str], order: dict[str, Any]) -> int:
    """Rows that petastorm decodes one by one."""
    waiting: dict[str, list[Any]] = {name: [] for name in columns}
    held = rows = parts = 0
    for row in reader:
        for name in columns:
            waiting[name].append(plain(getattr(row, name)))
        held += 1
        if held == PART_ROWS:
            write(pa.table(waiting), order, parts)
            waiting = {name: [] for name in columns}
            rows, held, parts = rows + held, 0, parts + 1
    if held:
        write(pa.table(waiting), order, parts)
    return rows + held


def write_batches(reader: Any, order: dict[str, Any]) -> int:
    """Batches of columns, as they stand in plain Parquet files."""
    rows = parts = 0
    for batch in reader:
        columns = {}
        for name in batch._fields:
            values = getattr(batch, name)
            is_plain = (
                isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object
            )
            columns[name] = pa.array(values if is_plain else [plain(each) for each in values])
        table = pa.table(columns)
        write(table, order, parts)
        rows, parts = rows + table.num_rows, parts + 1
    return rows


def plain(value: Any) -> Any:
    """A value as Arrow takes it: arrays in one dimension, decimals as text."""
    if isinstance(value, np.ndarray):
        return value.reshape(-1) if value.ndim else value.item()
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value.item() if isinstance(value, np.generic) and value.dtype.kind not in "Mm" else value


def write(table: Any, order: dict[str, Any], part: int) -> None:
    """One part."""
    pq.write_table(table, os.path.join(order["out"], f"{order['shard']:04d}-{part:06d}.parquet"))


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(json.loads(sys.argv[1]))) + "\n")
