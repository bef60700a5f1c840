"""Weights against repeated exposure: their numbers, their table, and undoing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from prismrec.config import ConfigError, Recipe, UserError
from prismrec.config.propensity import Propensity
from prismrec.data import propensity as data_propensity
from prismrec.data.lanes import ALONE
from prismrec.data.propensity import ExposureSums, exposure_sums, weights_of
from prismrec.data.source import open_data
from prismrec.models.objectives import Objective, Targets, TaskLoss
from prismrec.train.process_group import Ranks
from prismrec.train.propensity import Corrections, with_propensities
from prismrec.train.row_weights import RowWeights
from tests.helpers.runs import make_recipe, write_rows

COUNT = Propensity(column="k", first=1)


def weights(section: Propensity, k: list[float | None]) -> list[float]:
    return weights_of(section, pa.array(k, pa.float32()), None).tolist()


def test_weights_are_inverse_counts() -> None:
    assert weights(COUNT, [1, 2, 4, 10, 40]) == pytest.approx([1, 0.5, 0.25, 0.1, 0.1])
    earlier = Propensity(column="k", floor=0.01)
    assert weights(earlier, [0, 1, 3, None, -2]) == pytest.approx([1, 0.5, 0.25, 1, 1])
    softer = Propensity(column="k", first=1, tau=0.5)
    assert weights(softer, [4, 16]) == pytest.approx([0.5, 0.25])
    log = Propensity(column="k", first=1, estimator="log", scale=2.0)
    assert weights(log, [1, np.e]) == pytest.approx([1, 1 / 3])


@pytest.mark.parametrize("estimator", ["count", "log"])
def test_weights_never_rise_with_exposures(estimator: str) -> None:
    section = Propensity(column="k", estimator=estimator, tau=1.5, floor=0.02)
    found = weights(section, list(range(60)))
    assert found == sorted(found, reverse=True)
    assert found[0] == 1
    assert found[-1] >= 0.02 - 1e-6


def test_weighted_rows_fit_a_lower_rate_and_the_inverse_gives_it_back() -> None:
    """k = 1, 2, 4 of a rate of .1: fitted .1, .0526315789, .0270270270, then .1 again."""
    w = torch.tensor(weights(COUNT, [1, 2, 4]), dtype=torch.float64)
    p = 0.1
    q = w * p / (w * p + 1 - p)
    assert q.tolist() == pytest.approx([0.1, 0.0526315789, 0.0270270270], abs=1e-10)
    assert (q / (q + w * (1 - q))).tolist() == pytest.approx([p] * 3, abs=1e-12)
    assert torch.sigmoid(torch.logit(q) - torch.log(w)).tolist() == pytest.approx([p] * 3)
    # The stationary point of the weighted cross-entropy of ten rows, one of them positive, is q.
    labels, ones = torch.zeros(10, 3), torch.ones(10, 3)
    labels[0] = 1
    free = torch.logit(q).float().requires_grad_()
    objective = Objective([TaskLoss(propensity="positives")] * 3, [1.0] * 3)
    targets = Targets(labels, ones, ones, w.float().expand(10, 3))
    objective(free.expand(10, 3), targets)[0].backward()
    assert free.grad.abs().max() < 1e-7


def test_first_sights_change_nothing() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(8, 1), torch.randint(0, 2, (8, 1)).float()
    ones = torch.ones(8, 1)
    w = torch.tensor(weights(COUNT, [1] * 8)).unsqueeze(1)
    plain, _ = Objective([TaskLoss()], [1.0])(z, Targets(y, ones, ones))
    for applied in ("positives", "both"):
        objective = Objective([TaskLoss(propensity=applied)], [1.0])
        assert objective(z, Targets(y, ones, ones, w))[0] == plain


def test_positives_or_both_are_weighted() -> None:
    y, ones = torch.tensor([[1.0], [0.0]]), torch.ones(2, 1)
    w = torch.tensor([[0.5], [0.25]], requires_grad=True)
    for applied, expected in (("positives", [0.5, 1.0]), ("both", [0.5, 0.25])):
        objective = Objective([TaskLoss(propensity=applied)], [1.0])
        _, losses = objective(torch.zeros(2, 1), Targets(y, ones, ones, w))
        assert losses.weights.flatten().tolist() == expected
        assert not losses.weights.requires_grad
    with pytest.raises(ValueError, match=r"weighs exposures, but targets\.propensity is None"):
        objective(torch.zeros(2, 1), Targets(y, ones, ones))


def test_a_table_is_drawn_to_the_mean() -> None:
    sums = ExposureSums.of(
        [
            ExposureSums(np.array([3, 9]), np.array([1.0, 2.0]), np.array([4.0, 2.0])),
            ExposureSums(np.array([3]), np.array([1.0]), np.array([2.0])),
        ]
    )
    assert sums.values.tolist() == [3, 9]
    section = Propensity(column="k", estimator="fitted", by="c", prior_rows=2.0)
    fitted = sums.fitted(section)
    assert fitted.values == (3, 9)
    # Four rows of eight exposures: a mean of 2; (6 + 4) / 4 and (2 + 4) / 4.
    assert fitted.expected == pytest.approx((2.5, 1.5, 2.0))
    by = pa.array([9, 3, 4, None], pa.int64())
    found = weights_of(fitted, pa.array([0.0] * 4), by)
    assert found.tolist() == pytest.approx([1 / 1.5, 0.4, 0.5, 0.5])
    empty = ExposureSums.of([]).fitted(section)
    assert weights_of(empty, pa.array([0.0] * 4), by).tolist() == [1] * 4


def recipe_of(data: Path, **propensity: object) -> Recipe:
    settings = ", ".join(f"{key}={value!r}".lower() for key, value in propensity.items())
    return make_recipe(data, f"tasks=[{{name='click', label='click', propensity={{{settings}}}}}]")


def test_a_fitted_table_stays(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows")
    recipe, source = recipe_of(data, column="x", estimator="fitted", by="tab"), open_data(str(data))
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    fitted = with_propensities(recipe, source, ranks)
    table = fitted.tasks[0].propensity
    assert table is not None
    assert len(table.expected) == len(table.values) + 1 > 3
    assert with_propensities(fitted, source, ranks) is fitted
    assert with_propensities(make_recipe(data), source, ranks) == make_recipe(data)


def test_too_many_values_for_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows(tmp_path / "rows")
    monkeypatch.setattr(data_propensity, "MAX_VALUES", 5)
    recipe = recipe_of(data, column="x", estimator="fitted", by="user")
    section = recipe.tasks[0].propensity
    assert section is not None
    with pytest.raises(UserError, match=r"tasks\.propensity\.by: 'user' has more than 5 values"):
        exposure_sums(open_data(str(data)), recipe, section, ALONE)


def test_columns_must_say_something_of_exposures(tmp_path: Path) -> None:
    source = open_data(str(write_rows(tmp_path / "rows")))
    with pytest.raises(UserError, match=r"propensity\.column: column 'user' of 'small' is of kind"):
        data_propensity.check_columns(source, Propensity(column="user"))
    section = Propensity(column="x", estimator="fitted", by="y")
    with pytest.raises(UserError, match=r"propensity\.by: column 'y' of 'small' is of kind"):
        data_propensity.check_columns(source, section)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "tab"}, "`by` names the column of estimator = 'fitted', and of no other"),
        ({"estimator": "fitted"}, "`by` names the column of estimator = 'fitted'"),
        ({"undo": True, "apply_to": "both"}, "undo: weights of both labels do not move"),
        ({"values": [1], "expected": [2.0]}, "expected: 1 values need 2 expectations"),
        ({"values": [2, 1], "expected": [1.0, 1.0, 1.0]}, "values: must ascend, each once"),
    ],
)
def test_settings_that_contradict(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(Path("nowhere"), column="x", **settings)


def test_corrections_undo_sampling_weights_and_exposures() -> None:
    recipe = make_recipe(
        Path("nowhere"),
        "tasks=[{name='a', label='click', pos_weight=2.0, negative_rate=0.5, propensity={column='x'"
        ", undo=true}}, {name='b', label='buy', propensity={column='x'}}]",
    )

    class Rows:
        propensity = torch.tensor([[0.5, 0.5], [1.0, 0.1]])

    found = Corrections(recipe)(torch.zeros(2, 2), Rows())  # type: ignore[arg-type]
    log2 = float(np.log(2))
    expected = torch.tensor([[-2 * log2 + log2, 0], [-2 * log2, 0]])
    torch.testing.assert_close(found, expected)
    assert recipe.raw_columns == recipe.features.columns  # 'x' is among them already


def test_effective_rows() -> None:
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    meter = RowWeights(["a", "b"], [1], ranks)
    meter.add(torch.tensor([[9.0, 1.0], [9.0, 0.5], [9.0, 0.0]]))
    meter.add(torch.tensor([[9.0, 0.5]]))
    assert meter.read() == pytest.approx(
        {
            "train/b/weight_mean": 2 / 3,
            "train/b/weight_max": 1.0,
            "train/b/weight_effective": 4 / 1.5 / 3,
        }
    )
    assert meter.read() == {}
    assert RowWeights(["a"], [], ranks).read() == {}
