"""The correlation that sequence modules learn beside the one planted in a world whose histories fade.

python -m benchmarks.fidelity.correlation
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fidelity.command import main
from benchmarks.fidelity.histories import READ
from benchmarks.fidelity.study import Column, Panel, Study, Variant, World
from prismrec.analysis.correlation import (
    LearnedMap,
    count_behaviours,
    learned_map,
    question_of,
    score,
    table_map,
)
from prismrec.config import Recipe
from prismrec.jobs.subjects import opened_subjects
from prismrec.train.metrics.arrays import Floats

ROWS = 400_000
MOST = 5
"""Target categories that the score is the mean of, the most frequent."""
MODULES = {
    "TIM": "kind = 'tim', encoding = 'position'",
    "TIM, position and interval": "kind = 'tim', encoding = 'both'",
    "TIM without time": "kind = 'tim', encoding = 'none'",
    "TIM without attention": "kind = 'tim', encoding = 'position', attention = false",
    "TIM without representation": "kind = 'tim', encoding = 'position', representation = false",
    "DIN": "kind = 'din', hidden = [32]",
}


def variants(rows: int = ROWS) -> Iterator[Variant]:
    """Every module on a world of so many rows."""
    for name, options in MODULES.items():
        changes = (
            *READ,
            f"model.sequence={{ {options} }}",
            "tasks=[{ name = 'like', label = 'like' }]",
            "embedding.dim=16",
        )
        yield Variant(name, changes, World(rows))


def inspect(checkpoint: Path, recipe: Recipe) -> dict[str, float]:
    """Scores of a model's maps against the mutual information in all rows of its data.

    Args:
        checkpoint: of the model.
        recipe: its recipe; the maps are made of the rows of its test split.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        opened_subjects(
            [str(checkpoint)], recipe.data.path, "test", ROWS, f"sqlite:///{scratch}/none.db"
        ) as opened,
    ):
        subject = opened[0].subject
        question = question_of(subject)
        assert question is not None
        counts = count_behaviours(question, recipe.data.path, _quiet)
        truth, found = counts.information(), {}
        maps = {
            "categories": learned_map(subject, question, counts.categories, _quiet),
            "behaviours": learned_map(
                subject, question, counts.categories, _quiet, of="behaviours"
            ),
            "tables": table_map(subject, question, counts.categories),
        }
        for name, learned in maps.items():
            assert learned is not None
            found |= _scores(name, truth, learned)
    return found


def _scores(name: str, truth: Floats, learned: LearnedMap) -> dict[str, float]:
    scores = score(truth, learned.published())
    each = {
        f"correlation/{name}/{int(category)}": float(own)
        for category, own in zip(learned.categories[:MOST], scores.own[:MOST], strict=True)
    }
    return {
        **each,
        f"correlation/{name}": scores.mean(MOST),
        f"correlation/{name}/raw": score(truth, learned.raw()).mean(MOST),
        f"correlation/{name}/whole": scores.mean_pearson,
        f"correlation/{name}/ranks": scores.mean_spearman,
    }


def _quiet(doing: str, done: int, total: int) -> None:
    """The study says which run it is at."""


STUDY = Study(
    name="correlation",
    title="The correlation that sequence modules learn, beside the one that is planted",
    setup=(
        f"{ROWS:,} rows of the synthetic world, whose histories speak for `like` by the pair of target's and "
        "behaviour's category and fade with position and with time. Truth is the mutual information of "
        "`like` and the behaviour at a position being of a category, by target category, over all rows. "
        "One DCN-v2 (one set of width 16, two cross layers beside a DNN of 64 and 32), task `like`, one "
        "epoch, nothing tuned; its maps are made of the test rows. The score is the Pearson correlation "
        f"over positions 1 to 10 of the row of the target's own category, mean of the {MOST} most "
        "frequent target categories. Maps are normalised as published, and made in three ways: `score` "
        "lets mean vectors of categories stand for behaviours and targets, each at its position and "
        "interval; `items` takes behaviours as they are; `tables` takes the vectors of categories and "
        "positions alone, as the released code does. `whole` and `ranks` are Pearson and Spearman "
        "correlations of whole maps, mean of ten target categories, made as `score` is."
    ),
    claim=(
        "*Temporal Interest Network for User Response Prediction* (WWW 2024), Amazon: TIN 0.9894, without "
        "temporal encoding 0, without attention -0.6845, without representation 0.8179, SASRec 0.8461, BST "
        "0.6245, DIN 0. The paper does not define the number; the row above gives 0.9895 on its published "
        "maps."
    ),
    variants=tuple(variants()),
    columns=(
        Column("correlation/categories", "score", 3),
        Column("correlation/tables", "tables", 3),
        Column("correlation/behaviours", "items", 3),
        Column("correlation/categories/whole", "whole", 3),
        Column("correlation/categories/ranks", "ranks", 3),
        Column("test/like/auc", "like AUC"),
        Column("best/like/auc", "best like"),
        Column("seconds", "s a run", 0),
    ),
    panels=(Panel("score"), Panel("tables"), Panel("like AUC")),
    inspect=inspect,
)

if __name__ == "__main__":
    main(STUDY)
