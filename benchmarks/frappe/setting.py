"""What both programs are given: rows, fields, models, budget and the rates that are tried."""

from __future__ import annotations

from typing import Any

FIELDS = (
    "user",
    "item",
    "daytime",
    "weekday",
    "isweekend",
    "homework",
    "cost",
    "weather",
    "country",
    "city",
)
SPLITS = ("train", "valid", "test")
MODELS = ("fm", "fwfm", "fmfm", "dcnv2", "deepfm", "ipnn", "xdeepfm")
SHALLOW = ("fm", "fwfm", "fmfm")
DIM = 8
"""Width of the tables: the public benchmark has 10, ours are multiples of 4."""
BATCH = 1024
HIDDEN = (64, 32)
DROPOUT = 0.2
CROSS_LAYERS = 2
MAPS = (8, 8)
INIT_STD = {"ours": 3e-3, "fuxictr": 1e-4}
"""Of the tables: FuxiCTR's usual one, and one that needs no clipping of the first gradients behind a batch
normalisation."""
EPOCHS = 20
PATIENCE = 2
SEEDS = (1, 2, 3, 4, 5)


def grid(model: str) -> list[float]:
    """Rates of Adam that are tried, the same ones for both programs."""
    return [0.003, 0.01, 0.03] if model in SHALLOW else [0.001, 0.003, 0.01]


PROGRAMS = ("ours", "fuxictr")


def facts() -> dict[str, Any]:
    """All that runs must share to stand in one table."""
    return {
        "width": DIM,
        "batch": BATCH,
        "hidden": list(HIDDEN),
        "dropout": DROPOUT,
        "cross layers": CROSS_LAYERS,
        "maps": list(MAPS),
        "initial deviation": dict(INIT_STD),
        "epochs": EPOCHS,
        "patience": PATIENCE,
    }


Job = dict[str, Any]
"""One run: `model`, `seed` and `rate`."""
