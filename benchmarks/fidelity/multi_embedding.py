"""One wide embedding set against many narrow ones as the embedding parameters grow.

python -m benchmarks.fidelity.multi_embedding
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.fidelity.command import main
from benchmarks.fidelity.probes import abundance
from benchmarks.fidelity.study import (
    KUAIRAND_RECIPE,
    WORLD_RECIPE,
    Column,
    Data,
    Panel,
    Prepared,
    Study,
    Variant,
    World,
)

WIDTH = 8
FACTORS = (1, 2, 4, 8)
SINGLE, SEVERAL = "one set", "sets of width 8"
FIELDS = (
    *("'user_id'", "'video_id'", "'author_id'", "'music_id'", "'tag'", "'tab'", "'hour'"),
    *("'upload_type'", "'duration_bucket'", "'user_active_degree'"),
    "{ name = 'watched', column = 'watch_seq', table = 'history_video', pooling = 'mean' }",
    "{ name = 'watched_tags', column = 'watch_tags', table = 'history_tag', pooling = 'mean' }",
)
NUMBERS = ("log1p_duration_s", "video_age_days", "user_is_click_lift", "video_is_click_lift")
LATE = "data.splits.train=['date >= 20220430', 'date <= 20220503']"
FEWER = (LATE, f"features.sparse=[{', '.join(FIELDS)}]", f"features.dense={list(NUMBERS)}")
"""Days and features of KuaiRand in this study, for runs of some seconds with eight sets."""
DATA: dict[str, tuple[Data, Path, tuple[str, ...], str]] = {
    "world": (World(), WORLD_RECIPE, (), "like"),
    "KuaiRand": (Prepared("kuairand"), KUAIRAND_RECIPE, FEWER, "is_click"),
}
"""Blocks of the study: rows, recipe, what is changed in it, and the label."""


def variants() -> Iterator[Variant]:
    """All ways to spend the parameters, on both data sets, from the smallest."""
    for block, (data, recipe, changes, label) in DATA.items():
        own = (*changes, "workers.count=1", "model.hidden=[64, 32]", f"tasks=[{_task(label)}]")
        for factor in FACTORS:
            wide = (*own, "embedding.num_sets=1", f"embedding.dim={WIDTH * factor}")
            name = f"{block}: 1 x {WIDTH * factor}"
            yield Variant(name, wide, data, recipe, SINGLE, factor, block)
            if factor == 1:
                continue  # one set of width 8 either way
            name = f"{block}: {factor} x {WIDTH}"
            narrow = (*own, f"embedding.num_sets={factor}", f"embedding.dim={WIDTH}")
            yield Variant(name, narrow, data, recipe, SEVERAL, factor, block)


def _task(label: str) -> str:
    return f"{{ name = 'label', label = '{label}' }}"


STUDY = Study(
    name="multi_embedding",
    title="One wide embedding set or several narrow ones",
    setup=(
        "DCN-v2 (two cross layers beside a DNN of 64 and 32) with 1, 2, 4 and 8 times the embedding "
        "parameters of one set of width 8: as one wider set, or as more sets of width 8, each with "
        "interaction and DNN of its own, merged by their mean. `world`: 100,000 rows of the synthetic "
        "world, task `like`; `KuaiRand`: clicks of KuaiRand-Pure, 16 features of its recipe, trained on "
        "the four days up to 05-03. `best` is the AUC of the world's true probabilities. One "
        "epoch, same rates and batches for all; nothing was tuned. Abundance is the "
        "information abundance (sum of singular values over the largest) of a table's sets side by "
        "side, over the rows that training moved, as a mean over tables of 64 such rows or more; "
        "`of a set` is the mean over single sets, `share` what part of the most possible it is."
    ),
    claim=(
        "*On the Embedding Collapse when Scaling up Recommendation Models* (ICML 2024): a single set "
        "gains little or loses as it gets wider, because its vectors stay in few directions; several "
        "sets with set-specific interactions go on gaining with the parameters, and their information "
        "abundance side by side is the larger one."
    ),
    variants=tuple(variants()),
    columns=(
        Column("test/label/auc", "AUC"),
        Column("best/label/auc", "best"),
        Column("test/label/logloss", "LogLoss"),
        Column("abundance/joint", "abundance", 2),
        Column("abundance/set", "of a set", 2),
        Column("abundance/share", "share", 3),
        Column("parameters/tables", "numbers in tables", 0),
        Column("parameters/dense", "dense", 0),
    ),
    panels=(Panel("AUC"), Panel("abundance"), Panel("share")),
    across="times the embedding parameters",
    log_across=True,
    probe=abundance,
)

if __name__ == "__main__":
    main(STUDY)
