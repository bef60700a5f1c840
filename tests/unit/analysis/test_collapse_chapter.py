"""The chapter on collapse, over tables whose shape is planted."""

from __future__ import annotations

import pytest
import torch

from prismrec.analysis.report.chapter import Chapter, Numbers
from prismrec.analysis.report.collapse import collapse_chapter
from prismrec.analysis.spectra import spectrum
from prismrec.analysis.subject_spectra import by_rows, by_samples, looked_up
from tests.unit.analysis.planted import RANK, ROWS, WIDTH, planted


def _silent(title: str, done: int, total: int) -> None:
    assert title
    assert 0 < done <= total


@pytest.fixture(scope="module")
def chapter() -> Chapter:
    return collapse_chapter([planted().subject], _silent)


def _row(numbers: Numbers, name: str, set_name: str) -> dict[str, object]:
    (found,) = [row for row in numbers.rows if row[1:3] == (name, set_name)]
    return dict(zip(numbers.columns, found, strict=True))


def test_a_planted_table_of_rank_three_is_reported_as_such(chapter: Chapter) -> None:
    assert chapter.summary[0] == (
        "1 of 4 sets of tables are collapsed: they use less than 20% of the dimensions that they could."
    )
    assert chapter.summary[1] == (
        f"table `sunk` in set `a` spans {RANK}.0 of {WIDTH} dimensions, 99% of its energy in 3 directions."
    )
    numbers = chapter.plots[0].numbers
    sunk, flat = _row(numbers, "sunk", "a"), _row(numbers, "sunk", "b")
    assert sunk["information abundance"] == pytest.approx(RANK)
    assert sunk["share"] == pytest.approx(RANK / WIDTH)
    assert sunk["directions of 99 %"] == RANK
    assert sunk["RankMe"] == pytest.approx(RANK, abs=1e-2)
    assert flat["information abundance"] == pytest.approx(WIDTH)
    assert (sunk["cardinality"], sunk["rows"], sunk["width"]) == (ROWS, ROWS, WIDTH)


def test_by_rows_is_the_exact_spectrum_of_every_set() -> None:
    world = planted()
    for each in by_rows(world.subject, _silent):
        exact = spectrum(world.tables[each.name, each.set_name])
        torch.testing.assert_close(each.spectrum.sigma, exact.sigma, atol=1e-6, rtol=1e-6)


def test_by_samples_counts_each_row_as_often_as_it_is_looked_up() -> None:
    world = planted()
    seen = looked_up(world.subject, _silent)
    assert seen["flat"].rows.tolist() == [0, 1]
    assert seen["flat"].counts.tolist() == [9, 1]
    for each in by_samples(world.subject, seen, _silent):
        repeated = world.tables[each.name, each.set_name][world.looked_up[each.name]]
        expected = spectrum(repeated).sigma
        torch.testing.assert_close(each.spectrum.sigma[:2], expected[:2], atol=1e-6, rtol=1e-6)
        assert each.spectrum.bound == 2


def test_two_models_stand_side_by_side() -> None:
    chapter = collapse_chapter([planted("first").subject, planted("second").subject], _silent)
    mean = (3 + RANK / WIDTH) / 4
    assert chapter.summary[0] == (
        "Share of its possible dimensions that a set of a table uses, on average: "
        f"second {mean:.0%}, first {mean:.0%}."
    )
    assert chapter.summary[1].startswith("first: 1 of 4 sets")
    (trace,) = chapter.plots[0].traces
    assert trace["x"] == ["1: a", "1: b", "2: a", "2: b"]
    place = trace["y"].index("sunk")
    assert trace["z"][place] == pytest.approx([RANK / WIDTH, 1, RANK / WIDTH, 1])


def test_sub_embeddings_meet_through_the_models_own_matrices(chapter: Chapter) -> None:
    world = planted()
    titles = [plot.title for plot in chapter.plots]
    plot = chapter.plots[titles.index("Sub-embeddings of planted, set a, expert 0, FieldMatrixed")]
    found = {row[:2]: row[2] for row in plot.numbers.rows}
    matrix = next(p for n, p in world.subject.model.named_parameters() if p.shape[-2:] == (16, 16))
    block = matrix.detach().reshape(-1, WIDTH, WIDTH)[0]
    for source, by in (("flat", block), ("sunk", block)):
        partner = "sunk" if source == "flat" else "flat"
        of_source = world.tables[source, "a"]
        both = [spectrum(of_source @ each).information_abundance for each in (by, by.t())]
        assert any(found[source, partner] == pytest.approx(each, abs=1e-4) for each in both)
    assert found["sunk", "flat"] < RANK + 0.1, "a matrix lends no dimensions"


def test_layers_have_the_spectrum_of_what_they_make_of_the_sample(chapter: Chapter) -> None:
    world = planted()
    plot = next(p for p in chapter.plots if p.title == "Dimensions that layers use")
    found = {row[1]: dict(zip(plot.numbers.columns, row, strict=True)) for row in plot.numbers.rows}
    fields = {name: row for name, row in found.items() if row["part"] == "fields"}
    assert len(fields) == 2
    for set_name in ("a", "b"):
        (row,) = [each for name, each in fields.items() if str(name).startswith(set_name)]
        vectors = torch.cat([world.tables[t, set_name] for t in ("flat", "sunk")], 1)
        expected = spectrum(vectors[world.looked_up["flat"]])
        assert row["RankMe"] == pytest.approx(expected.rank_me, rel=1e-4)
        assert row["width"] == 2 * WIDTH


def test_partners_are_told_where_there_are_fields_enough() -> None:
    world = planted(tables=("f0", "f1", "f2", "f3", "f4", "low"))
    chapter = collapse_chapter([world.subject], _silent)
    (of_a,) = [each for each in chapter.summary if each.startswith("planted, set a")]
    # five fields of full rank and one of rank 3 behind matrices near the identity
    assert float(of_a.split("in pairs by ")[1][:4]) > 0.99
    plot = next(p for p in chapter.plots if p.title.startswith("Sums over pairs of planted, set a"))
    for name, own, row_sum, _ in plot.numbers.rows:
        assert own == pytest.approx(RANK if name == "low" else WIDTH, abs=1e-3)
        assert (row_sum < 5 * RANK + 1) is (name == "low")


def test_a_table_with_numbers_that_are_not_finite_is_named() -> None:
    world = planted()
    broken = world.tables["flat", "b"].clone()
    broken[5] = torch.nan
    world.tables["flat", "b"] = broken
    chapter = collapse_chapter([world.subject], _silent)
    assert chapter.summary[0] == (
        "1 sets of tables hold numbers that are not finite: `flat` in set `b`."
    )
    assert _row(chapter.plots[0].numbers, "flat", "b")["directions of 99 %"] is None
