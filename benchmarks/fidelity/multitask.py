"""Models of several tasks as the two tasks of the world go from agreeing to opposing.

python -m benchmarks.fidelity.multitask
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.fidelity.command import main
from benchmarks.fidelity.study import SMALL_WORLD, Column, Panel, Study, Variant, World

SHARES = (0.0, 0.5, 1.0)
"""Shares of users for whom what speaks for `like` speaks against `finish`."""
ALONE = "single task"
WIDTH, PART = 24, 8
LAYERS = ("model.hidden=[64, 32]", "model.tower=[32]", "model.norm='layer'")
ONE = ("embedding.num_sets=1", f"embedding.dim={WIDTH}")
GATE = "model.gate_hidden=[32]"


def _task(name: str) -> str:
    return f"tasks=[{{ name = '{name}', label = '{name}' }}]"


def _sets(*parts: str) -> str:
    return f"embedding={{ sets = [{', '.join(parts)}], optimizer = {{ learning_rate = 0.3 }} }}"


def _set(name: str, width: int, features: str = "") -> str:
    covered = f", features = {features}" if features else ""
    return f"{{ name = '{name}', dim = {width}{covered} }}"


SYSTEMS: dict[str, tuple[str, ...]] = {
    "Shared-Bottom": (*ONE, "model={ name = 'shared_bottom' }"),
    "MMoE": (*ONE, "model={ name = 'mmoe', num_experts = 4 }", GATE),
    "PLE": (
        *ONE,
        "model={ name = 'ple', num_layers = 2, shared_experts = 2, specific_experts = 1 }",
        GATE,
    ),
    "STEM": (
        "embedding.num_sets=3",
        f"embedding.dim={PART}",
        "model={ name = 'stem', shared_experts = 2, specific_experts = 1 }",
        GATE,
    ),
    "AME": (
        _sets(_set("wide", 12), _set("middle", 8), _set("narrow", 4)),
        "model={ name = 'ame' }",
        GATE,
    ),
    "Crocodile": (
        _sets(
            *(_set(f"part{number}", PART) for number in range(3)),
            _set("prior", PART, "['user_id', 'item_id']"),
        ),
        "model={ name = 'crocodile', prior_set = 'prior' }",
        GATE,
    ),
}


def variants() -> Iterator[Variant]:
    """Every system, and one model for each task, in every world."""
    for share in SHARES:
        world = World(options=replace(SMALL_WORLD, opposed_share=share))
        where = f"{share:.0%} opposed"
        for task in ("like", "finish"):
            changes = (*SYSTEMS["Shared-Bottom"], *LAYERS, _task(task))
            yield Variant(f"{where}: {task} alone", changes, world, group=ALONE, at=share)
        for name, system in SYSTEMS.items():
            changes = (*system, *LAYERS)
            yield Variant(f"{where}: {name}", changes, world, group=name, at=share)


STUDY = Study(
    name="multitask",
    title="Several tasks, from agreeing to opposing",
    setup=(
        "Two tasks of the synthetic world, `like` (about a fifth of the rows) and `finish`. For a share of "
        "the users, 0, 0.5 or 1, interest and history speak for one and against the other. Every model "
        "has vectors of 24 numbers for an id in all (one set of 24; STEM three sets of 8; AME sets of "
        "12, 8 and 4; Crocodile three of 8, and 8 more of user and item for its gates), experts of 64 "
        "and 32 on the bare vectors (MMoE 4, PLE and STEM 2 shared and 1 of each task, AME and "
        "Crocodile one on each set), gates and towers of 32. `single task` is Shared-Bottom with one "
        "task: two models, and twice the parameters. Gains are over it, in hundredths of AUC. One "
        "epoch, same rates and batches for all, chosen for another model; nothing was tuned."
    ),
    claim=(
        "MMoE (KDD 2018) and PLE (RecSys 2020): sharing everything costs tasks that oppose each other "
        "accuracy (negative transfer), gated experts lose less, and PLE is best at keeping both above "
        "their single-task models. STEM (AAAI 2024): for users whose tasks disagree, shared vectors are "
        "what hurts, and sets of each task's own remove it. AME and Crocodile (the Tencent line) reach the "
        "same with shared sets of different width, or kept apart by a covariance loss."
    ),
    variants=tuple(variants()),
    columns=(
        Column("test/like/auc", "like AUC"),
        Column("test/finish/auc", "finish AUC"),
        Column("test/like/auc", "like gain", 2, over=ALONE, scale=100),
        Column("test/finish/auc", "finish gain", 2, over=ALONE, scale=100),
        Column("best/like/auc", "best like"),
        Column("best/finish/auc", "best finish"),
        Column("parameters/tables", "numbers in tables", 0),
        Column("parameters/dense", "dense", 0),
    ),
    panels=(Panel("like gain"), Panel("finish gain")),
    across="share of users whose tasks oppose",
)

if __name__ == "__main__":
    main(STUDY)
