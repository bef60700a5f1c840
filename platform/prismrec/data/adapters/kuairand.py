"""KuaiRand-Pure (Kuaishou short video): standard-policy log, user and video features, histories.

Everything that a feature column holds was known when the video was shown: what the viewer
then did (`play_time_ms` and the stay times) is of kind `other`, rates are over earlier days,
and a history is left empty on rows that are not later than its last behaviour.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prismrec.data.adapters.columns import Columns
from prismrec.data.adapters.earlier_days import lift_before
from prismrec.data.adapters.item_vectors import write_item_vectors
from prismrec.data.adapters.source import (
    DEFAULT_OPTIONS,
    PrepareOptions,
    find_file,
    find_files,
    read_csv,
    text_columns,
    unreadable,
)
from prismrec.data.adapters.vocabulary import MISSING, Vocabulary
from prismrec.data.schema import DataSchema

HOLDS = (
    "log_standard_*.csv, user_features_pure.csv and video_features_basic_pure.csv of KuaiRand-Pure, "
    "and optionally histories_4_09_to_4_24.parquet and item_vectors_*.npz"
)
SOURCE = "KuaiRand-Pure, Kuaishou and USTC (CIKM 2022), CC BY-SA 4.0"

LABELS = (
    "is_click",
    "long_view",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "is_profile_enter",
)
LIFTS = ("is_click", "long_view", "is_like")
OUTCOMES = ("play_time_ms", "profile_stay_time", "comment_stay_time")
LOG = ("user_id", "video_id", "date", "hourmin", "time_ms", "duration_ms", "is_rand", "tab")
USER_IDS = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{number}" for number in range(18)),
)
USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_IDS = ("author_id", "music_id", "music_type", "video_type", "upload_type", "visible_status")
HISTORIES = ("watch_seq", "like_seq", "long_watch_seq")
FINISHED_SHARE = 0.95
DURATION_EDGES_S = (5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300)


def prepare(source: Path, out: Path, options: PrepareOptions = DEFAULT_OPTIONS) -> DataSchema:
    """Join the log with the features of its users and videos and write it into `out`.

    Vectors of videos, where the source has them, are written beside it, see `write_item_vectors`.

    Raises:
        UserError: a file is missing, cannot be parsed or lacks a column, or holds no vectors.
    """
    log, users, videos, histories = _read(source)
    user_rows = pc.index_in(log["user_id"], value_set=users["user_id"])
    video_rows = pc.index_in(log["video_id"], value_set=videos["video_id"])
    columns = Columns()
    _add_context(columns, log)
    _add_users(columns, log, users, user_rows)
    video_ids = _add_videos(columns, log, videos, video_rows, histories)
    tag_ids = _add_tags(columns, videos["tag"], video_rows)
    _add_outcomes(columns, log)
    _add_earlier_days(columns, log, pc.take(videos["author_id"], video_rows))
    if histories is not None:
        tag_of_video = tag_ids.encode(_text(videos["tag"]))
        videos = pa.table({"video_id": videos["video_id"], "tag": tag_of_video})
        _add_histories(columns, log, histories, video_ids, (videos, tag_ids, video_rows))
    schema = columns.write(out, "kuairand", SOURCE)
    write_item_vectors(source, out, "item_vectors_*.npz", video_ids)
    return schema


def _read(source: Path) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table | None]:
    """Log, users, videos, and the histories where the source has them."""
    needed = [*LOG, *LABELS, *OUTCOMES]
    logs = [
        read_csv(path, needed).select(needed)
        for path in find_files(source, ["log_standard_*.csv"], HOLDS)
    ]
    users = read_csv(
        find_file(source, "user_features_pure.csv", HOLDS), ["user_id", *USER_IDS, *USER_COUNTS]
    )
    videos = read_csv(
        find_file(source, "video_features_basic_pure.csv", HOLDS),
        ["video_id", *VIDEO_IDS, "tag", "upload_dt", "server_width", "server_height"],
        text_columns(["tag"]),
    )
    path = source / "histories_4_09_to_4_24.parquet"
    if not path.is_file():
        return pa.concat_tables(logs), users, videos, None
    try:
        histories = pq.read_table(path, columns=["user_id", "last_time_ms", *HISTORIES])
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from None
    return pa.concat_tables(logs), users, videos, histories


def _add_context(columns: Columns, log: pa.Table) -> None:
    days = _calendar(log["date"])
    columns.add("time_ms", "time", log["time_ms"], "milliseconds since 1970, UTC")
    columns.add("date", "other", log["date"], "day in China as 20220425")
    columns.add_ids("tab", log["tab"], "scenario the video was shown in: the domain")
    columns.add_ids("hour", pc.divide(log["hourmin"], 100), "hour of the day in China")
    # 1970-01-01 was a Thursday.
    weekday = (days.astype(np.int64) + 3) % 7
    columns.add_ids("weekday", pa.array(weekday), "0 is Monday")
    columns.add("is_rand", "other", log["is_rand"], "1: shown at random, 0: by the policy")


def _add_users(columns: Columns, log: pa.Table, users: pa.Table, rows: pa.ChunkedArray) -> None:
    user_ids = Vocabulary.of(users["user_id"], log["user_id"])
    columns.add_encoded("user_id", user_ids.encode(log["user_id"]), user_ids)
    for name in USER_IDS:
        columns.add_ids(name, pc.take(_text(users[name]), rows))
    for name in USER_COUNTS:
        columns.add_count(name, pc.take(users[name], rows), "of the user")


def _add_videos(
    columns: Columns,
    log: pa.Table,
    videos: pa.Table,
    rows: pa.ChunkedArray,
    histories: pa.Table | None,
) -> Vocabulary:
    behaviours = [] if histories is None else [histories[name] for name in HISTORIES]
    video_ids = Vocabulary.of(videos["video_id"], log["video_id"], *behaviours)
    columns.add_encoded("video_id", video_ids.encode(log["video_id"]), video_ids)
    for name in VIDEO_IDS:
        columns.add_ids(name, pc.take(_text(videos[name]), rows))
    width, height = pc.take(videos["server_width"], rows), pc.take(videos["server_height"], rows)
    columns.add("aspect", "number", pc.divide(height, width), "height over width of the video")
    duration = _duration(log)
    seconds = pc.divide(pc.cast(duration, pa.float64()), 1000.0)
    bucket = np.searchsorted(DURATION_EDGES_S, seconds.to_numpy(), side="right")
    columns.add_ids(
        "duration_bucket",
        pa.array(bucket, mask=duration.is_null().to_numpy()),
        f"how many of the lengths {DURATION_EDGES_S} seconds the video reaches",
    )
    columns.add_count("duration_s", seconds, "length of the video in seconds")
    uploaded = pc.take(videos["upload_dt"], rows).cast(pa.date32()).cast(pa.int32()).to_numpy()
    age = _calendar(log["date"]).astype(np.float64) - uploaded
    columns.add("video_age_days", "number", pa.array(age, from_pandas=True), "days since upload")
    return video_ids


def _add_tags(columns: Columns, tags: pa.ChunkedArray, rows: pa.ChunkedArray) -> Vocabulary:
    combinations = _text(pc.take(tags, rows))
    all_tags = Vocabulary.of(_text(tags))
    columns.add_encoded(
        "tag", all_tags.encode(combinations), all_tags, "the video's tags as one value"
    )
    bags = pc.split_pattern(combinations, ",")
    single = Vocabulary.of(bags)
    columns.add_encoded("tags", single.encode_bags(bags), single, "the video's tags one by one")
    return all_tags


def _add_outcomes(columns: Columns, log: pa.Table) -> None:
    for name in LABELS:
        columns.add(name, "label", log[name])
    duration = _duration(log)
    finish = pc.greater_equal(log["play_time_ms"], pc.multiply(duration, FINISHED_SHARE))
    columns.add(
        "finish",
        "label",
        pc.cast(finish, pa.int8()),
        f"played for {FINISHED_SHARE} of its length; null where the length is not known",
    )
    for name in OUTCOMES:
        columns.add(name, "other", log[name], "what the viewer did: never a feature")


def _add_earlier_days(columns: Columns, log: pa.Table, authors: pa.ChunkedArray) -> None:
    days = _calendar(log["date"]).astype(np.int64)
    days -= days.min(initial=days[0])
    owners = {"user": log["user_id"], "video": log["video_id"], "author": authors}
    for owner, ids in owners.items():
        encoded = pc.dictionary_encode(ids, null_encoding="encode").combine_chunks()
        keys = encoded.indices.to_numpy().astype(np.int64)
        for label in LIFTS:
            outcome = log[label].to_numpy().astype(np.float64)
            shown, lift = lift_before(keys, days, outcome)
            columns.add(
                f"{owner}_{label}_lift",
                "number",
                lift,
                f"smoothed rate of {label} of the {owner} less everyone's, over earlier days",
            )
        columns.add(
            f"{owner}_shown", "number", shown, f"ln(1 + exposures of the {owner} on earlier days)"
        )


def _add_histories(
    columns: Columns,
    log: pa.Table,
    histories: pa.Table,
    video_ids: Vocabulary,
    tagged: tuple[pa.Table, Vocabulary, pa.ChunkedArray],
) -> None:
    """The user's behaviours before the log, most recent last, and how the video relates to them."""
    videos, tag_ids, video_rows = tagged
    rows = pc.index_in(log["user_id"], value_set=histories["user_id"])
    is_past = pc.less(pc.take(histories["last_time_ms"], rows), log["time_ms"])
    rows = pc.if_else(pc.fill_null(is_past, False), rows, pa.scalar(None, rows.type))
    tag_of_video = videos["tag"].combine_chunks()
    target_tag = pc.take(tag_of_video, video_rows)
    for name in HISTORIES:
        what = f"the user's last {name.removesuffix('_seq')} videos before the log, newest last"
        watched = video_ids.encode_bags(histories[name])
        columns.add_encoded(name, pc.take(watched, rows.combine_chunks()), video_ids, what)
        tags = pc.take(tag_of_video, pc.index_in(_flat(histories[name]), videos["video_id"]))
        bags = pa.ListArray.from_arrays(watched.offsets, tags.fill_null(MISSING))
        taken = pc.take(bags, rows.combine_chunks())
        short = name.removesuffix("_seq")
        columns.add_encoded(f"{short}_tags", taken, tag_ids, f"`tag` of each of {name}")
        columns.add(
            f"{short}_same_tag",
            "number",
            np.log1p(_count_equal(taken, target_tag)),
            f"ln(1 + videos of {name} that have this video's tag)",
        )
        columns.add(
            f"{short}_length", "number", np.log1p(_lengths(taken)), f"ln(1 + length of {name})"
        )


