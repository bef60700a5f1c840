"""The chapter on entanglement, on tables whose distances are planted."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prismrec.analysis.bucketed_gain import bucketed_gain, leaning
from prismrec.analysis.report.alone import one_id
from prismrec.analysis.report.chapter import Chapter, Plot
from prismrec.analysis.report.entanglement import entanglement_chapter
from prismrec.analysis.report.labels import labels_of
from prismrec.analysis.subject import FieldRows, Subject
from tests.unit.analysis.paired import NUM_ITEMS, NUM_USERS, SMALL, Rows, Told, make_subject

FIELDS = ("user", "item")
BOTH = ("like", "finish")
BOTTOM = {"name": "shared_bottom", **SMALL}
STEM = {"name": "stem", "shared_experts": 1, "gate_hidden": [5], **SMALL}
THREE = [{"name": name, "dim": 4} for name in ("likes", "ends", "all")]
SEPARATION = "What every set makes of contradictory pairs"
HILLS = "Distances of contradictory pairs"
COSINES = "Cosine of the tasks' gradients, by set"
GAINS = "Gain over models of one task, by what users lean to"


def all_pairs() -> Rows:
    """Every pair twice, in two orders, and labels that lean with the user."""
    pairs = np.array(list(itertools.product(range(NUM_USERS), range(NUM_ITEMS))))
    users, items = np.concatenate([pairs, pairs[::-1]]).T
    rng = np.random.default_rng(3)
    chance = (users + 0.5) / NUM_USERS
    labels = {
        "like": rng.random(len(users)) < chance,
        "finish": rng.random(len(users)) < 1 - chance,
        "buy": rng.random(len(users)) < 0.2,
    }
    return Rows(users, items, {name: each.astype(np.float32) for name, each in labels.items()})


ROWS = all_pairs()
GENERATOR = torch.Generator().manual_seed(8)
USERS = torch.randn(NUM_USERS + 1, 4, generator=GENERATOR)
ITEMS = torch.randn(NUM_ITEMS + 1, 4, generator=GENERATOR)


def near(of_set: str, scale: float = 1.0) -> dict[tuple[str, str], Tensor]:
    """Vectors whose distances are those of task `like`."""
    return {("user", of_set): USERS * scale, ("item", of_set): ITEMS * scale}


def opposed(of_set: str) -> dict[tuple[str, str], Tensor]:
    """Users on the other side: near for `finish` is roughly far for `like`."""
    return {("user", of_set): -USERS, ("item", of_set): ITEMS}


def between(of_set: str) -> dict[tuple[str, str], Tensor]:
    """Distances that have nothing to do with the pair's affinity."""
    return {("user", of_set): USERS.norm(dim=1, keepdim=True).expand(-1, 4) * 0.1,
            ("item", of_set): ITEMS.norm(dim=1, keepdim=True).expand(-1, 4) * -0.1}  # fmt: skip


