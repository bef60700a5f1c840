"""Rows of a shop whose every value is known, the table of its items, and a plan to build them by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 6_000
ITEMS = 40

PLAN = """
name = "shop"
rows = "{here}/log"

[columns]
row = {{ kind = "other" }}
user = {{ kind = "id", vocabulary = "user" }}
item = {{ kind = "id", num_ids = 100 }}
seen = {{ kind = "ids", vocabulary = "word" }}
brand = {{ kind = "id", vocabulary = "word", source = "item_brand" }}
price = {{ kind = "number", source = "item_price" }}
amount = {{ kind = "number" }}
bought = {{ kind = "label" }}
stamp = {{ kind = "time" }}

[vocabularies.user]
min_count = 5

[[joins]]
path = "{here}/items"
on = "item"
key = "id"
columns = ["brand", "price"]
prefix = "item_"
{how}
[splits]
valid_from = 80_000
test_from = 90_000
"""


def log(rows: int = ROWS, *, in_order: bool = False) -> pa.Table:
    """Rows 0, 1, ...: two rows share a time, and a tenth of the items is in no table."""
    row = np.arange(rows)
    place = row if in_order else np.random.default_rng(1).permutation(rows)
    words = np.array(["w" + str(n) for n in range(30)])
    bags = [list(words[[n % 30, (n * 7) % 30]]) if n % 5 else [] for n in row.tolist()]
    return pa.table(
        {
            "row": row,
            "user": [None if n % 11 == 0 else f"u{n * n % 1_999}" for n in row.tolist()],
            "item": (row * 13 % (ITEMS + 4)).astype(np.int32),
            "seen": pa.array(bags, pa.list_(pa.string())),
            "amount": pa.array(np.where(row % 9 == 0, np.nan, row / 8)),
            "bought": row % 3 == 0,
            "stamp": (place // 2) * (200_000 // rows),
        }
    )


def items() -> pa.Table:
    """Items 39, 38, ..., 0 with a brand and a price of ten times their number."""
    ids = np.arange(ITEMS)[::-1].copy()
    return pa.table({"id": ids, "brand": [f"w{n % 7 + 25}" for n in ids], "price": ids * 10})


def write(here: Path, table: pa.Table, how: str = "") -> Path:
    """The rows in files of row groups of 500, the items, and the plan, whose path it gives."""
    (here / "log").mkdir(parents=True)
    (here / "items").mkdir()
    half = table.num_rows // 2
    for name, part in (("a", table.slice(0, half)), ("b", table.slice(half))):
        pq.write_table(part, here / "log" / f"{name}.parquet", row_group_size=500)
    pq.write_table(items(), here / "items" / "items.parquet", row_group_size=9)
    plan = here / "shop.toml"
    plan.write_text(PLAN.format(here=here, how=how))
    return plan
