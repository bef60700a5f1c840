"""A few hundred made-up rows in the files and columns of KuaiRand-Pure."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is made up."""

    rows: int = ROWS
    users: int = USERS
    videos: int = VIDEOS


def write_small_kuairand(out: Path, sizes: Sizes | None = None) -> DataSchema:
    """Write the source beside `out`, and what the adapter makes of it into `out`."""
    sizes = sizes or Sizes()
    source = out.parent / f"{out.name}-source"
    source.mkdir(parents=True)
    random = np.random.default_rng(5)
    pc.write_csv(_log(random, sizes), source / "log_standard_4_22_to_5_08_pure.csv")
    pc.write_csv(_users(random, sizes), source / "user_features_pure.csv")
    pc.write_csv(_videos(random, sizes), source / "video_features_basic_pure.csv")
    pq.write_table(_histories(random, sizes), source / "histories_4_09_to_4_24.parquet")
    ids = np.arange(5, sizes.videos)
    vectors = random.normal(size=(len(ids), 8)).astype(np.float32)
    np.savez(source / "item_vectors_graph.npz", item_ids=ids, item_vectors=vectors)
    return kuairand.prepare(source, out)


def _log(random: np.random.Generator, sizes: Sizes) -> pa.Table:
    day = np.sort(np.arange(sizes.rows) % len(DAYS))
    time = FIRST_MS + day * DAY_MS + random.integers(0, DAY_MS, sizes.rows)
    columns = {
        "user_id": random.integers(0, sizes.users, sizes.rows),
        "video_id": random.integers(0, sizes.videos, sizes.rows),
        "date": np.array(DAYS)[day],
        "hourmin": random.integers(0, 24, sizes.rows) * 100,
        "time_ms": time,
        "duration_ms": random.integers(1, 90, sizes.rows) * 1000,
        "is_rand": np.zeros(sizes.rows, np.int64),
        "tab": random.integers(0, 5, sizes.rows),
    }
    for name in kuairand.LABELS:
        columns[name] = (random.random(sizes.rows) < RATES.get(name, 0.02)).astype(np.int64)
    for name in kuairand.OUTCOMES:
        columns[name] = random.integers(0, 1000, sizes.rows)
    return pa.table(columns)


def _users(random: np.random.Generator, sizes: Sizes) -> pa.Table:
    drawn = {
        name: random.integers(0, 4, sizes.users)
        for name in (*kuairand.USER_IDS, *kuairand.USER_COUNTS)
    }
    return pa.table({"user_id": np.arange(sizes.users), **drawn})


def _videos(random: np.random.Generator, sizes: Sizes) -> pa.Table:
    drawn = {name: random.integers(0, 6, sizes.videos) for name in kuairand.VIDEO_IDS}
    return pa.table(
        {
            "video_id": np.arange(sizes.videos),
            **drawn,
            "tag": [str(tag) for tag in random.integers(0, TAGS, sizes.videos)],
            "upload_dt": ["2022-04-20"] * sizes.videos,
            "server_width": np.full(sizes.videos, 720),
            "server_height": random.integers(700, 1300, sizes.videos),
        }
    )


def _histories(random: np.random.Generator, sizes: Sizes) -> pa.Table:
    owners = np.arange(0, sizes.users, 2)  # the others have none
    bags = {
        name: [
            random.integers(0, sizes.videos, size) for size in random.integers(0, 9, len(owners))
        ]
        for name in kuairand.HISTORIES
    }
    return pa.table(
        {"user_id": owners, "last_time_ms": np.full(len(owners), LAST_HISTORY_MS), **bags}
    )
