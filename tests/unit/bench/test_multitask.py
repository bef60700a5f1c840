"""The loop that the models of several tasks are measured against computes what they do."""

from __future__ import annotations

import pytest
import torch

from benchmarks.multitask import cases, markdown, pair_of, ratio, rows_of
from prismrec.models import Inputs


@pytest.mark.parametrize("name", cases())
def test_the_plain_loop_gives_our_logits_and_gradients(name: str) -> None:
    case = cases()[name]
    ours, plain = (model.double() for model in pair_of(case))
    sets, _ = rows_of(case, 5)
    sets = [each.detach().double().requires_grad_() for each in sets]
    logits = ours(Inputs(sets, None, torch.zeros(5, 0)))[0]
    expected = plain(sets)
    torch.testing.assert_close(logits, expected)
    assert logits.std() > 1e-3
    torch.manual_seed(1)
    cotangent = torch.randn_like(logits)
    for mine, theirs in zip(
        torch.autograd.grad(logits, sets, cotangent),
        torch.autograd.grad(expected, sets, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_ratios_are_taken_pair_by_pair() -> None:
    assert ratio([2, 6, 4], [1, 2, 4]) == {"median": 2, "range": [1, 3]}


def test_the_page_has_a_row_for_each_model() -> None:
    result = {"ours": 1.0, "plain": 2.0, "ratio": ratio([2.0], [1.0])}
    facts = {"commit": "abc", "processor": "P", "cores": 2, "flags": [], "memory_gib": 8}
    document = {
        "command": "python -m benchmarks.multitask",
        "machine": {**facts, "python": "3.11", "versions": {}, "load_before": 0.5},
        "models": {"mmoe, 8 experts": result},
        "tasks": {"4": 1.0, "128": 3.0, "ratio": ratio([3.0], [1.0])},
        **{"batch": 8, "pairs": 1, "window": 1, "threads": 1},
    }
    page = markdown(document)
    assert "| mmoe, 8 experts | 1.0 | 2.0 | 2.0 | 2.0-2.0 |" in page
    assert (
        "1.0 ms with 4 tasks, 3.0 ms with 128: 3.0 times (3.0-3.0) for 32 times the tasks." in page
    )
