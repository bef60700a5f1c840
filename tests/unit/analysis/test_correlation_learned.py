"""Learned maps: the published normalisation, and models held to plain loops over their behaviours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prismrec.analysis.correlation import (
    LearnedMap,
    Question,
    learned_map,
    min_max,
    normalised,
    question_of,
    score,
    table_map,
)
from prismrec.analysis.correlation.modules import readers_of
from prismrec.models.sequence import DARE, DIN, TIM, SequenceModule
from tests.unit.analysis.histories import (
    DECOUPLED,
    ONLY_CATEGORIES,
    TWO_ALIKE,
    Drawn,
    drawn_model,
)
from tests.unit.analysis.subjects import make_subject, quiet

TRUTH = np.array([0.548771, 0.048795, 0.311255])
LOGITS = np.array([[0.9, 0.5, 0.2], [0.1, -0.1, -0.2]])
NORMS = np.array([[1, 0.9, 0.8], [0.5, 0.5, 0.4]])
CATEGORIES = np.array([3, 0, 5], np.int64)
CASES: dict[str, tuple[str, ...]] = {
    "tim": (),
    "tim, appended": (
        "model.sequence={kind='tim', encoding='both', combine='concat', time_dim=3}",
    ),
    "tim, two copies": (TWO_ALIKE,),
    "tim without time": ("model.sequence={kind='tim', encoding='none'}",),
    "tim without attention": ("model.sequence={kind='tim', attention=false}",),
    "tim without representation": ("model.sequence={kind='tim', representation=false}",),
    "tim, empty token": ("model.sequence={kind='tim', empty_token=true}",),
    "din": ("model.sequence={kind='din', hidden=[5]}",),
    "din, sums": ("model.sequence={kind='din', hidden=[5], pooling='sum'}", TWO_ALIKE),
    "dare": DECOUPLED,
}
POSITIONS: dict[str, tuple[str, ...]] = {
    "tim": ("model.sequence={kind='tim', encoding='position'}",),
    "tim, two copies": (
        TWO_ALIKE,
        "model.sequence={kind='tim', encoding='position', combine='concat'}",
    ),
    "tim without time": CASES["tim without time"],
    "dare": (
        "embedding.sets=[{name='wide', dim=8}, {name='att', dim=4, features=['category']}]",
        DECOUPLED[1],
    ),
}


def _map(logits: np.ndarray, norms: np.ndarray, **given: Any) -> LearnedMap:  # type: ignore[type-arg]
    sets = tuple(f"s{i}" for i in range(len(logits)))
    return LearnedMap(np.arange(logits.shape[1]), sets, logits, norms, None, **given)


def test_the_vector_of_the_published_pipeline() -> None:
    found = normalised(LOGITS, NORMS)
    np.testing.assert_allclose(min_max(found)[0], [1, 0.292907, 0.103542], atol=1e-6)
    truth = np.stack([np.stack([TRUTH, np.zeros(3)])] * 2)
    maps = _map(np.stack([LOGITS, LOGITS])[None], np.stack([NORMS, NORMS])[None])
    np.testing.assert_allclose(maps.raw()[0, 0], [2.459603, 1.483849, 0.977122], atol=1e-6)
    assert score(truth, maps.raw()).own[0] == pytest.approx(0.625266, abs=2e-6)
    assert score(truth, maps.published()).own[0] == pytest.approx(0.728852, abs=2e-6)
    blind = _map(np.zeros_like(maps.logits), np.ones_like(maps.norms))
    assert score(truth, blind.published()).own[0] == 0


def test_scale_and_shift_of_the_logits_do_not_matter_where_they_are_standardised() -> None:
    plain = normalised(LOGITS, NORMS)
    np.testing.assert_allclose(normalised(LOGITS / 4 - 7, NORMS), plain, atol=1e-14)
    assert not np.allclose(normalised(LOGITS / 4, NORMS, False), normalised(LOGITS, NORMS, False))
    np.testing.assert_allclose(
        normalised(LOGITS, NORMS, False), np.exp(LOGITS) * NORMS / np.exp(LOGITS).sum()
    )


def test_flat_logits_leave_the_lengths() -> None:
    np.testing.assert_allclose(normalised(np.full((2, 3), 0.1) + 1e-15, NORMS), NORMS / 6)


def test_unknown_cells_stay_unknown() -> None:
    holes = LOGITS.copy()
    holes[1, 2] = math.nan
    found = normalised(holes, np.where(np.isnan(holes), math.nan, NORMS))
    assert np.isnan(found[1, 2])
    known = normalised(holes[~np.isnan(holes)], NORMS[~np.isnan(holes)])
    np.testing.assert_allclose(found[~np.isnan(holes)], known)


def test_sets_are_averaged_or_looked_at_alone() -> None:
    other = -LOGITS
    logits = np.stack([np.stack([LOGITS] * 2), np.stack([other] * 2)])
    norms = np.stack([np.stack([NORMS] * 2), np.stack([3 * NORMS] * 2)])
    maps = _map(logits, norms)
    np.testing.assert_allclose(maps.raw()[0], 2 * NORMS)
    np.testing.assert_allclose(maps.raw("s1")[1], np.exp(other) * 3 * NORMS)
    np.testing.assert_allclose(maps.published("s0")[0], normalised(LOGITS, NORMS))
    sums = _map(logits, norms, is_exponential=False)
    np.testing.assert_allclose(sums.raw("s0")[0], LOGITS * NORMS)


def _readers(head: nn.Module) -> list[SequenceModule]:
    return [each for each in head.modules() if isinstance(each, TIM | DIN | DARE)]


def _vector(
    drawn: Drawn, names: tuple[str, ...], of_set: str, ids: tuple[int | None, ...]
) -> Tensor:
    """Vectors of the sides of a behaviour or target in a set, one id after another."""
    parts = []
    for name, value in zip(names, ids, strict=True):
        table = drawn.tables[name, of_set].double()
        parts.append(table[-1 if value is None or value >= len(table) - 1 else value])
    return torch.cat(parts)


def _bucket(seconds: float) -> int:
    return min(int(math.log2(1 + seconds / 60)), 11)


def _expected(drawn: Drawn, module: SequenceModule, copy: int, of_set: str) -> dict[Any, Any]:
    """z and ||r|| of every behaviour by cell, one behaviour at a time."""
    cells: dict[Any, list[tuple[float, float]]] = {}
    known = CATEGORIES.tolist()
    for behaviour, target, place in _events(drawn):
        found = _one(drawn, module, copy, of_set, behaviour, target, place)
        cell = (known.index(target[1]), known.index(behaviour[1]), place[0] - 1)
        cells.setdefault(cell, []).append(found)
    return cells


def _events(drawn: Drawn) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, int]]]:
    """Behaviour and target (item, category) and (position, interval) of whatever counts."""
    known = CATEGORIES.tolist()
    for row in drawn.rows.to_pylist():
        sides = list(
            zip(row["items"] or [], row["categories"] or [], row["ago"] or [], strict=True)
        )
        early = [each for each in sides if each[2] is not None and each[2] > 0][-4:]
        for position, (item, category, ago) in enumerate(reversed(early), 1):
            if position <= 3 and row["category"] in known and category in known:
                place = (position, _bucket(float(np.float32(ago))))
                yield (item, category), (row["item"], row["category"]), place


def _one(
    drawn: Drawn,
    module: SequenceModule,
    copy: int,
    of_set: str,
    behaviour: tuple[Any, ...],
    target: tuple[Any, ...],
    place: tuple[int, int],
) -> tuple[float, float]:
    """z and ||r|| of one behaviour by the formulas."""

    def own(weight: Tensor, wide: int) -> Tensor:
        return (weight[copy] if weight.dim() == wide + 1 else weight).detach().double()

    names = ("item", "category")
    if isinstance(module, DARE):
        table = own(module.of_attention.positions, 2)
        e, v = (_vector(drawn, names, "att", each) for each in (behaviour, target))
        z = e @ v / math.sqrt(8) + table[place[0]] @ table[0] / math.sqrt(2)
        return float(z), 1.0
    e, v = (_vector(drawn, names, of_set, each) for each in (behaviour, target))
    if isinstance(module, DIN):
        first, last = module.linears[0], module.last
        x = own(first.weight, 2) @ torch.cat([v, e, v - e, v * e]) + own(first.bias, 1)
        z = own(last.weight, 2)[0] @ torch.sigmoid(x)
        if module.is_softmax:
            return float(z / math.sqrt(len(e))), float(e.norm())
        return float(z + own(last.bias, 1)[0]), float(e.norm())
    time = module.temporal
    pairs = [
        (own(table, 2)[at], own(table, 2)[0])
        for table, at in ((time.positions, place[0]), (time.intervals, place[1]))
        if table is not None
    ]
    behind = [sum(each) for each in zip(*pairs, strict=True)] if pairs else []
    if time.concat:
        z = e @ v / math.sqrt(len(e)) + behind[0] @ behind[1] / math.sqrt(3)
        e, v = torch.cat([e, behind[0]]), torch.cat([v, behind[1]])
    else:
        if behind:
            e, v = e + behind[0], v + behind[1]
        z = e @ v / math.sqrt(len(e))
    r = e * v if module.representation else e
    return float(z) if module.attention else 0.0, float(r.norm())


@pytest.mark.parametrize("case", CASES)
def test_models_against_plain_loops(case: str, tmp_path: Path) -> None:
    drawn = drawn_model(tmp_path, *CASES[case])
    question = question_of(drawn.subject, positions=3)
    assert question is not None
    assert (question.column, question.target) == ("categories", "category")
    seen: list[tuple[str, int, int]] = []
    found = learned_map(
        drawn.subject, question, CATEGORIES, lambda *told: seen.append(told), of="behaviours"
    )
    assert found is not None
    assert seen[-1][1:] == (192, 192)
    pairs = [
        (reader.module, copy, index)
        for reader in readers_of(drawn.head)
        for copy, index in enumerate(reader.sets)
    ]
    assert len(pairs) == len(found.sets) == (1 if case == "dare" else 2)
    assert found.support is not None
    for at, (module, copy, _) in enumerate(pairs):
        cells = _expected(drawn, module, copy, found.sets[at])
        assert len(cells) > 15
        for cell in np.ndindex(3, 3, 3):
            if cell not in cells:
                assert math.isnan(found.logits[at][cell])
                assert found.support[cell] == 0
                continue
            z, norm = np.mean(cells[cell], axis=0)
            assert found.support[cell] == len(cells[cell])
            assert found.logits[at][cell] == pytest.approx(z, abs=1e-6)
            assert found.norms[at][cell] == pytest.approx(norm, abs=1e-6)
    assert found.is_standardised == (case != "dare")
    assert found.is_exponential == (case != "din, sums")


@pytest.mark.parametrize("case", POSITIONS)
def test_tables_say_what_rows_say_where_behaviours_are_categories(
    case: str, tmp_path: Path
) -> None:
    """Behaviours that are a category and a position only have the same z wherever they come."""
    drawn = drawn_model(tmp_path, *POSITIONS[case], ONLY_CATEGORIES)
    question = question_of(drawn.subject, positions=3)
    assert question is not None
    rows = learned_map(drawn.subject, question, CATEGORIES, quiet, of="behaviours")
    means = learned_map(drawn.subject, question, CATEGORIES, quiet)
    tables = table_map(drawn.subject, question, CATEGORIES)
    assert rows is not None
    assert tables is not None
    assert means is not None
    assert rows.sets == tables.sets
    known = ~np.isnan(rows.logits)
    assert 15 < known[0].sum()
    for name in ("logits", "norms"):
        expected = getattr(tables, name)
        np.testing.assert_allclose(getattr(rows, name)[known], expected[known], atol=1e-6)
        np.testing.assert_allclose(getattr(means, name)[known], expected[known], atol=1e-6)


def test_tables_hold_the_category_s_part_of_a_behaviour(tmp_path: Path) -> None:
    """Of item and category side by side, the second half, and that half of a position's vector."""
    drawn = drawn_model(tmp_path, "model.sequence={kind='tim', encoding='position'}")
    question = question_of(drawn.subject, positions=3)
    assert question is not None
    found = table_map(drawn.subject, question, CATEGORIES)
    assert found is not None
    module = next(each for each in _readers(drawn.head) if isinstance(each, TIM))
    assert module.temporal.positions is not None
    place = module.temporal.positions.detach().double()[:, 8:]
    category = drawn.tables["category", "wide"].double()
    for t, i, p in np.ndindex(3, 3, 3):
        v = category[CATEGORIES[t]] + place[0]
        e = category[CATEGORIES[i]] + place[p + 1]
        assert found.logits[0, t, i, p] == pytest.approx(float(e @ v) / math.sqrt(8), abs=1e-6)
        assert found.norms[0, t, i, p] == pytest.approx(float((e * v).norm()), abs=1e-6)


