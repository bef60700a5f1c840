"""Mutual information of behaviours and labels: vectors, counts from Parquet, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.analysis.correlation import (
    Counts,
    Estimate,
    Question,
    count_behaviours,
    min_max,
    mutual_information,
    standard_error,
)
from prismrec.analysis.correlation import truth as module
from prismrec.config import UserError
from prismrec.config.sequences import Behaviour, SequenceFeature
from prismrec.data.schema import Column, DataSchema

MICRO = [
    ([1, 2, 1], 1, 1),
    ([2, 1], 1, 1),
    ([2, 2, 1], 1, 1),
    ([1, 1, 2], 1, 1),
    ([2, 2], 1, 0),
    ([2, 1, 2], 1, 0),
    ([1, 2], 1, 0),
    ([2], 1, 0),
    ([1, 1], 2, 1),
]
"""Histories from the oldest behaviour to the newest, target category, label."""
COLUMNS = {
    "target": Column(kind="id", num_ids=9),
    "history": Column(kind="ids", num_ids=9),
    "ago": Column(kind="numbers"),
    "click": Column(kind="label"),
    "space": Column(kind="label"),
    "day": Column(kind="other"),
}
HISTORY = SequenceFeature(name="h", behaviours=(Behaviour(column="history", target="target"),))
QUESTION = Question(HISTORY, "target", "click", categories=2, positions=3)


def _quiet(doing: str, done: int, total: int) -> None:
    """No one watches."""


def _write(directory: Path, rows: list[tuple[list[int] | None, int | None, int | None]]) -> str:
    """A data set in several small row groups and two files."""
    histories, targets, clicks = zip(*rows, strict=True)
    table = pa.table(
        {
            "target": pa.array(targets, pa.int64()),
            "history": pa.array(histories, pa.list_(pa.int64())),
            "ago": pa.array(
                [[1.0 * (i % 3) for i in range(len(h or []))] for h in histories],
                pa.list_(pa.float32()),
            ),
            "click": pa.array(clicks, pa.int8()),
            "space": pa.array([i % 2 for i in range(len(rows))], pa.int8()),
            "day": pa.array([i % 3 for i in range(len(rows))], pa.int64()),
        }
    )
    directory.mkdir()
    half = len(rows) // 2
    for name, part in (("a", table.slice(0, half)), ("b", table.slice(half))):
        pq.write_table(part, directory / f"{name}.parquet", row_group_size=3)
    DataSchema(name="micro", columns=COLUMNS).write(directory)
    return str(directory)


@pytest.mark.parametrize(
    ("x_p", "x_n", "expected"),
    [(20, 10, 0.0912774462), (20, 30, 0.0), (40, 0, 0.9709505945), (0, 0, 0.0)],
)
def test_vectors(x_p: int, x_n: int, expected: float) -> None:
    found = mutual_information(np.array([x_n, x_p]), np.array([60, 40]))
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_the_micro_data(tmp_path: Path) -> None:
    counts = count_behaviours(QUESTION, _write(tmp_path / "rows", MICRO), _quiet)
    assert counts.categories.tolist() == [1, 2]
    assert counts.rows.tolist() == [[4, 4], [0, 1]]
    # x_n and x_p by position, of each category of behaviours.
    assert counts.behaviours[0].tolist() == [
        [[0, 3], [2, 1], [0, 2]],
        [[4, 1], [1, 3], [1, 1]],
    ]
    assert counts.behaviours[1].tolist() == [[[0, 1], [0, 1], [0, 0]], [[0, 0]] * 3]
    assert counts.long_rows[0].tolist() == [[4, 4], [3, 4], [1, 3]]
    assert counts.support()[0].tolist() == [[3, 3, 2], [5, 4, 2]]
    bits = [[0.548795, 0.048795, 0.311278], [0.548795, 0.188722, 0.0]]
    np.testing.assert_allclose(counts.information()[0], bits, atol=1e-6)
    eps = counts.information(Estimate(eps=1e-5))[0]
    np.testing.assert_allclose(eps[0], [0.548771, 0.048795, 0.311255], atol=1e-6)
    signed = counts.information(Estimate(signed=True))[0]
    np.testing.assert_allclose(signed[1], [-0.548795, 0.188722, 0.0], atol=1e-6)
    # All of target 2 has one label, of which nothing can be said.
    assert (counts.information()[1] == 0).all()


def test_shorter_histories_are_left_out_on_demand(tmp_path: Path) -> None:
    counts = count_behaviours(QUESTION, _write(tmp_path / "rows", MICRO), _quiet)
    found = counts.information(Estimate(cond_len=True))[0]
    for category in (0, 1):
        for position in range(3):
            alone = mutual_information(
                counts.behaviours[0, category, position], counts.long_rows[0, position]
            )
            assert found[category, position] == alone
    # Position 3: of four long rows, the two clicked with category 1 against one of each with 2.
    expected = (2 / 4) * math.log2(2 * 4 / (2 * 3)) + (1 / 4) * math.log2(1 * 4 / (2 * 3))
    expected += (1 / 4) * math.log2(1 * 4 / (2 * 1))
    assert found[0, 2] == pytest.approx(expected)


def test_the_bias_of_few_rows_is_taken_off() -> None:
    x, rows = np.array([10, 20]), np.array([60, 40])
    plain = mutual_information(x, rows)
    corrected = mutual_information(x, rows, Estimate(miller_madow=True))
    assert float(plain - corrected) == pytest.approx(1 / (200 * math.log(2)))
    assert float(mutual_information(np.array([30, 20]), rows, Estimate(miller_madow=True))) == 0


def test_that_bias_is_what_independent_things_show() -> None:
    random = np.random.default_rng(0)
    x, y = (random.random((20_000, 200)) < 0.5 for _ in range(2))
    counted = np.stack([(x & ~y).sum(1), (x & y).sum(1)], -1)
    rows = np.stack([(~y).sum(1), y.sum(1)], -1)
    assert mutual_information(counted, rows).mean() == pytest.approx(0.003607, abs=1e-4)


def test_missing_values_and_rows_outside_do_not_count(tmp_path: Path) -> None:
    rows: list[tuple[list[int] | None, int | None, int | None]] = [*MICRO]
    rows += [([1], None, 1), ([1], 1, None), (None, 1, 1), ([], 1, 0), ([5, 6], 7, 1)]
    counts = count_behaviours(QUESTION, _write(tmp_path / "rows", rows), _quiet)
    assert counts.rows.tolist() == [[5, 5], [0, 1]]  # two rows more, without behaviours
    assert counts.behaviours[0, 0].tolist() == [[0, 3], [2, 1], [0, 2]]
    assert counts.long_rows[0, 0].tolist() == [4, 4]


def test_conditions_sample_space_and_time(tmp_path: Path) -> None:
    data = _write(tmp_path / "rows", MICRO)
    first = Question(HISTORY, "target", "click", conditions=("day == 0",), categories=2)
    assert count_behaviours(first, data, _quiet).rows.tolist() == [[1, 2]]
    inside = Question(HISTORY, "target", "click", valid="space", categories=2)
    assert count_behaviours(inside, data, _quiet).rows.tolist() == [[2, 2]]
    timed = HISTORY.model_copy(update={"gaps": "ago"})
    late = count_behaviours(Question(timed, "target", "click", positions=3), data, _quiet)
    # The oldest behaviour of each history has a gap of 0: it is not known to be earlier.
    assert late.behaviours[0].tolist() == [[[0, 3], [1, 1], [0, 0]], [[3, 1], [0, 2], [0, 0]]]
    newest = HISTORY.model_copy(update={"max_length": 1})
    short = count_behaviours(Question(newest, "target", "click", positions=3), data, _quiet)
    assert short.support()[0, :, 1:].sum() == 0


def test_other_target_categories_come_last(tmp_path: Path) -> None:
    rows: list[tuple[list[int] | None, int | None, int | None]] = [*MICRO, ([3, 1], 3, 0)]
    data = _write(tmp_path / "rows", rows)
    few = Question(HISTORY, "target", "click", categories=1, positions=3)
    also = count_behaviours(replace(few, also=(3, 1)), data, _quiet)
    assert also.categories.tolist() == [1, 3]
    assert also.behaviours[1].tolist() == [[[1, 0], [0, 0], [0, 0]], [[0, 0], [1, 0], [0, 0]]]
    with pytest.raises(UserError, match="no row that counts has 8 as 'target'.*most frequent is 1"):
        count_behaviours(replace(few, also=(8,)), data, _quiet)


def test_batches_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    rows = [
        (random.integers(0, 9, random.integers(0, 6)).tolist(), int(c), int(y))
        for c, y in zip(random.integers(0, 9, 300), random.integers(0, 2, 300), strict=True)
    ]
    data = _write(tmp_path / "rows", rows)
    question = Question(HISTORY, "target", "click", categories=4, positions=3)
    seen: list[tuple[int, int]] = []
    whole = count_behaviours(question, data, lambda _, done, total: seen.append((done, total)))
    assert seen[-1] == (200, 200)
    assert [done for done, _ in seen] == list(range(1, 201))
    monkeypatch.setattr(module, "BATCH", 2)
    parts = count_behaviours(question, data, _quiet)
    for name in ("categories", "behaviours", "rows", "long_rows"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    # By another way: row by row, in the plainest words.
    totals = np.bincount([c for _, c, _ in rows], minlength=9)
    assert whole.categories.tolist() == sorted(range(9), key=lambda c: (-totals[c], c))[:4]
    places = {int(c): i for i, c in enumerate(whole.categories)}
    expected = np.zeros_like(whole.behaviours)
    for history, target, label in rows:
        for position, category in enumerate(history[::-1][:3]):
            if target in places and category in places:
                expected[places[target], places[category], position, label] += 1
    np.testing.assert_array_equal(whole.behaviours, expected)


def test_what_is_refused(tmp_path: Path) -> None:
    data = _write(tmp_path / "rows", MICRO)
    none = Question(HISTORY, "target", "click", conditions=("day == 9",))
    with pytest.raises(UserError, match="no row that meets .*day == 9.* choose other rows"):
        count_behaviours(none, data, _quiet)
    with pytest.raises(UserError, match="correlation: the data set 'micro' has no column 'clik'"):
        count_behaviours(Question(HISTORY, "target", "clik"), data, _quiet)
    with pytest.raises(UserError, match="column 'history' of 'micro' is of kind 'ids'"):
        count_behaviours(Question(HISTORY, "history", "click"), data, _quiet)
    with pytest.raises(UserError, match="at least one category and one position"):
        count_behaviours(Question(HISTORY, "target", "click", positions=0), data, _quiet)


def test_support(tmp_path: Path) -> None:
    counts = count_behaviours(QUESTION, _write(tmp_path / "rows", MICRO), _quiet)
    assert counts.is_supported(8, 1)[0].tolist() == [[False, True, False], [True, True, True]]
    assert not counts.is_supported(9, 1).any()
    assert not counts.is_supported().any()
    many = Counts(
        counts.categories, counts.behaviours * 100, counts.rows * 100, counts.long_rows * 100
    )
    assert many.is_supported()[0].tolist() == [[False, True, False], [True, True, True]]


def test_min_max() -> None:
    assert min_max(np.array([[2.0, 4.0], [3.0, np.nan]])).tolist()[0] == [0, 1]
    assert min_max(np.array([5.0, 5.0])).tolist() == [0, 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_bounds_and_symmetry(cells: list[int]) -> None:
    """Between 0 and the label's entropy, and the same with labels, or X and its absence, exchanged."""
    x_p, x_n, n01, n00 = cells
    x, rows = np.array([x_n, x_p]), np.array([x_n + n00, x_p + n01])
    bits = float(mutual_information(x, rows))
    shares = [count / max(rows.sum(), 1) for count in rows]
    entropy = -sum(share * math.log2(share) for share in shares if share)
    assert 0 <= bits <= entropy + 1e-12
    assert float(mutual_information(x[::-1], rows[::-1])) == pytest.approx(bits, abs=1e-12)
    assert float(mutual_information(rows - x, rows)) == pytest.approx(bits, abs=1e-12)
    signed = Estimate(signed=True)
    turned = float(mutual_information(x[::-1], rows[::-1], signed))
    assert turned == pytest.approx(-float(mutual_information(x, rows, signed)), abs=1e-12)


def test_the_standard_error_is_the_spread_of_the_estimate() -> None:
    """Over many draws, of things that go together and of things that do not."""
    random = np.random.default_rng(0)
    for chances, most in (([0.3, 0.2, 0.1, 0.4], 1.05), ([0.18, 0.42, 0.12, 0.28], 1.5)):
        cells = random.multinomial(1000, chances, 4000)  # X and Y: 00, 01, 10, 11
        x, rows = cells[:, 2:], cells[:, :2] + cells[:, 2:]
        spread = mutual_information(x, rows).std()
        assert 0.95 * spread < standard_error(x, rows).mean() < most * spread
    assert standard_error(np.array([0, 0]), np.array([0, 0])) == 0
