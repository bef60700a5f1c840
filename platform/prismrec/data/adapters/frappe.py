"""Frappe (mobile app usage in context) in the BARS `Frappe_x1` split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from prismrec.data.adapters.columns import Columns
from prismrec.data.adapters.source import DEFAULT_OPTIONS, PrepareOptions, find_file, read_csv
from prismrec.data.schema import DataSchema

HOLDS = "train.csv, valid.csv and test.csv of Frappe_x1 (label and ten fields)"
SOURCE = "Frappe (Baltrunas et al. 2015) in the BARS split Frappe_x1, research, no redistribution"
SPLITS = ("train", "valid", "test")
FIELDS = (
    "user",
    "item",
    "daytime",
    "weekday",
    "isweekend",
    "homework",
    "cost",
    "weather",
    "country",
    "city",
)


def prepare(source: Path, out: Path, options: PrepareOptions = DEFAULT_OPTIONS) -> DataSchema:
    """Write the three files as one data set into `out`, ids counted from 0 in each field.

    Raises:
        UserError: a file is missing, cannot be parsed or lacks a column.
    """
    tables = [
        read_csv(find_file(source, f"{split}.csv", HOLDS), ["label", *FIELDS]) for split in SPLITS
    ]
    rows = pa.concat_tables(table.select(["label", *FIELDS]) for table in tables)
    split = np.repeat(np.arange(len(SPLITS)), [table.num_rows for table in tables])
    columns = Columns()
    columns.add("label", "label", rows["label"], "the user used the app in this context")
    columns.add("split", "other", split, "0 train, 1 valid, 2 test")
    for name in FIELDS:
        columns.add_ids(name, rows[name])
    return columns.write(out, "frappe", SOURCE)
