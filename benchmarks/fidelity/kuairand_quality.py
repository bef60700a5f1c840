"""KuaiRand-Pure: test AUC of recipes for all tasks at once, beside what others reach on the same split.

prismrec data prepare kuairand --source KuaiRand-Pure --out out/kuairand
python -m benchmarks.fidelity.kuairand_quality
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.channel import ROOT
from benchmarks.fidelity.command import main
from benchmarks.fidelity.study import Column, Panel, Prepared, Study, Variant
from prismrec.config.read import read

RECIPES = ROOT / "jobs" / "recipes"
SHOWN = {
    "production": "kuairand_production.toml",
    "DCN-v2, two sets": "kuairand/me_dcnv2.toml",
    "MMoE": "kuairand/mmoe.toml",
    "PLE": "kuairand/ple.toml",
    "STEM": "kuairand/stem.toml",
    "AME": "kuairand/ame.toml",
}
"""Recipes on four tasks, each trained as it stands."""
PEERS = {
    "FuxiCTR DeepFM": (0.7363, 0.7320, 0.8249),
    "FuxiCTR DCN-v2": (0.7356, 0.7292, 0.8258),
    "FuxiCTR DIN, 50-item history": (0.7471, 0.7423, None),
    "FuxiCTR Shared-Bottom": (0.7353, 0.7322, 0.8043),
    "FuxiCTR MMoE": (0.7355, 0.7323, 0.8001),
    "FuxiCTR PLE": (0.7359, 0.7332, 0.8147),
    "LightGBM on target-encoded ids": (0.7417, 0.7380, 0.8413),
}
"""Test AUC of is_click, long_view and is_like by others' code on the same rows and split, mean of two
seeds."""


def peers() -> list[str]:
    """Lines of a table of the peers."""
    lines = ["| by others | click | long view | like |", "| --- | --- | --- | --- |"]
    for name, values in PEERS.items():
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def without_vectors() -> tuple[str, ...]:
    """What takes everything that comes from the item vectors out of the production recipe."""
    features = read(RECIPES / SHOWN["production"])["features"]
    kept = {
        "sparse": [each for each in features["sparse"] if "sid" not in str(each)],
        "numbers": [each for each in features["numbers"] if "similarity" not in each],
    }
    changes = [f"features.{key}={_toml(value)}" for key, value in kept.items()]
    return (*changes, "embedding.tables={}")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


STUDY = Study(
    name="kuairand_quality",
    title="KuaiRand-Pure, one model for four tasks",
    setup=(
        "Trained up to 2022-05-03, checkpoint and settings chosen on 05-04, tested on 05-05 (13,390 rows, 188 "
        "likes: the standard error of AUC is about 0.004 for clicks and 0.015 for likes). `low` and `high` "
        "are the ends of a 95 % bootstrap interval over test rows, means over seeds. Item vectors were "
        "learnt by others, on days that are not known: the last row is without them. The test day has few "
        "follows; their AUC is there for its interval only."
    ),
    claim=(
        "Others' code on the same rows and split, settings picked on the validation day, mean of two "
        "seeds:\n\n" + "\n".join(peers())
    ),
    variants=(
        *(
            Variant(name, ("workers.count=1",), Prepared("kuairand"), RECIPES / file)
            for name, file in SHOWN.items()
        ),
        Variant(
            "production, no item vectors",
            ("workers.count=1", *without_vectors()),
            Prepared("kuairand"),
            RECIPES / SHOWN["production"],
        ),
    ),
    columns=(
        Column("test/click/auc", "click"),
        Column("test/click/auc_low", "low"),
        Column("test/click/auc_high", "high"),
        Column("test/long_view/auc", "long view"),
        Column("test/long_view/auc_low", "low "),
        Column("test/long_view/auc_high", "high "),
        Column("test/like/auc", "like"),
        Column("test/like/auc_low", " low"),
        Column("test/like/auc_high", " high"),
        Column("test/follow/auc_low", "follow, low"),
        Column("test/follow/auc_high", "follow, high"),
        Column("parameters/tables", "numbers in tables", 0),
        Column("parameters/dense", "dense", 0),
    ),
    panels=(Panel("click"), Panel("long view"), Panel("like")),
    bootstrap=200,
)

if __name__ == "__main__":
    main(STUDY)
