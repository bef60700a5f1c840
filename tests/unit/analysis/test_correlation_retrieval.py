"""Whether what a model weighs most says most: the vector, loops, and a model with planted weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from prismrec.analysis.correlation import (
    count_behaviours,
    model_ndcg,
    question_of,
    retrieval_ndcg,
)
from prismrec.analysis.correlation.modules import readers_of, strength
from tests.unit.analysis.histories import drawn_model
from tests.unit.analysis.subjects import make_subject, quiet

RELEVANCE, SCORES = np.array([0.5, 0.1, 0.3, 0.0]), np.array([0.2, 0.9, 0.1, 0.05])
ONE = np.array([0, 4])


def test_the_vector() -> None:
    found = retrieval_ndcg(RELEVANCE, SCORES, ONE, 2)
    assert found == pytest.approx([0.602753], abs=1e-6)
    # Over the ideal of all ranks: (0.1 + 0.5 / log2 3) / (0.5 + 0.3 / log2 3 + 0.1 / 2).
    full = (0.1 + 0.5 / math.log2(3)) / (0.5 + 0.3 / math.log2(3) + 0.05)
    assert retrieval_ndcg(RELEVANCE, SCORES, ONE, 2, "full") == pytest.approx([full])
    whole = [retrieval_ndcg(RELEVANCE, SCORES, ONE, k, "full")[0] for k in (1, 2, 3, 4, 9)]
    assert whole == sorted(whole)
    assert whole[-1] == retrieval_ndcg(RELEVANCE, SCORES, ONE, 9)[0]
    assert retrieval_ndcg(RELEVANCE, RELEVANCE, ONE, 2) == [1]
    with pytest.raises(ValueError, match="k is at least 1, got 0"):
        retrieval_ndcg(RELEVANCE, SCORES, ONE, 0)


def test_rows_are_ranked_by_themselves_and_the_newer_of_equals_comes_first() -> None:
    relevance = np.array([0.5, 0.1, 0.0, 0.2, 0.4])
    scores = np.array([9.0, 1.0, 5.0, 1.0, 1.0])
    found = retrieval_ndcg(relevance, scores, np.array([0, 2, 2, 3, 5]), 1)
    assert found[0] == 1
    assert np.isnan(found[1:3]).all()
    assert found[3] == 1  # 0.4 is the newer one
    turned = retrieval_ndcg(relevance[[0, 1, 2, 4, 3]], scores, np.array([0, 2, 2, 3, 5]), 1)
    assert turned[3] == pytest.approx(0.2 / 0.4)


@pytest.mark.parametrize("batch", [192, 10])
def test_a_model_against_plain_loops(batch: int, tmp_path: Path) -> None:
    drawn = drawn_model(tmp_path, batch=batch)
    question = question_of(drawn.subject, categories=5, positions=3)
    assert question is not None
    counts = count_behaviours(question, drawn.data, quiet)
    found = model_ndcg(drawn.subject, question, counts, (1, 2), quiet)
    truth, places = counts.information(), {int(c): i for i, c in enumerate(counts.categories)}
    values: list[list[float]] = []
    for sample in drawn.subject.samples():
        (given,) = sample.inputs.sequences
        logits = sum(strength(each, given).logits[0] for each in readers_of(drawn.head)) / 2
        offsets = given.offsets.tolist()
        rows = sample.columns
        for at, target in enumerate(rows["category"].to_pylist()):
            early = [
                category
                for category, ago in zip(
                    rows["categories"][at].as_py() or [], rows["ago"][at].as_py() or [], strict=True
                )
                if ago is not None and ago > 0
            ][-4:]
            own = logits[offsets[at] : offsets[at + 1]].tolist()
            ranked = []
            for position, (category, z) in enumerate(zip(early[::-1], own[::-1], strict=True), 1):
                if position <= 3 and category in places and target in places:
                    bits = truth[places[target], places[category], position - 1]
                    ranked.append((z, float(bits)))
            gains = [bits for _, bits in sorted(ranked, reverse=True)]
            ideal = sorted(gains, reverse=True)
            if sum(gains) > 0:
                discounts = [1, 1 / math.log2(3)]
                values.append(
                    [
                        sum(g * d for g, d in zip(gains[:k], discounts, strict=False))
                        / sum(g * d for g, d in zip(ideal[:k], discounts, strict=False))
                        for k in (1, 2)
                    ]
                )
    assert len(values) > 50
    assert found == pytest.approx(np.mean(values, axis=0), abs=1e-9)
    assert model_ndcg(make_subject(tmp_path / "other"), question, counts, (1,), quiet) is None