def test_the_published_map_of_din_is_an_inner_product(tmp_path: Path) -> None:
    drawn = drawn_model(tmp_path, *CASES["din"])
    question = question_of(drawn.subject, positions=3)
    assert question is not None
    found = table_map(drawn.subject, question, CATEGORIES)
    assert found is not None
    for at, of_set in enumerate(found.sets):
        e = drawn.tables["category", of_set].double()[torch.from_numpy(CATEGORIES)]
        np.testing.assert_allclose(found.logits[at, :, :, 0], e @ e.t(), atol=1e-6)
        np.testing.assert_allclose(found.norms[at, 1, :, 2], e.norm(dim=1), atol=1e-6)


@pytest.mark.parametrize("case", ["tim without time", "din"])
def test_a_model_without_time_is_flat_once_categories_stand_for_items(
    case: str, tmp_path: Path
) -> None:
    drawn = drawn_model(tmp_path, *CASES[case])
    question = question_of(drawn.subject, positions=3)
    assert question is not None
    items = learned_map(drawn.subject, question, CATEGORIES, quiet, of="behaviours")
    means = learned_map(drawn.subject, question, CATEGORIES, quiet)
    assert items is not None
    assert means is not None
    truth = np.random.default_rng(0).random((3, 3, 3))
    assert (np.abs(score(truth, items.published()).own) > 0.01).all()  # chance alone
    assert (score(truth, means.published()).own == 0).all()
    assert (score(truth, means.raw()).own == 0).all()
    np.testing.assert_array_equal(means.support, items.support)