def subjects() -> list[Subject]:
    return [
        make_subject(
            "stem", STEM, BOTH, ROWS,
            near("likes", 5) | opposed("ends") | between("all"), THREE,
        ),
        make_subject("shared", BOTTOM, BOTH, ROWS, between("only")),
        make_subject("a", BOTTOM, ["like"], ROWS, near("only")),
        make_subject("b", BOTTOM, ["finish"], ROWS, opposed("only")),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chapter() -> Chapter:
    return entanglement_chapter(subjects(), FIELDS, Told())


def plot_of(chapter: Chapter, title: str) -> Plot:
    return next(plot for plot in chapter.plots if plot.title == title)


def pair_distances(sign: int) -> np.ndarray:
    users, items = USERS[:NUM_USERS].double(), ITEMS[:NUM_ITEMS].double()
    return torch.cdist(sign * users, items, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def test_what_sets_make_of_contradictory_pairs(chapter: Chapter) -> None:
    rows = {row[:2]: row[2:] for row in plot_of(chapter, SEPARATION).numbers.rows}
    assert [key for key in rows] == [
        ("a", "only"), ("b", "only"),
        ("stem", "likes"), ("stem", "ends"), ("stem", "all"), ("shared", "only"),
    ]  # fmt: skip
    assert rows["a", "only"][0] == rows["stem", "likes"][0] == 1
    assert rows["b", "only"][0] == rows["stem", "ends"][0] == 0
    assert 0.3 < rows["shared", "only"][0] < 0.7
    # Distances in medians: a set five times as large is the same set.
    assert rows["stem", "likes"][1:] == pytest.approx(rows["a", "only"][1:])
    # Independently: chosen by loops over the whole grid of pairs.
    first, second = pair_distances(1).ravel(), pair_distances(-1).ravel()
    k = int(0.4 * NUM_USERS * NUM_ITEMS)
    far, near_ = set(np.argsort(first)[-k:]), set(np.argsort(second)[:k])
    chosen = sorted(far & near_)
    mean = first[chosen].mean() / np.median(first)
    assert rows["a", "only"][4] == pytest.approx(mean)
    # Users on the other side have the same lengths: the angles alone tell the tasks apart.
    lengths = np.hypot(*np.meshgrid(USERS[:-1].norm(dim=1), ITEMS[:-1].norm(dim=1), indexing="ij"))
    second_only = sorted(set(np.argsort(second)[-k:]) & set(np.argsort(first)[:k]))
    longer = lengths.ravel()[chosen][:, None] > lengths.ravel()[second_only]
    assert rows["a", "only"][1] == pytest.approx(longer.mean())
    assert rows["stem", "ends"][1] == rows["a", "only"][1]
    assert rows["a", "only"][2] == pytest.approx(1 - rows["b", "only"][2])
    assert rows["a", "only"][2] > 0.95
    assert f"Of 600 distinct pairs {len(chosen)} are far for like" in chapter.summary[0]


def test_verdicts_in_words(chapter: Chapter) -> None:
    told = [sentence for sentence in chapter.summary if "AUC" in sentence and "set `" in sentence]
    assert told[0].startswith("stem: set `likes` tells the pairs")
    assert "as the model of like alone does, AUC 1.00 (the lengths" in told[0]
    assert "as the model of finish alone does, AUC 0.00 (the lengths" in told[1]
    assert "stem: set `all` does not tell the pairs" in told[2]
    assert "shared: set `only` does not tell the pairs" in told[3]
    assert len(told) == 4


def test_hills(chapter: Chapter) -> None:
    plot = plot_of(chapter, HILLS)
    assert len(plot.traces) == 2 * 6
    assert len(plot.numbers.rows) == 50 * 6
    for model, of_set in (("a", "only"), ("stem", "all")):
        own = [row for row in plot.numbers.rows if row[:2] == (model, of_set)]
        assert sum(row[4] for row in own) == pytest.approx(1)
        assert sum(row[5] for row in own) == pytest.approx(1)
    ranges = {tuple(plot.layout[axis]["range"]) for axis in ("xaxis", "xaxis2", "xaxis6")}
    assert len(ranges) == 1
    assert {trace["name"] for trace in plot.traces} == {"far for like", "far for finish"}


def test_diversity_of_sets(chapter: Chapter) -> None:
    rows = plot_of(chapter, "Diversity Index").numbers.rows
    assert [row[:2] for row in rows] == [("stem", 3), ("like and finish, each alone", 2)]
    first, second = pair_distances(1).ravel(), pair_distances(-1).ravel()
    k = int(0.4 * 600)
    count = len(set(np.argsort(first)[-k:]) & set(np.argsort(second)[:k]))
    other = len(set(np.argsort(second)[-k:]) & set(np.argsort(first)[:k]))
    assert rows[1][2] == pytest.approx((count + other) / 2 / 600)


def test_gradients_of_the_tasks(chapter: Chapter) -> None:
    rows = {row[:3]: row[3:] for row in plot_of(chapter, COSINES).numbers.rows}
    assert {key[:2] for key in rows} == {
        ("stem", "likes"), ("stem", "ends"), ("stem", "all"), ("shared", "only"),
    }  # fmt: skip
    assert rows["stem", "likes", "all"] == ("like", "finish", None, None, None, 0)
    assert rows["stem", "ends", "item"][2:] == (None, None, None, 0)
    # Independently, of the users' vectors in `shared`, by autograd over the whole sum of each task.
    shared, slopes = subjects()[1], []
    for sample in shared.samples():
        X = sample.inputs.sets[0].requires_grad_()
        logits, _ = shared.model(sample.inputs)
        losses = F.binary_cross_entropy_with_logits(logits, sample.labels, reduction="none").sum(0)
        slopes.append([torch.autograd.grad(each, X, retain_graph=True)[0] for each in losses])
    first, second = (torch.cat(each)[:, 0].double() for each in zip(*slopes, strict=True))
    both = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    cosines = F.cosine_similarity(first, second)[both]
    found = rows["shared", "only", "user"][2:]
    assert found[3] == int(both.sum()) > 0
    assert found[2] == pytest.approx(float((cosines < 0).double().mean()))
    assert found[1] == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert found[0] == pytest.approx(
        float((first * second).sum() / first.norm() / second.norm()), abs=1e-6
    )
    assert (
        "stem: the loss of finish has no gradient at all in set `likes`, exactly 0 on every row."
        in chapter.summary
    )
    (trace,) = plot_of(chapter, COSINES).traces
    assert [each is None for each in trace["x"]] == [True, True, False, False]


def test_gains_by_users(chapter: Chapter) -> None:
    plot, models = plot_of(chapter, GAINS), {each.name: each for each in subjects()}

    def logits(name: str, task: int) -> np.ndarray:
        with torch.no_grad():
            parts = [models[name].model(each.inputs)[0] for each in models[name].samples()]
        return torch.cat(parts)[:, task].double().numpy()

    labels = {name: each.astype(float) for name, each in ROWS.labels.items()}
    leans = leaning(ROWS.users, labels["like"], labels["finish"])
    expected = bucketed_gain(leans.buckets, labels["finish"], logits("stem", 1), logits("b", 0))
    rows = [row for row in plot.numbers.rows if row[:2] == ("stem", "finish")]
    assert [row[2] - 1 for row in rows] == [each.bucket for each in expected]
    assert [row[-1] for row in rows] == pytest.approx([each.gain for each in expected])
    assert [row[4] for row in rows] == [3] * 10
    assert [row[3] for row in rows] == sorted(row[3] for row in rows)
    assert [trace["name"] for trace in plot.traces] == [
        "stem · like", "stem · finish", "shared · like", "shared · finish",
    ]  # fmt: skip
    best = max(each.gain for each in expected)
    assert any(
        sentence.startswith("stem on finish") and f"AUC at best {best:+.3f} on users" in sentence
        for sentence in chapter.summary
    )


def test_the_chapter_is_plain_json(chapter: Chapter) -> None:
    json.dumps([[plot.traces, plot.layout] for plot in chapter.plots], allow_nan=False)
    json.dumps([list(plot.numbers.rows) for plot in chapter.plots], allow_nan=False)
    assert chapter.missing == ()


def test_models_of_one_task_are_asked_for() -> None:
    everyone = subjects()
    chapter = entanglement_chapter(everyone[:2], FIELDS, Told())
    (missing,) = chapter.missing
    assert "there is none; train the recipe of stem once more with only the task 'like'" in missing
    assert "once with only 'finish', and pass both beside it" in missing
    titles = [plot.title for plot in chapter.plots]
    assert titles[:2] == ["Diversity Index", COSINES]
    chapter = entanglement_chapter(everyone[:3], FIELDS, Told())
    (missing,) = chapter.missing
    assert "there is one; train the recipe of stem once more with only the task 'finish'" in missing
    chapter = entanglement_chapter(everyone[2:3], FIELDS, Told())
    assert "one of both; train and pass them together" in chapter.missing[0]
    assert chapter.plots == ()


def test_what_cannot_be_compared_is_said() -> None:
    everyone = subjects()
    third = make_subject("c", BOTTOM, ["buy"], ROWS)
    shorter = Rows(ROWS.users[:100], ROWS.items[:100], {n: e[:100] for n, e in ROWS.labels.items()})
    short = make_subject("short", BOTTOM, BOTH, shorter)
    apart = make_subject(
        "apart", {"name": "ame", **SMALL}, BOTH, ROWS,
        sets=[{"name": "whole", "dim": 4}, {"name": "part", "dim": 4, "features": ["user"]}],
    )  # fmt: skip
    chapter = entanglement_chapter([*everyone[2:], third, short, apart], FIELDS, Told())
    told = " ".join(chapter.missing)
    assert (
        "only the tasks like and finish were held against each other; to compare with buy" in told
    )
    assert "short was given 100 rows and a 1200; pairs are compared on the same rows only" in told
    assert "short was given 100 rows and a 1200; gains are compared on the same rows only" in told
    assert "apart: no distances in part, which does not cover both user and item" in told
    rows = [row[:2] for row in plot_of(chapter, SEPARATION).numbers.rows]
    assert ("apart", "whole") in rows
    assert ("apart", "part") not in rows
    chapter = entanglement_chapter(everyone, ("user", "author"), Told())
    assert "a has no field author; its fields are user, item" in " ".join(chapter.missing)
    assert [plot.title for plot in chapter.plots][:2] == [GAINS, COSINES]


def test_tasks_that_agree_leave_no_contradictory_pair() -> None:
    same = [
        make_subject("a", BOTTOM, ["like"], ROWS, near("only")),
        make_subject("b", BOTTOM, ["finish"], ROWS, near("only")),
        make_subject("shared", BOTTOM, BOTH, ROWS),
    ]
    chapter = entanglement_chapter(same, FIELDS, Told())
    assert "among 600 pairs there is none that is far for like and near for finish" in " ".join(
        chapter.missing
    )
    assert SEPARATION not in [plot.title for plot in chapter.plots]


def test_distances_by_angle() -> None:
    chapter = entanglement_chapter(subjects(), FIELDS, Told(), metric="cosine")
    rows = {row[:2]: row[2:] for row in plot_of(chapter, SEPARATION).numbers.rows}
    assert rows["stem", "ends"][0] == 0
    assert "by cosine distance" in plot_of(chapter, SEPARATION).definition
    users, items = (each / each.norm(dim=1, keepdim=True) for each in (USERS, ITEMS))
    cosines = (users[:NUM_USERS] @ items[:NUM_ITEMS].T).double().numpy().ravel()
    # 1 - cos and 1 + cos: the far ones of the one are the near ones of the other.
    count = int(0.4 * 600)
    far = np.sort(1 - cosines)[-count:]
    assert rows["a", "only"][4] == pytest.approx(far.mean() / np.median(1 - cosines), rel=1e-5)


def test_bags_are_no_pairs() -> None:
    def in_bags(subject: Subject) -> Subject:
        def samples():
            for each in subject.samples():
                bag = FieldRows(each.fields["item"].rows, torch.tensor([2, 0] + [1] * 62))
                yield replace(each, fields={**each.fields, "item": bag})

        return replace(subject, samples=samples)

    chapter = entanglement_chapter([in_bags(each) for each in subjects()], FIELDS, Told())
    assert "a row of user or item has no id or several" in " ".join(chapter.missing)


def test_ids_of_several_rows() -> None:
    several = FieldRows(torch.tensor([5, 9, 9, 5, 5, 9]), torch.tensor([2, 2, 2]))
    found = one_id(several)
    assert found is not None
    assert found[0] == found[2] != found[1]
    assert (found < 2**31).all()
    assert one_id(FieldRows(torch.tensor([4, 2]), torch.tensor([1, 1]))).tolist() == [4, 2]
    assert one_id(FieldRows(torch.tensor([4, 2]), torch.tensor([2, 0]))) is None
    assert one_id(FieldRows(torch.tensor([]), torch.tensor([0, 0]))) is None


def test_everything_is_told() -> None:
    told = Told()
    entanglement_chapter(subjects(), FIELDS, told)
    ends = {what for what, done, total in told.calls if done == total == 1200}
    assert {"pairs of a", "distances of stem", "gradients of shared", "scores of b"} <= ends


def test_names_on_axes_are_short_and_differ() -> None:
    def named(*names: str) -> list[tuple[int, str]]:
        found = labels_of([make_subject(name, BOTTOM, BOTH, ROWS) for name in names])
        assert list(found) == list(names)
        return [(each.number, each.short) for each in found.values()]

    assert named("stem", "ple") == [(0, "stem"), (1, "ple")]
    long = ("out/first run/checkpoints/step-120", "out/second run/checkpoints/step-120")
    assert named(*long) == [(0, "1: first run"), (1, "2: second run")]
    assert named("models:/clicks_and_likes/3") == [(0, "clicks_and_like…")]


def test_several_losses_that_do_not_reach_a_set() -> None:
    sets = [{"name": name, "dim": 4} for name in ("one", "two", "three", "all")]
    subject = make_subject("stem", STEM, ["like", "finish", "buy"], ROWS, sets=sets)
    chapter = entanglement_chapter([subject], FIELDS, Told())
    assert (
        "stem: the losses of like and buy have no gradient at all in set `two`, exactly 0 on every row."
        in chapter.summary
    )
    rows = [row for row in plot_of(chapter, COSINES).numbers.rows if row[1:3] == ("all", "all")]
    assert [row[3:5] for row in rows] == [("like", "finish"), ("like", "buy"), ("finish", "buy")]
    assert all(row[5] is not None for row in rows)
    traces = plot_of(chapter, COSINES).traces
    assert [trace["name"] for trace in traces] == ["like × finish", "like × buy", "finish × buy"]
