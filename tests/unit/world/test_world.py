from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.schema import FILE_NAME, Column, DataSchema
from prismrec.data.semantic.vectors import open_vectors
from prismrec.data.source import open_data
from prismrec.data.world import SLOT_S, write_world
from prismrec.data.world_truth import NUMERIC, WorldOptions, best_auc, repeat_effect
from prismrec.data.world_vectors import NOISE
from prismrec.data.write import write_table
from tests.unit.world.conftest import DAYS, ROWS, SEED

History = dict[str, np.ndarray]


def digest(world: Path) -> str:
    files = sorted(path for path in world.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_rows_days_and_times(rows: pa.Table, world: Path) -> None:
    assert rows.num_rows == ROWS
    assert np.bincount(rows["day"].to_numpy()).tolist() == [ROWS // DAYS] * DAYS
    times = rows["time"].to_numpy()
    assert (np.diff(times) >= 0).all()
    assert (times // 86_400 == rows["day"].to_numpy()).all()
    assert (times % 86_400 // 3600 == rows["hour"].to_numpy()).all()
    source = open_data(str(world))  # the reader sees the rows and not the truth beside them
    assert source.num_rows == ROWS
    assert len(source.group_rows) == 16


def test_a_seed_says_everything(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_world(tmp_path / name, 203, 3, seed, progress=lambda *done: seen.append(done))
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert len(seen) == 3 * 12
    assert seen[11] == (203, 203)
    assert np.bincount(pq.read_table(tmp_path / "a" / "part-00000.parquet")["day"]).tolist() == [
        68,
        68,
        67,
    ]


def test_every_id_is_in_its_range(rows: pa.Table, world: Path) -> None:
    schema = DataSchema.parse((world / FILE_NAME).read_text(), "")
    for name, column in schema.columns.items():
        if column.num_ids is not None:
            values = rows[name].combine_chunks()
            ids = (values.flatten() if column.kind == "ids" else values).to_numpy()
            assert ids.min() >= 0, name
            assert ids.max() < column.num_ids, name


@pytest.mark.parametrize("task", ["like", "finish", "conversion"])
def test_labels_follow_their_probabilities(rows: pa.Table, task: str) -> None:
    chances, labels = rows[f"p_{task}"].to_numpy(), rows[task].to_numpy()
    for part in np.array_split(np.argsort(chances), 10):
        expected = chances[part].sum()
        spread = np.sqrt((chances[part] * (1 - chances[part])).sum())
        assert abs(labels[part].sum() - expected) < 4.5 * spread


def test_probabilities_are_those_of_the_written_laws(
    rows: pa.Table, truth: dict[str, pa.Table], history: History, world: Path
) -> None:
    said = json.loads((world / "_truth" / "truth.json").read_text())
    assert (said["rows"], said["days"], said["seed"]) == (ROWS, DAYS, SEED)
    # The history's effect, summed here behaviour by behaviour.
    lengths = np.diff(history["offsets"])
    owner = np.repeat(np.arange(ROWS), lengths)
    position = history["offsets"][1:][owner] - np.arange(len(owner))  # newest is 1
    correlation = np.stack(truth["categories"]["correlation"].to_numpy())
    weight = correlation[rows["category"].to_numpy()[owner], history["categories"]]
    fading = np.exp(-(position - 1) / said["position_decay"])
    fading *= np.exp(-history["times"] / 86_400 / said["gap_decay_days"])
    effect = said["history_strength"] * np.bincount(owner, weight * fading, minlength=ROWS)
    np.testing.assert_allclose(rows["true_history"], effect, atol=1e-4)
    # The log-odds of both tasks from their parts.
    user, item = rows["user_id"].to_numpy(), rows["item_id"].to_numpy()
    taste = rows["true_interest"].to_numpy().astype(float) + effect
    sign = np.where(truth["users"]["opposed"].to_numpy()[user], -1, 1)
    rest = {"like": repeat_effect(rows["exposures"].to_numpy()), "finish": np.zeros(ROWS)}
    for task, total in rest.items():
        total += truth["items"][f"quality_{task}"].to_numpy()[item]
        for name in ("advertiser", "city", "device", "hour"):
            table = truth["context"].filter(pc.field("column") == name)
            total += table[task].to_numpy()[rows[name].to_numpy()]
        for name, effect_of in NUMERIC.items():
            values = rows[name].to_numpy().astype(float)
            total += np.nan_to_num(getattr(effect_of, task)(values))
        taste_of_task = taste if task == "like" else sign * taste
        chances = rows[f"p_{task}"].to_numpy().astype(float)
        bias = np.log(chances / (1 - chances)) - total - taste_of_task
        np.testing.assert_allclose(bias, bias[0], atol=2e-3)
    np.testing.assert_allclose(
        rows["p_conversion"],
        rows["p_finish"].to_numpy() * rows["p_conversion_given_finish"].to_numpy(),
        rtol=1e-5,
    )


def test_a_history_is_what_the_user_liked_or_finished_before(
    rows: pa.Table, history: History
) -> None:
    columns = ("user_id", "item_id", "category", "time", "like", "finish")
    user, item, category, time, like, finish = (rows[name].to_numpy() for name in columns)
    behaved = (like == 1) | (finish == 1)
    lived: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for row in np.flatnonzero(behaved):
        lived[user[row]].append((time[row], item[row], category[row]))
    checked = 0
    for row in range(0, ROWS, 97):
        start, stop = history["offsets"][row : row + 2]
        seconds = time[row] - history["times"][start:stop].astype(np.int64)
        told = list(
            zip(
                seconds,
                history["items"][start:stop],
                history["categories"][start:stop],
                strict=True,
            )
        )
        slot_start = time[row] // SLOT_S * SLOT_S
        expected = [entry for entry in lived[user[row]] if entry[0] < slot_start][-50:]
        since_first_day = [entry for entry in told if entry[0] >= 0]
        assert since_first_day == expected
        assert (np.diff(seconds) >= 0).all()
        assert (seconds < slot_start).all()
        checked += len(expected)
    assert checked > 1000
    assert np.diff(history["offsets"]).max() == 50


def test_exposures_count_earlier_rows_of_the_pair(rows: pa.Table) -> None:
    pairs = rows["user_id"].to_numpy() * 10**6 + rows["item_id"].to_numpy()
    exposures = rows["exposures"].to_numpy().astype(int)
    first: dict[int, int] = {}
    seen: dict[int, int] = {}
    for pair, count in zip(pairs.tolist(), exposures.tolist(), strict=True):
        first.setdefault(pair, count)  # shown in the days before the first one
        assert count == first[pair] + seen.get(pair, 0)
        seen[pair] = seen.get(pair, 0) + 1
    assert (exposures > 0).mean() > 0.1


def test_tasks_agree_for_some_users_and_oppose_for_others(
    rows: pa.Table, truth: dict[str, pa.Table]
) -> None:
    opposed = truth["users"]["opposed"].to_numpy()
    assert opposed.mean() == pytest.approx(0.3, abs=0.05)
    per_row = opposed[rows["user_id"].to_numpy()]
    logit = {
        task: np.log(rows[f"p_{task}"].to_numpy()) - np.log1p(-rows[f"p_{task}"].to_numpy())
        for task in ("like", "finish")
    }
    agree = np.corrcoef(logit["like"][~per_row], logit["finish"][~per_row])[0, 1]
    oppose = np.corrcoef(logit["like"][per_row], logit["finish"][per_row])[0, 1]
    assert agree > 0.3
    assert oppose < -0.3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_opposed_share_is_a_parameter(tmp_path: Path, share: float) -> None:
    write_world(tmp_path / "w", 500, 2, 1, WorldOptions(opposed_share=share))
    assert (
        pq.read_table(tmp_path / "w" / "_truth" / "users.parquet")["opposed"].to_numpy().mean()
        == share
    )


def test_a_world_without_warmup_or_lasting_items(tmp_path: Path) -> None:
    options = WorldOptions(warmup_days=0, new_item_share=1.0, num_items=3, num_users=2)
    write_world(tmp_path / "w", 100, 1, 1, options)
    got = pq.read_table(tmp_path / "w" / "part-00000.parquet")
    assert got.num_rows == 100
    assert got["exposures"][0].as_py() == 0
    assert got["history_items"][0].as_py() == []


def test_ids_items_and_requests_are_as_promised(rows: pa.Table, truth: dict[str, pa.Table]) -> None:
    item, day = rows["item_id"].to_numpy(), rows["day"].to_numpy()
    born = truth["items"]["born_day"].to_numpy()
    assert (day >= born[item]).all()
    assert ((born >= 0) & (born == born.max())).any()
    assert (rows["category"].to_numpy() == truth["items"]["category"].to_numpy()[item]).all()
    # Zipf: exposures fall with the rank roughly as a power of it.
    counts = np.bincount(item, minlength=len(born))[np.argsort(truth["items"]["popularity_rank"])]
    groups = [counts[low : 2 * low].mean() for low in (1, 8, 64, 256)]
    slopes = np.diff(np.log(groups)) / np.log([8, 8, 4])
    assert (slopes < -0.6).all()
    assert (slopes > -1.3).all()
    # Rows of a request share user and time.
    for name in ("user_id", "time"):
        pairs = np.unique(np.stack([rows["request_id"].to_numpy(), rows[name].to_numpy()]), axis=1)
        assert (np.diff(pairs[0]) > 0).all()


def test_conversions_come_late_and_only_after_a_finish(
    rows: pa.Table, truth: dict[str, pa.Table]
) -> None:
    converted = rows["conversion"].to_numpy() == 1
    assert (rows["finish"].to_numpy()[converted] == 1).all()
    delay = rows["conversion_delay"].to_numpy()
    assert (np.isnan(delay) == ~converted).all()
    mean = truth["categories"]["mean_delay_s"].to_numpy()[rows["category"].to_numpy()]
    scaled = delay[converted] / mean[converted]
    assert scaled.mean() == pytest.approx(1.0, abs=4 / np.sqrt(converted.sum()))
    assert (scaled > 1).mean() == pytest.approx(np.exp(-1), abs=0.03)


def test_interests_drift(truth: dict[str, pa.Table]) -> None:
    first, last = (
        np.stack(truth["users"][f"{end}_interest"].to_numpy()) for end in ("first", "last")
    )
    # Seven nights lie between the first of the three days before and the last of the five.
    assert np.corrcoef(first.ravel(), last.ravel())[0, 1] == pytest.approx(0.95**7, abs=0.03)
    assert last.std() == pytest.approx(1.0, abs=0.05)


def mutual_information(x: np.ndarray, y: np.ndarray) -> float:
    cells = np.array([[((x == a) & (y == b)).mean() for b in (0, 1)] for a in (0, 1)])
    independent = cells.sum(1, keepdims=True) * cells.sum(0, keepdims=True)
    return float((cells * np.log2(np.where(cells > 0, cells, 1) / independent)).sum())


def test_the_target_category_tells_most_and_less_with_position(
    rows: pa.Table, history: History
) -> None:
    category, like = rows["category"].to_numpy(), rows["like"].to_numpy()
    target = np.bincount(category).argmax()
    ends = history["offsets"][1:][category == target]
    lengths = np.diff(history["offsets"])[category == target]
    labels = like[category == target]

    def row(of: int) -> np.ndarray:
        information = []
        for position in range(1, 11):
            exists = lengths >= position
            there = np.zeros(len(labels), int)
            there[exists] = history["categories"][ends[exists] - position] == of
            information.append(mutual_information(there, labels))
        return np.array(information)

    own, unrelated = row(target), row((target + 5) % 24)
    assert np.corrcoef(own, np.exp(-np.arange(10) / 3.0))[0, 1] > 0.9
    assert own[0] > 4 * own[8]
    assert own[0] > 10 * unrelated.max()


def test_best_auc_equals_counting_pairs(world: Path, rows: pa.Table) -> None:
    last = rows.filter(pc.field("day") == DAYS - 1)
    chances, labels = last["p_like"].to_numpy(), last["like"].to_numpy() == 1
    better = (chances[labels][:, None] > chances[~labels]).mean()
    ties = (chances[labels][:, None] == chances[~labels]).mean()
    assert best_auc(world, "like", [f"day == {DAYS - 1}"]) == pytest.approx(
        better + ties / 2, abs=1e-12
    )
    assert 0.8 < best_auc(world, "like") < 0.95


def test_mistakes(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 'lik': did you mean 'like'"):
        best_auc(world, "lik")
    with pytest.raises(UserError, match="task 'like' has one class only in these rows"):
        best_auc(world, "like", ["like == 1"])
    toy = DataSchema(name="toy", columns={"like": Column(kind="label")})
    write_table(tmp_path / "toy", pa.table({"like": [1, 0]}), toy)
    with pytest.raises(UserError, match="is no synthetic world"):
        best_auc(tmp_path / "toy", "like")
    with pytest.raises(UserError, match="a data set lies here already"):
        write_world(tmp_path / "toy", 100, 1, 1)
    with pytest.raises(UserError, match="31 rows over 2 days are too few"):
        write_world(tmp_path / "new", 31, 2, 1)
    with pytest.raises(UserError, match="opposed_share: a share between 0 and 1"):
        WorldOptions(opposed_share=1.5)
    with pytest.raises(
        UserError, match="new_item_share: a share between 0 and 1 is needed, got -1"
    ):
        WorldOptions(new_item_share=-1)
    with pytest.raises(UserError, match="num_categories: at least 5"):
        WorldOptions(num_categories=2)


def test_a_world_replaces_a_world_and_an_interrupt_leaves_the_old_one(tmp_path: Path) -> None:
    write_world(tmp_path / "w", 64, 1, 1)
    before = digest(tmp_path / "w")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "w", 64, 1, 2, progress=interrupt)
    assert digest(tmp_path / "w") == before
    write_world(tmp_path / "w", 64, 1, 2)
    assert digest(tmp_path / "w") != before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_vectors_are_those_of_the_truth_with_noise(
    world: Path, truth: dict[str, pa.Table], tmp_path: Path
) -> None:
    """Everyone has one, and it is new only in its noise; the same world gives the same bytes."""
    for name, column, width in (("items", "vector", 8), ("users", "first_interest", 8)):
        opened = open_vectors(world / "_vectors" / name)
        ids, vectors = (np.concatenate(each) for each in zip(*opened.blocks(), strict=True))
        true = np.stack(truth[name][column].to_numpy())
        assert ids.tolist() == list(range(len(true)))
        assert vectors.shape == (len(true), width)
        noise = vectors - true
        assert noise.std() / true.std() == pytest.approx(NOISE, rel=0.1)
        assert abs((noise * true).mean()) < 0.02 * true.var()
    write_world(tmp_path / "again", ROWS, DAYS, SEED)
    parts = (place / "_vectors/items/part-00000.parquet" for place in (world, tmp_path / "again"))
    assert len({part.read_bytes() for part in parts}) == 1
