"""The command of a study: train what is missing, write the page."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.channel import ROOT
from benchmarks.fidelity.page import Results, kept_text, markdown, plot
from benchmarks.fidelity.study import (
    QUICK_SEEDS,
    QUICK_STEPS,
    Data,
    Prepared,
    Study,
    Variant,
    digest,
    recipe_of,
)
from benchmarks.fidelity.training import run
from benchmarks.machine import machine
from prismrec.config import Recipe, UserError

RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "out" / "fidelity"


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """Carry out a study.

    Every finished run is put down at once in `fidelity_NAME.json`, so that a study that was
    interrupted goes on where it was; a run is known by recipe, rows and seed.
    """
    asked = _parser(study).parse_args(arguments)
    seeds = QUICK_SEEDS if asked.quick else tuple(asked.seeds)
    out = asked.out or (SCRATCH / "quick" if asked.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    store = out / f"fidelity_{study.name}.json"
    known = {} if asked.fresh else _stored(store)
    runs: dict[str, list[dict[str, Any]]] = {}
    wanted, trained, began = 0, 0, time.monotonic()
    try:
        for variant, recipe, key in _orders(study, asked, seeds):
            wanted += 1
            is_time = time.monotonic() < began + 60 * asked.minutes
            if key not in known and trained < asked.limit and is_time:
                print(f"{variant.name}, seed {recipe.seed}", file=sys.stderr, flush=True)
                about_run = {"variant": variant.name, "seed": recipe.seed}
                known[key] = about_run | run(study, recipe, asked.threads)
                trained += 1
                known = _put_down(store, study, {**_stored(store), **known})
            if key in known:
                runs.setdefault(variant.name, []).append(known[key])
    except UserError as error:
        sys.exit(f"{study.name}: {error.message}")
    about = {"command": _command(study, asked), "machine": machine(), "wanted": wanted}
    page = out / f"fidelity_{study.name}.md"
    results = Results(study, runs)
    text = markdown(results, about, kept_text(page))
    page.write_text(text)
    plot(results, page.with_suffix(".svg"))
    print(text)


def _stored(store: Path) -> dict[str, Any]:
    """The runs that are put down, by what they are known by."""
    return json.loads(store.read_text())["runs"] if store.exists() else {}


def _put_down(store: Path, study: Study, runs: dict[str, Any]) -> dict[str, Any]:
    """Write the runs so that another process of the same study never reads half of them."""
    scratch = store.with_name(f"{store.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps({"study": study.name, "runs": runs}, indent=1) + "\n")
    scratch.replace(store)
    return runs


def _orders(
    study: Study, asked: argparse.Namespace, seeds: Sequence[int]
) -> Iterator[tuple[Variant, Recipe, str]]:
    """Every run of the study: its variant, its recipe and what it is known by.

    A quick look takes the first and the last variant on a world, a few steps on tiny rows.
    """
    variants = [v for v in study.variants if asked.only in v.name]
    if asked.quick:
        worlds = [variant for variant in variants if not isinstance(variant.data, Prepared)]
        variants = list({worlds[0].name: worlds[0], worlds[-1].name: worlds[-1]}.values())
    for seed in seeds:
        for variant in variants:
            data: Data = variant.data
            if asked.quick and not isinstance(data, Prepared):
                data = data.quick()
            path = data.path(asked.prepared if isinstance(data, Prepared) else asked.scratch)
            recipe = recipe_of(study, variant, seed, path)
            if asked.quick:
                short = recipe.train.model_copy(update={"steps": QUICK_STEPS})
                recipe = recipe.model_copy(update={"train": short})
            yield variant, recipe, digest(recipe, data, path)


def _parser(study: Study) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.fidelity.{study.name}",
        description=f"{study.title}. Writes fidelity_{study.name}.json, .md and .svg.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1, help="cores of a run")
    parser.add_argument("--out", type=Path, help="directory of the page; benchmarks/results")
    parser.add_argument(
        "--scratch", type=Path, default=SCRATCH, help="directory of synthetic worlds"
    )
    parser.add_argument(
        "--prepared",
        type=Path,
        default=ROOT / "out",
        help="directory of data sets made by `prismrec data prepare NAME --out DIR/NAME`",
    )
    parser.add_argument("--only", default="", help="variants whose name holds this text")
    parser.add_argument(
        "--limit", type=int, default=10_000, help="train at most this many runs; the rest later"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no run after so long; the rest later"
    )
    parser.add_argument("--fresh", action="store_true", help="train again what was trained")
    parser.add_argument("--quick", action="store_true", help="two variants, a few steps")
    return parser


def _command(study: Study, asked: argparse.Namespace) -> str:
    seeds = "" if asked.seeds == [1, 2, 3] else f" --seeds {' '.join(map(str, asked.seeds))}"
    quick = " --quick" if asked.quick else ""
    return f"python -m benchmarks.fidelity.{study.name}{seeds}{quick}"
