"""UCI Census-Income (KDD): the two-task benchmark of MMoE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from prismrec.config import UserError
from prismrec.data.adapters.columns import Columns
from prismrec.data.adapters.source import (
    DEFAULT_OPTIONS,
    PrepareOptions,
    find_file,
    read_csv,
)
from prismrec.data.schema import DataSchema

HOLDS = (
    "census-income.data and census-income.test as published by UCI, "
    "or census_train*.csv and census_test*.csv with a header"
)
SOURCE = "UCI Census-Income (KDD), US Census Bureau 1994 and 1995"
SPLITS = {"train": "census-income.data", "test": "census-income.test"}

NUMBERS = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "num_emp",
    "weeks_worked",
)
INCOME, MARRIED, WEIGHT = "income_50k", "marital_stat", "unknown"
FIELDS = tuple(
    """age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat
    major_ind_code major_occ_code race hisp_origin sex union_member unemp_reason full_or_part_emp
    capital_gains capital_losses stock_dividends tax_filer_stat region_prev_res state_prev_res
    det_hh_fam_stat det_hh_summ unknown mig_chg_msa mig_chg_reg mig_move_reg mig_same
    mig_prev_sunbelt num_emp fam_under_18 country_father country_mother country_self citizenship
    own_or_self vet_question vet_benefits weeks_worked year income_50k""".split()
)
"""The 42 columns in the order of the published file, which has no header."""


def prepare(source: Path, out: Path, options: PrepareOptions = DEFAULT_OPTIONS) -> DataSchema:
    """Write train and test as one data set with two labels into `out`.

    The column that one label is made of, `marital_stat`, and the weight of the survey, `unknown`,
    are of kind `other`, so that no recipe can take them for features.

    Raises:
        UserError: a file is missing, cannot be parsed or lacks a column.
    """
    tables = [_read(source, split) for split in SPLITS]
    rows = pa.concat_tables(tables)
    columns = Columns()
    income = pc.cast(pc.match_substring(rows[INCOME], "+"), pa.int8())
    columns.add("income_50k", "label", income, "earns more than 50,000 dollars a year")
    never = pc.cast(pc.equal(rows[MARRIED], "Never married"), pa.int8())
    columns.add("never_married", "label", never, "was never married")
    split = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    columns.add("split", "other", split, "0 train, 1 test")
    columns.add(MARRIED, "other", rows[MARRIED], "what `never_married` is made of")
    columns.add(WEIGHT, "other", rows[WEIGHT], "how many people the row stands for")
    for name in FIELDS:
        if name in NUMBERS:
            columns.add_count(name, rows[name], "")
        elif name not in (INCOME, MARRIED, WEIGHT):
            unknown = pc.equal(rows[name], "?")
            columns.add_ids(name, pc.if_else(unknown, pa.scalar(None, pa.string()), rows[name]))
    return columns.write(out, "census", SOURCE)


def _read(source: Path, split: str) -> pa.Table:
    """One split with every field that is no number as trimmed text."""
    types = {name: pa.string() for name in FIELDS}
    types |= dict.fromkeys((*NUMBERS, WEIGHT), pa.float64())
    published = SPLITS[split]
    if any((source / name).is_file() for name in (published, published + ".gz")):
        names = list(FIELDS)
        path = find_file(source, published, HOLDS)
    else:
        names = None
        path = find_file(source, f"census_{split}*.csv", HOLDS)
    rows = read_csv(
        path,
        FIELDS,
        csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        read=csv.ReadOptions(column_names=names),
    ).select(list(FIELDS))
    if rows.num_rows == 0:
        raise UserError(f"{path}: holds no row; fetch the file again")
    return pa.table(
        {
            name: rows[name] if rows[name].type != pa.string() else pc.utf8_trim(rows[name], " ")
            for name in FIELDS
        }
    )