def _count_equal(bags: pa.ListArray, targets: pa.ChunkedArray) -> NDArray[np.float32]:
    """(rows,) how many values of each bag equal the row's target; a missing target equals none."""
    lengths = _lengths(bags)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    wanted = targets.fill_null(MISSING - 1).to_numpy()[owner]
    hits = _flat(bags).to_numpy() == wanted
    return np.bincount(owner[hits], minlength=len(lengths)).astype(np.float32)


def _lengths(bags: pa.ListArray) -> NDArray[np.int32]:
    return pc.fill_null(pc.list_value_length(bags), 0).to_numpy(zero_copy_only=False)


def _flat(bags: pa.Array | pa.ChunkedArray) -> pa.Array:
    flat = pc.list_flatten(bags)
    return flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat


def _duration(log: pa.Table) -> pa.ChunkedArray:
    """Length of the video in milliseconds; the log writes 0 where it is not known."""
    duration = log["duration_ms"]
    return pc.if_else(pc.greater(duration, 0), duration, pa.scalar(None, duration.type))


def _calendar(dates: pa.ChunkedArray) -> NDArray[np.int32]:
    """Days since 1970 of dates written as 20220425."""
    days = pc.strptime(pc.cast(dates, pa.string()), format="%Y%m%d", unit="s")
    return days.cast(pa.date32()).cast(pa.int32()).to_numpy()


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Raw categories: whole numbers written as decimals become integers, empty text null."""
    if pa.types.is_floating(column.type):
        return column.cast(pa.int64())
    if pa.types.is_string(column.type):
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return column
