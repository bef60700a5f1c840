"""Measured program: the training loop itself, one process, one run for every line on standard input."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.channel import Channel
from benchmarks.frappe.setting import (
    BATCH,
    CROSS_LAYERS,
    DIM,
    DROPOUT,
    EPOCHS,
    FIELDS,
    HIDDEN,
    INIT_STD,
    MAPS,
    PATIENCE,
    SPLITS,
    Job,
)
from prismrec.config import Recipe, from_dict
from prismrec.data.source import open_data
from prismrec.train.events import EventLog
from prismrec.train.loop import Session, train
from prismrec.train.process_group import Ranks, process_group
from prismrec.train.run_files import RunFiles

_DEEP = {"hidden": list(HIDDEN), "dropout": DROPOUT, "norm": "batch"}
MODELS: dict[str, dict[str, Any]] = {
    "fm": {},
    "fwfm": {},
    "fmfm": {},
    "ipnn": _DEEP,
    "deepfm": _DEEP,
    "dcnv2": {**_DEEP, "num_cross_layers": CROSS_LAYERS},
    "xdeepfm": {**_DEEP, "maps": list(MAPS)},
}


def recipe(data: Path, job: Job) -> Recipe:
    """The recipe of one run."""
    tables = {
        "dim": DIM,
        "init_std": INIT_STD["ours"],
        "sharding": "data_parallel",
        "optimizer": {"name": "adam", "learning_rate": job["rate"]},
    }
    return from_dict(
        {
            "name": "frappe",
            "seed": job["seed"],
            "data": {
                "path": str(data),
                "global_batch_size": BATCH,
                "splits": {name: [f"split == {n}"] for n, name in enumerate(SPLITS)},
            },
            "features": {"sparse": list(FIELDS)},
            "embedding": tables,
            "model": {"name": job["model"], **MODELS[job["model"]]},
            "tasks": [{"name": "used", "label": "label"}],
            "train": {
                "epochs": EPOCHS,
                "precision": "fp32",
                "device": "cpu",
                "optimizer": {"learning_rate": job["rate"]},
                "schedule": {"decay": "plateau"},
            },
            "evaluate": {"patience": PATIENCE, "bootstrap": 0},
        }
    )


def run(data: Path, job: Job, ranks: Ranks) -> dict[str, Any]:
    """Train and test once."""
    started = time.perf_counter()
    with TemporaryDirectory() as directory:
        files = RunFiles(Path(directory))
        session = Session(ranks, files, EventLog(files.events), "first")
        outcome = train(recipe(data, job), open_data(str(data)), session)
        lines = [json.loads(line) for line in files.events.read_text().splitlines()]
    seconds = time.perf_counter() - started
    valid = [
        (line["values"]["valid/used/auc"], line["values"]["valid/used/logloss"])
        for line in lines
        if "valid/used/auc" in line.get("values", {})
    ]
    best = max(valid)
    return {
        "valid_auc": best[0],
        "valid_logloss": best[1],
        "test_auc": outcome.metrics["used/auc"],
        "test_logloss": outcome.metrics["used/logloss"],
        "epochs": len(valid),
        "seconds": round(seconds, 1),
        "curve": [round(auc, 5) for auc, _ in valid],
    }


def main() -> None:
    """A line with a job in, a line with its result out."""
    channel = Channel()
    with process_group("cpu") as ranks:
        for line in sys.stdin:
            channel.say(**run(Path(sys.argv[1]), json.loads(line), ranks))


if __name__ == "__main__":
    main()
