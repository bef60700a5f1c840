"""The parity check and what compression may cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prismrec.config import UserError
from prismrec.config.train import ExportSection
from prismrec.serving.export import HeldOut, export_model
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import (
    Bounds,
    HeldOutLabels,
    bounds_of,
    check_compressed,
    check_parity,
    compare_compressed,
)
from tests.unit.serving.world import World, make_world, random_raw


def test_parity_passes_up_to_the_tolerance() -> None:
    trainer = torch.zeros(3, 2)
    copy = trainer.clone()
    copy[1, 0] = 9e-5
    assert check_parity(copy, trainer) == pytest.approx(9e-5)


@pytest.mark.parametrize("value", [1.1e-4, -0.5, float("nan")])
def test_a_difference_fails_and_is_shown(value: float) -> None:
    copy = torch.zeros(3, 2)
    copy[2, 1] = value
    with pytest.raises(UserError, match=r"in the logit of row 2, task 1 .* nothing is registered"):
        check_parity(copy, torch.zeros(3, 2))


def test_parity_of_no_rows_is_no_parity() -> None:
    with pytest.raises(UserError, match=r"both need the same held-out rows, at least one"):
        check_parity(torch.zeros(0, 2), torch.zeros(0, 2))


def test_the_cost_of_compression_by_hand() -> None:
    """One swapped pair of four; the masked row counts for neither AUC nor LogLoss."""
    exact = torch.tensor([[-1.0], [1.0], [0.0], [5.0]])
    compressed = torch.tensor([[-1.0], [-0.5], [0.0], [9.0]])
    held_out = HeldOutLabels(
        torch.tensor([[0.0], [1.0], [0.0], [0.0]]), torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    )
    report = compare_compressed(compressed, exact, held_out, ["click"])
    assert report["click/max_logit_difference"] == 4.0
    assert report["click/mean_logit_difference"] == pytest.approx(5.5 / 4)
    assert report["click/auc_change"] == -0.5
    # softplus(0.5) - softplus(-1) over three rows
    assert report["click/logloss_change"] == pytest.approx((0.9740770 - 0.3132617) / 3)


def test_usual_bounds_and_those_of_the_recipe() -> None:
    assert bounds_of(ExportSection(table_type="fp16")) == Bounds(1e-4, 1e-4)
    assert bounds_of(ExportSection(table_type="int8", max_auc_change=1e-3)) == Bounds(1e-3, 5e-4)
    int4 = ExportSection(table_type="int4", max_auc_change=0.1, max_logloss_change=0.2)
    assert bounds_of(int4) == Bounds(0.1, 0.2)


def test_only_a_loss_of_auc_counts_but_any_move_of_logloss() -> None:
    bounds = Bounds(1e-3, 1e-3)
    check_compressed({"a/auc_change": 0.5, "a/logloss_change": float("nan")}, bounds, "int8")
    with pytest.raises(UserError, match=r"int8 tables change the AUC of task 'a' by -2.00e-03"):
        check_compressed({"a/auc_change": -2e-3}, bounds, "int8")
    with pytest.raises(UserError, match=r"LogLoss of task 'x/y' by -2.00e-03.*max_logloss_change"):
        check_compressed({"x/y/logloss_change": -2e-3}, bounds, "int8")


def held_out(world: World, rows: int = 400) -> HeldOut:
    raw = random_raw(rows)
    logits = world.expected_logits(raw)
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(rows, 2, generator=generator) < torch.sigmoid(logits)).float()
    return HeldOut(raw, logits, labels, torch.ones(rows, 2))


@pytest.mark.parametrize("table_type", ["fp32", "fp16", "bf16", "int8"])
def test_an_export_within_its_bounds_stands(table_type: str, tmp_path: Path) -> None:
    world = make_world(export={"table_type": table_type, "max_logloss_change": 1e-2,
                               "max_auc_change": 1e-2})  # fmt: skip
    report = export_model(tmp_path / "copy", world.source, held_out(world))
    assert report["max_difference_to_trainer"] < 1e-5
    assert ("click/auc_change" in report) == (table_type != "fp32")
    assert InferenceModel.load(tmp_path / "copy").table_type == table_type
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_an_export_over_its_bounds_leaves_nothing(tmp_path: Path) -> None:
    world = make_world(export={"table_type": "int4", "max_logloss_change": 0.0,
                               "max_auc_change": 0.0})  # fmt: skip
    with pytest.raises(UserError, match=r"int4 tables change the (AUC|LogLoss) of task 'click'"):
        export_model(tmp_path / "copy", world.source, held_out(world))
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_other_weights_is_not_exported(tmp_path: Path) -> None:
    world = make_world()
    rows = held_out(world)
    world.tables["goods", "wide"] = world.tables["goods", "wide"] + 0.1
    with pytest.raises(UserError, match=r"the inference copy differs from the trainer by"):
        export_model(tmp_path / "copy", world.source, rows)
    assert list(tmp_path.iterdir()) == []
