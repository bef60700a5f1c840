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
EPOCHS = 8
PATIENCE = 2
SEEDS = (1, 2, 3)


def grid(program: str, model: str) -> list[dict[str, float]]:
    """Learning rates that are tried, three times each: of Adam, and of our tables' Adagrad."""
    if program == "fuxictr":
        rates = (0.003, 0.01, 0.03) if model in SHALLOW else (0.001, 0.003, 0.01)
        return [{"rate": rate} for rate in rates]
    if model in SHALLOW:
        return [{"rate": 0.003, "table_rate": rate} for rate in (0.1, 0.2, 0.4)]
    both = ((0.001, 0.2), (0.003, 0.1), (0.003, 0.3))
    return [{"rate": rate, "table_rate": table_rate} for rate, table_rate in both]


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
        "epochs": EPOCHS,
        "patience": PATIENCE,
    }


Job = dict[str, Any]
"""One run: `model`, `seed` and learning rates."""
