from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.adapters import kuairand, prepare
from prismrec.data.adapters.vocabulary import Vocabulary
from prismrec.data.schema import FILE_NAME, DataSchema
from prismrec.data.semantic.vectors import open_vectors
from prismrec.data.source import open_data
from tests.unit.data_adapters.reading import read

LOG = """user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,\
long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab
70,500,20220425,1200,1650859200000,1,0,0,0,0,0,1,9500,10000,0,0,0,0,1
71,501,20220425,1300,1650862800000,0,0,0,0,0,0,0,100,0,0,7,0,0,4
70,501,20220426,0,1650902400000,1,1,0,0,0,0,0,9000,10000,0,0,1,0,1
"""
USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,"
    "register_days,register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18)) + "\n"
    '70,full_active,0,-124,1,7,"(0,10]",0,0,3,"[1,5)",99,91-180,'
    + ",".join("1" for _ in range(18))
    + "\n"
    "72,low_active,0,1,0,0,0,5,1,0,0,9,8-14," + ",".join(["2"] * 4 + [""] + ["2"] * 13) + "\n"
)
VIDEOS = """video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,\
server_height,music_id,music_type,tag
500,9,NORMAL,2022-04-20,Web,0.0,10000.0,720.0,1440.0,33,9.0,"3,62"
501,8,AD,2022-04-25,Web,0.0,,720.0,720.0,44,,
502,9,NORMAL,2022-04-25,Web,0.0,8000.0,720.0,720.0,44,4.0,3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "pure"
    path.mkdir()
    with gzip.open(path / "log_standard_4_22_to_5_08_pure.csv.gz", "wt") as file:
        file.write(LOG)
    (path / "user_features_pure.csv").write_text(USERS)
    (path / "video_features_basic_pure.csv").write_text(VIDEOS)
    histories = {
        "user_id": [70],
        "history_len": [3],
        "last_time_ms": [1650859200001],  # one millisecond after the user's first row
        "watch_seq": [[502, 500, 500]],
        "like_seq": pa.array([[]], pa.list_(pa.int64())),
        "long_watch_seq": [[501, 500]],
    }
    pq.write_table(pa.table(histories), path / "histories_4_09_to_4_24.parquet")
    return path


def test_a_tiny_log_by_hand(source: Path, tmp_path: Path) -> None:
    schema = prepare("kuairand", source, tmp_path / "out")
    rows = read(tmp_path / "out")
    got = rows.to_pydict()
    assert rows.num_rows == 3
    assert got["user_id"] == [0, 1, 0]  # 70, 71, 70 among 70, 71, 72
    assert got["video_id"] == [0, 1, 1]
    assert schema.columns["user_id"].num_ids == 3
    assert schema.columns["video_id"].num_ids == 3
    assert got["user_active_degree"] == [0, None, 0]  # user 71 has no features
    assert got["onehot_feat4"] == [0, None, 0]
    assert got["follow_user_num"] == [7, None, 7]
    assert got["log1p_follow_user_num"][0] == pytest.approx(np.log(8))
    assert got["hour"] == [1, 2, 0]
    assert got["weekday"] == [0, 0, 1]  # 25 April 2022 was a Monday
    assert got["aspect"] == [2.0, 1.0, 1.0]
    assert got["video_age_days"] == [5, 0, 1]
    assert got["music_type"] == [0, None, None]
    assert got["tag"] == [1, None, None]  # "3" is 0, "3,62" is 1
    assert got["tags"] == [[0, 1], None, None]
    assert got["duration_s"] == [10.0, None, 10.0]
    assert got["duration_bucket"] == [0, None, 0]
    assert got["finish"] == [1, None, 0]  # 0.95 of its length counts, 0.9 does not
    assert got["is_click"] == [1, 0, 1]
    # The first row is not later than the history's last behaviour; user 71 has no history.
    assert got["watch_seq"] == [None, None, [2, 0, 0]]
    assert got["watch_tags"] == [None, None, [0, 1, 1]]
    assert got["long_watch_tags"] == [None, None, [-1, 1]]
    assert got["like_seq"] == [None, None, []]
    assert got["watch_length"] == pytest.approx([0, 0, np.log(4)])
    # On 26 April user 70 has one click of one exposure, everyone one of two.
    assert got["user_shown"][:2] == [None, None]
    assert got["user_shown"][2] == pytest.approx(np.log(2))
    assert got["user_is_click_lift"][2] == pytest.approx((1 + 20 * 0.5) / 21 - 0.5)
    assert got["video_is_click_lift"][2] == pytest.approx((0 + 20 * 0.5) / 21 - 0.5)
    assert DataSchema.parse((tmp_path / "out" / FILE_NAME).read_text(), "") == schema


def test_same_tag_counts_by_hand(source: Path, tmp_path: Path) -> None:
    log = LOG.replace("70,501,20220426", "70,500,20220426")
    with gzip.open(source / "log_standard_4_22_to_5_08_pure.csv.gz", "wt") as file:
        file.write(log)
    kuairand.prepare(source, tmp_path / "out")
    got = read(tmp_path / "out").to_pydict()
    assert got["watch_same_tag"] == pytest.approx([0, 0, np.log(3)])
    assert got["long_watch_same_tag"] == pytest.approx([0, 0, np.log(2)])


def test_what_the_viewer_did_is_no_feature(source: Path, tmp_path: Path) -> None:
    (source / "histories_4_09_to_4_24.parquet").unlink()
    schema = kuairand.prepare(source, tmp_path / "out")
    for name in ("play_time_ms", "profile_stay_time", "comment_stay_time"):
        assert schema.columns[name].kind == "other"
    assert not any("seq" in name for name in schema.columns)


def test_vectors_get_the_ids_of_the_data_set(source: Path, tmp_path: Path) -> None:
    """Raw videos 500, 501, 502 are 0, 1, 2; a vector of another video has no place."""
    vectors = np.array([[3, 3.5], [9, 9], [1, 1.5]], np.float32)
    np.savez(source / "item_vectors_graph.npz", ids=np.array([502, 77, 500]), vectors=vectors)
    schema = prepare("kuairand", source, tmp_path / "out")
    opened = open_vectors(tmp_path / "out/_vectors/graph")
    ids, found = next(iter(opened.blocks()))
    assert ids.tolist() == [0, 2]
    assert found.tolist() == [[1, 1.5], [3, 3.5]]
    assert open_data(tmp_path / "out").schema == schema, "they are no rows of the data set"
    assert sum(open_data(tmp_path / "out").group_rows) == 3


def test_files_that_hold_no_vectors_are_named(source: Path, tmp_path: Path) -> None:
    np.savez(source / "item_vectors_x.npz", ids=np.array([500]))
    with pytest.raises(UserError, match=r"item_vectors_x.npz: one array of integers"):
        prepare("kuairand", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_name_the_file_and_what_should_be_there(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"no such directory; --source should name one that holds log_sta"
    ):
        prepare("kuairand", tmp_path / "nowhere", out)
    log = source / "log_standard_4_22_to_5_08_pure.csv.gz"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"log_standard.*cannot be parsed"):
        prepare("kuairand", source, out)
    log.write_bytes(gzip.compress(LOG.replace("is_like", "liked").encode()))
    with pytest.raises(
        UserError, match=r"log_standard.*column 'is_like' is missing; the file has user_id"
    ):
        prepare("kuairand", source, out)
    log.write_bytes(whole)
    (source / "histories_4_09_to_4_24.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"histories.*cannot be parsed"):
        prepare("kuairand", source, out)
    (source / "user_features_pure.csv").unlink()
    with pytest.raises(UserError, match=r"no file 'user_features_pure.csv' \(or with .gz\)"):
        prepare("kuairand", source, out)
    assert not out.exists()


Real = Callable[[str, str], Path]


def test_real_rows_and_rates(real: Real) -> None:
    rows = read(real("kuairand", "kuairand"))
    assert rows.num_rows == 185_061
    rates = {
        "is_click": (0.44, 0.005),
        "long_view": (0.31, 0.005),
        "is_profile_enter": (0.019, 5e-4),
        "is_like": (0.017, 5e-4),
        "is_comment": (0.0025, 5e-5),
        "is_follow": (0.0013, 5e-5),
        "is_forward": (0.00078, 5e-6),
        "is_hate": (0.00085, 5e-6),
        "finish": (0.165, 0.001),
    }
    for name, (rate, tolerance) in rates.items():
        values = rows[name].drop_null().to_numpy()
        assert values.mean() == pytest.approx(rate, abs=tolerance), name
    assert rows["finish"].null_count == 2793  # of unknown length
    times = rows["time_ms"].to_numpy()
    assert (np.diff(times) >= 0).all()


def test_real_joins_against_the_files(real: Real, raw: Callable[[str], Path]) -> None:
    path = real("kuairand", "kuairand")
    rows = read(path).slice(0, 1).to_pylist()[0]

    def value(column: str) -> object:
        return Vocabulary.read(path, column).values[rows[column]].as_py()

    # First line of the log: 712,5239,20220425,0,1650812741436,1,...,61802,49866,...
    assert (value("user_id"), value("video_id"), rows["time_ms"]) == (712, 5239, 1650812741436)
    assert (rows["is_click"], rows["play_time_ms"], rows["finish"]) == (1, 61802, 1)
    # Video 5239: author 8079479, LongImport, 49866 ms, 960 x 720, music 9164210529, tag 39.
    assert (value("author_id"), value("upload_type"), value("tag")) == (8079479, "LongImport", "39")
    assert value("music_id") == 9164210529
    assert rows["aspect"] == pytest.approx(0.75)
    assert rows["duration_s"] == pytest.approx(49.866)
    assert rows["video_age_days"] == 14  # uploaded on 11 April
    # User 712: full_active, follows 158 in (150,250], onehot_feat3 = 478.
    assert (value("user_active_degree"), value("follow_user_num_range")) == (
        "full_active",
        "(150,250]",
    )
    assert (rows["follow_user_num"], value("onehot_feat3")) == (158, 478)
    histories = pq.read_table(raw("kuairand") / "histories_4_09_to_4_24.parquet")
    history = histories.filter(pc.field("user_id") == 712).to_pylist()[0]
    videos = Vocabulary.read(path, "watch_seq").values
    assert [videos[i].as_py() for i in rows["watch_seq"]] == history["watch_seq"]


def test_real_vocabularies_give_the_raw_columns_back(
    real: Real, raw: Callable[[str], Path]
) -> None:
    path = real("kuairand", "kuairand")
    rows = read(path, columns=["user_id", "video_id", "tab", "time_ms"])
    log = csv.read_csv(raw("kuairand") / "log_standard_4_22_to_5_08_pure.csv.gz")
    log = log.take(pc.sort_indices(log, [("time_ms", "ascending")]))
    assert rows["time_ms"].equals(log["time_ms"])
    for name in ("user_id", "video_id", "tab"):
        values = Vocabulary.read(path, name).values
        assert (values.take(rows[name].combine_chunks()).to_numpy() == log[name].to_numpy()).all()


def test_real_lifts_use_earlier_days_only(real: Real) -> None:
    rows = read(real("kuairand", "kuairand"))
    dates = rows["date"].to_numpy()
    sample = np.random.default_rng(0).choice(rows.num_rows, 40, replace=False)
    for owner, label in (("user", "is_click"), ("video", "is_like"), ("author", "long_view")):
        keys, outcome = rows[f"{owner}_id"].to_numpy(), rows[label].to_numpy()
        shown, lift = rows[f"{owner}_shown"], rows[f"{owner}_{label}_lift"]
        for row in sample.tolist():
            before = dates < dates[row]
            if not before.any():
                assert shown[row].as_py() is None
                assert lift[row].as_py() is None
                continue
            own = before & (keys == keys[row])
            mean = outcome[before].mean()
            expected = (outcome[own].sum() + 20 * mean) / (own.sum() + 20) - mean
            assert shown[row].as_py() == pytest.approx(np.log1p(own.sum()))
            assert lift[row].as_py() == pytest.approx(expected, abs=1e-6)
