"""Statistics of numbers: what they are, what they must not see, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import Recipe, UserError
from prismrec.data.encode.numbers.encoders import NumberEncoder
from prismrec.data.encode.numbers.sample import Sample, quantiles, share_error
from prismrec.data.encode.numbers.statistics import StatisticsFile
from prismrec.data.encode.tables import encoders_of
from prismrec.data.fit_numbers import fit_numbers, write_statistics
from prismrec.data.source import open_data
from tests.unit.data import small

TRAINING = ["key < 4000"]


def recipe(path: Path, *numbers: Any, train: list[str] | None = None, **more: Any) -> Recipe:
    features = {"dense": [], "numbers": list(numbers), "statistics": str(path / "numbers.json")}
    splits = {"train": TRAINING if train is None else train, "test": ["key >= 4000"]}
    return small.recipe(path, features=features | more, splits=splits)


def data(path: Path, held_out: float = 7.0, group_rows: int = 700) -> Path:
    """5,000 rows: prices 0.5, 1.0, ... 2000 of training rows, one in ten missing, others held out."""
    key = np.arange(5000)
    price = np.where(key < 4000, (key + 1) / 2, held_out)
    columns = {
        "key": pa.array(key),
        "item": pa.array(key % 50),
        "price": pa.array(price, mask=(key % 10 == 3) & (key < 4000)),
        "click": pa.array(key % 2),
        "at": pa.array(key),
    }
    path.mkdir(parents=True, exist_ok=True)
    small.write_table(path, pa.table(columns))
    pq.write_table(pa.table(columns), path / "part-0.parquet", row_group_size=group_rows)
    return path


def fitted(chosen: Recipe, **options: Any) -> StatisticsFile:
    return fit_numbers(chosen, open_data(chosen.data.path), **options)


def test_quantiles_of_a_column_that_fits_the_sample(tmp_path: Path) -> None:
    """3,600 values, the k-th of which is known; the 0.1 % quantile is the 4th, as 3.6 rounded up."""
    chosen = recipe(data(tmp_path), {"name": "price", "encoding": {"kind": "mnse", "levels": 5}})
    found = fitted(chosen).numbers["price"]
    values = np.array([(k + 1) / 2 for k in range(4000) if k % 10 != 3])
    assert (found.values, found.missing, found.infinite, found.sample) == (3600, 400, 0, 3600)
    assert (found.least, found.most, found.mean) == (0.5, 2000.0, pytest.approx(values.mean()))
    assert (found.low, found.high) == (values[3], values[3596])
    assert found.shares == [0.2, 0.4, 0.6, 0.8]
    assert found.quantiles == [values[719], values[1439], values[2159], values[2879]]


def test_held_out_rows_change_nothing(tmp_path: Path) -> None:
    number = {"name": "price"}
    near, far = (
        fitted(recipe(data(tmp_path / str(value), value), number)).numbers for value in (7.0, 1e9)
    )
    assert near == far
    seen = fitted(recipe(data(tmp_path / "seen", 1e9), number, train=[])).numbers
    assert seen["price"].high == 1e9, "as training rows they would have changed it"


def test_row_groups_and_ranks_change_nothing(tmp_path: Path) -> None:
    number = {"name": "price"}
    found = [
        fitted(recipe(data(tmp_path / str(rows), group_rows=rows), number), size=500)
        for rows in (5000, 64)
    ]
    assert found[0].numbers == found[1].numbers
    assert found[0].numbers["price"].sample == 500
    assert found[0].rows == 4000


def test_a_sample_is_near_the_whole(tmp_path: Path) -> None:
    number = {"name": "price", "encoding": {"kind": "quantile_bucket", "buckets": 4}}
    chosen = recipe(data(tmp_path), number)
    whole, part = (fitted(chosen, size=size).numbers["price"] for size in (10_000, 900))
    error = [share_error(900, 3600, share) for share in whole.shares]
    for exact, told, deviation in zip(whole.quantiles, part.quantiles, error, strict=True):
        assert exact != told
        assert abs(exact - told) / 2000 < 4 * deviation


@given(st.integers(1, 60), st.integers(0, 200), st.integers(1, 50), st.integers(0, 9))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_a_sample_is_the_rows_of_the_least_hashes(
    size: int, rows: int, cut: int, seed: int
) -> None:
    from prismrec.data.encode.ids import mix64

    values = np.random.default_rng(seed).normal(size=rows)
    sample = Sample(size, seed)
    for start in range(0, rows, cut):
        numbers = np.arange(start, min(start + cut, rows))
        sample.add(values[numbers], numbers)
    order = np.argsort(mix64(np.arange(rows).view(np.uint64), seed))
    assert sample.values().tolist() == np.sort(values[order[:size]]).tolist()
    assert sample.count == rows


def test_a_sample_shows_no_order() -> None:
    """Of 40 samples of rising values, the mean is as far from the middle as chance has it."""
    values = np.arange(20_000.0)
    means = []
    for seed in range(40):
        sample = Sample(400, seed)
        sample.add(values, np.arange(20_000))
        means.append(sample.values().mean())
    deviation = 20_000 / np.sqrt(12 * 400)
    assert abs(np.mean(means) - 10_000) < 3 * deviation / np.sqrt(40)
    assert np.std(means) == pytest.approx(deviation, rel=0.35)


def test_quantiles_are_values() -> None:
    rising = np.array([1.0, 1.0, 5.0, 9.0])
    assert quantiles(rising, (0.0, 0.5, 0.500001, 0.75, 1.0)) == [1.0, 1.0, 5.0, 5.0, 9.0]


def test_what_is_fitted_is_what_encodes(tmp_path: Path) -> None:
    numbers = [
        {"name": "rank", "column": "price", "encoding": {"kind": "mnse", "levels": 5}},
        {"name": "even", "column": "price", "encoding": {"kind": "mnse", "quantiser": "linear"}},
        {"name": "group", "column": "price", "encoding": {"kind": "quantile_bucket", "buckets": 4}},
        {"name": "soft", "column": "price", "encoding": {"kind": "autodis", "scale": "log1p"}},
        {"name": "bins", "column": "price", "encoding": {"kind": "piecewise_linear", "bins": 4}},
    ]
    chosen = recipe(data(tmp_path), *numbers)
    found = fitted(chosen)
    write_statistics(found, tmp_path / "numbers.json")
    encoders = encoders_of(chosen, open_data(tmp_path).schema)
    arrays = {"price": pa.array([0.5, 700.0, 1999.5, 2000.0, None])}

    def codes(name: str) -> list[int]:
        encoder = encoders[name]
        assert isinstance(encoder, NumberEncoder)
        return encoder.number(arrays).tolist()

    missing = np.iinfo(np.int64).min
    assert codes("rank::b2") == [2 * 5 + 0, 1, 5 + 4, 5 + 4, missing]
    low, high = found.numbers["even"].low, found.numbers["even"].high
    level = int((700 - low) / (high - low) * 1023 + 0.5)
    assert codes("even::b10") == [2 * 1024, level, 1024 + 1023, 1024 + 1023, missing]
    assert codes("group::quantile") == [0, 1, 3, 3, missing]
    reader = small.reader(
        tmp_path,
        features={"dense": [], "numbers": numbers, "statistics": str(tmp_path / "numbers.json")},
        splits={"train": TRAINING},
        lanes=1,
        global_batch_size=4,
    )
    assert reader.columns.dense == ("soft", "bins")
    batch, _ = next(reader.epoch())
    prices = [None if key % 10 == 3 else (key + 1) / 2 for key in batch.group.tolist()]
    edges = found.numbers["bins"].quantiles
    for (soft, bins), price in zip(batch.dense.tolist(), prices, strict=True):
        if price is None:
            assert (soft, bins) == (0, 0)
        else:
            low, high = found.numbers["soft"].low, found.numbers["soft"].high
            share = np.log1p(max(price - low, 0)) / np.log1p(high - low)
            assert soft == pytest.approx(share, abs=1e-6)
            assert bins == pytest.approx((price - edges[0]) / (edges[1] - edges[0]), abs=1e-6)
    assert reader.missing_values == {"soft": 1, "bins": 1}


def test_numbers_without_their_sign(tmp_path: Path) -> None:
    number = {"name": "price", "encoding": {"kind": "mnse", "negative": "sign"}}
    path = tmp_path / "rows"
    values = pa.array(np.linspace(-100, 50, 301))
    key = np.arange(301)
    table = {"key": key, "item": key % 50, "price": values, "click": key % 2, "at": key}
    small.write_table(path, pa.table(table))
    found = fitted(recipe(path, number)).numbers["price"]
    assert found.is_magnitude
    assert (found.least, found.most) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("numbers", "change", "message"),
    [
        (None, {}, r"numbers.json says nothing of the number 'price'; write it"),
        (
            [{"name": "price", "encoding": {"kind": "mnse", "levels": 9}}],
            {},
            r"numbers.json was written for another encoding of 'price'",
        ),
        (
            [{"name": "price", "encoding": {"kind": "mnse", "negative": "sign"}}],
            {},
            r"numbers.json was written for another encoding of 'price'",
        ),
        ([{"name": "price"}], {"format": 9}, r"numbers.json is of format 9, not 1"),
        (
            [{"name": "price"}],
            {"where": ["key < 5000"]},
            r"is of the rows \['key < 5000'\], but data.splits.train has \['key < 4000'\]; .* so that",
        ),
        ([{"name": "price"}], {"rows": "many"}, r"holds no statistics of numbers \(rows\)"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, numbers: list[Any] | None, change: dict[str, Any], message: str
) -> None:
    other = {"name": "other", "column": "price"}
    found = fitted(recipe(data(tmp_path), {"name": "price"} if numbers else other))
    (tmp_path / "numbers.json").write_text(json.dumps(found.model_dump() | change))
    wanted = recipe(tmp_path, *(numbers or [{"name": "price"}]))
    with pytest.raises(UserError, match=message):
        encoders_of(wanted, open_data(tmp_path).schema)


def test_what_cannot_be_fitted(tmp_path: Path) -> None:
    path = data(tmp_path)
    with pytest.raises(UserError, match=r"no number of the recipe is encoded by statistics"):
        fitted(recipe(path, {"name": "price", "encoding": "log_bucket"}))
    with pytest.raises(
        UserError, match=r"features.numbers 'price': column 'price' holds no number"
    ):
        fitted(recipe(path, {"name": "price"}, train=["key == 3"]))
    with pytest.raises(UserError, match=r"numbers.json cannot be read .*; write it by"):
        encoders_of(recipe(path, {"name": "price"}), open_data(path).schema)
    constant = recipe(path, {"name": "price"}, train=["key == 4"])
    write_statistics(fitted(constant), path / "numbers.json")
    with pytest.raises(
        UserError, match=r"'price': almost all training rows have the same number, 2.5"
    ):
        encoders_of(constant, open_data(path).schema)


def test_count_needs_as_many_levels_as_there_are_whole_numbers(tmp_path: Path) -> None:
    encoding = {"kind": "mnse", "quantiser": "count", "levels": 64}
    chosen = recipe(data(tmp_path), {"name": "price", "encoding": encoding})
    write_statistics(fitted(chosen), tmp_path / "numbers.json")
    with pytest.raises(
        UserError, match=r"'count' from 2 to 1998 needs 1997 levels, but levels = 64"
    ):
        encoders_of(chosen, open_data(tmp_path).schema)
