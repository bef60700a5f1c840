"""Where bf16 is chosen."""

from __future__ import annotations

import pytest
import torch

from prismrec.train import precision
from prismrec.train.precision import resolve_precision
from prismrec.train.process_group import Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


def measured(monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float = 100.0) -> None:
    monkeypatch.setattr(precision, "_rate", lambda *, is_bf16: bf16 if is_bf16 else fp32)


def test_what_the_recipe_says_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_rate", None)  # calling it would fail
    assert resolve_precision("bf16", ALONE) == "bf16"
    assert resolve_precision("fp32", ALONE) == "fp32"


@pytest.mark.parametrize(
    ("rate", "chosen"), [(200, "bf16"), (116, "bf16"), (114, "fp32"), (20, "fp32")]
)
def test_auto_takes_bf16_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, rate: float, chosen: str
) -> None:
    measured(monkeypatch, rate)
    assert resolve_precision("auto", ALONE) == chosen


def test_auto_on_cuda_is_bf16_without_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_rate", None)
    assert resolve_precision("auto", Ranks(0, 1, 0, 1, torch.device("cuda", 0))) == "bf16"


def test_the_probe_counts_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_SECONDS", 0.01)
    monkeypatch.setattr(precision, "_ROWS", 8)
    monkeypatch.setattr(precision, "_WIDTH", 16)
    assert precision._rate(is_bf16=False) > 10
