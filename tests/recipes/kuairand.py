"""A few hundred made-up rows in the files and columns of KuaiRand-Pure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from prismrec.data.adapters import kuairand
from prismrec.data.schema import DataSchema

ROWS, USERS, VIDEOS, TAGS = 700, 60, 40, 7
DAYS = (*range(20220425, 20220431), *range(20220501, 20220506))
FIRST_MS = 1650859200000
DAY_MS = 24 * 3600 * 1000
LAST_HISTORY_MS = FIRST_MS - DAY_MS
RATES = {"is_click": 0.44, "long_view": 0.31, "is_like": 0.1, "is_follow": 0.1}
"""Likes and follows are more frequent than the real ones: a few hundred rows must have some."""


def write_small_kuairand(out: Path) -> DataSchema:
    """Write the source beside `out`, and what the adapter makes of it into `out`."""
    source = out.parent / f"{out.name}-source"
    source.mkdir(parents=True)
    random = np.random.default_rng(5)
    pc.write_csv(_log(random), source / "log_standard_4_22_to_5_08_pure.csv")
    pc.write_csv(_users(random), source / "user_features_pure.csv")
    pc.write_csv(_videos(random), source / "video_features_basic_pure.csv")
    pq.write_table(_histories(random), source / "histories_4_09_to_4_24.parquet")
    ids, vectors = np.arange(5, VIDEOS), random.normal(size=(VIDEOS - 5, 8)).astype(np.float32)
    np.savez(source / "item_vectors_graph.npz", item_ids=ids, item_vectors=vectors)
    return kuairand.prepare(source, out)


def _log(random: np.random.Generator) -> pa.Table:
    day = np.sort(np.arange(ROWS) % len(DAYS))
    time = FIRST_MS + day * DAY_MS + random.integers(0, DAY_MS, ROWS)
    columns = {
        "user_id": random.integers(0, USERS, ROWS),
        "video_id": random.integers(0, VIDEOS, ROWS),
        "date": np.array(DAYS)[day],
        "hourmin": random.integers(0, 24, ROWS) * 100,
        "time_ms": time,
        "duration_ms": random.integers(1, 90, ROWS) * 1000,
        "is_rand": np.zeros(ROWS, np.int64),
        "tab": random.integers(0, 5, ROWS),
    }
    for name in kuairand.LABELS:
        columns[name] = (random.random(ROWS) < RATES.get(name, 0.02)).astype(np.int64)
    for name in kuairand.OUTCOMES:
        columns[name] = random.integers(0, 1000, ROWS)
    return pa.table(columns)


def _users(random: np.random.Generator) -> pa.Table:
    drawn = {
        name: random.integers(0, 4, USERS) for name in (*kuairand.USER_IDS, *kuairand.USER_COUNTS)
    }
    return pa.table({"user_id": np.arange(USERS), **drawn})


def _videos(random: np.random.Generator) -> pa.Table:
    drawn = {name: random.integers(0, 6, VIDEOS) for name in kuairand.VIDEO_IDS}
    return pa.table(
        {
            "video_id": np.arange(VIDEOS),
            **drawn,
            "tag": [str(tag) for tag in random.integers(0, TAGS, VIDEOS)],
            "upload_dt": ["2022-04-20"] * VIDEOS,
            "server_width": np.full(VIDEOS, 720),
            "server_height": random.integers(700, 1300, VIDEOS),
        }
    )


def _histories(random: np.random.Generator) -> pa.Table:
    owners = np.arange(0, USERS, 2)  # the others have none
    bags = {
        name: [random.integers(0, VIDEOS, size) for size in random.integers(0, 9, len(owners))]
        for name in kuairand.HISTORIES
    }
    return pa.table(
        {"user_id": owners, "last_time_ms": np.full(len(owners), LAST_HISTORY_MS), **bags}
    )