def test_categories_stand_by_their_mean_vectors(tmp_path: Path) -> None:
    """With time, by loops: mean vectors first, then each behaviour at its place."""
    drawn = drawn_model(tmp_path)
    question = question_of(drawn.subject, positions=3)
    assert question is not None
    found = learned_map(drawn.subject, question, CATEGORIES, quiet)
    assert found is not None
    module = _readers(drawn.head)[0]
    events = list(_events(drawn))
    sides: dict[tuple[str, int], list[Tensor]] = {}
    for row in drawn.rows.to_pylist():
        target = (row["item"], row["category"])
        vector = _vector(drawn, ("item", "category"), "wide", target)
        sides.setdefault(("target", row["category"]), []).append(vector)
    for behaviour, _, _ in events:
        vector = _vector(drawn, ("item", "category"), "wide", behaviour)
        sides.setdefault(("behaviour", behaviour[1]), []).append(vector)
    means = {key: torch.stack(vectors).mean(0) for key, vectors in sides.items()}
    temporal = module.temporal
    cells: dict[tuple[int, ...], list[float]] = {}
    known = CATEGORIES.tolist()
    for behaviour, target, (position, bucket) in events:
        tables = [each.detach().double() for each in (temporal.positions, temporal.intervals)]
        e = means["behaviour", behaviour[1]] + tables[0][position] + tables[1][bucket]
        v = means["target", target[1]] + tables[0][0] + tables[1][0]
        cell = (known.index(target[1]), known.index(behaviour[1]), position - 1)
        cells.setdefault(cell, []).append(float(e @ v) / 4)
    assert len(cells) > 15
    for cell, values in cells.items():
        assert found.logits[0][cell] == pytest.approx(np.mean(values), abs=1e-6)


def test_batches_of_rows_do_not_matter(tmp_path: Path) -> None:
    whole, parts = (
        drawn_model(tmp_path, name=f"b{batch}", batch=batch).subject for batch in (192, 7)
    )
    question = question_of(whole, positions=3)
    assert question is not None
    maps = [learned_map(each, question, CATEGORIES, quiet) for each in (whole, parts)]
    assert maps[0] is not None
    assert maps[1] is not None
    np.testing.assert_allclose(maps[0].logits, maps[1].logits, atol=1e-12)


def test_models_that_do_not_read_the_behaviours(tmp_path: Path) -> None:
    drawn = drawn_model(tmp_path)
    question = question_of(drawn.subject)
    assert question is not None
    assert question.positions == 4  # as long as histories are
    other = make_subject(tmp_path / "other")
    assert question_of(other) is None
    assert learned_map(other, question, CATEGORIES, quiet) is None
    assert table_map(other, question, CATEGORIES) is None
    items = Question(question.sequence, "item", "click")
    assert learned_map(drawn.subject, items, CATEGORIES, quiet) is None
