"""KuaiRand-Pure end to end: the recipe on two Ray workers, then its registered model.

    prismrec data prepare kuairand --source KuaiRand-Pure --out out/kuairand
    python -m benchmarks.kuairand --out benchmarks/results/kuairand

Every seed trains the recipe, and the same model with one set of the summed width beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, sentence
from benchmarks.result import write

RECIPE = "jobs/recipes/kuairand_me_dcnv2.toml"
VARIANTS = {
    "two sets of width 8": [],
    "one set of width 16": ["embedding.num_sets=1", "embedding.dim=16"],
}
METRICS = ("auc", "auc_low", "auc_high", "gauc", "logloss", "ne", "pcoc")


def prismrec(*arguments: str) -> Any:
    """The document that a command prints with `--json`."""
    command = [str(Path(sys.executable).with_name("prismrec")), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"prismrec {' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout)


def train(changes: list[str], seed: int, uri: str) -> dict[str, Any]:
    """One run of the recipe; its test metrics, speed and model."""
    document = prismrec("train", RECIPE, *changes, f"seed={seed}", f"tracking.uri={uri}")
    test = {name: document["test"][f"click/{name}"] for name in METRICS}
    return {
        "seed": seed,
        **test,
        "rows/s": document["examples_per_second"],
        "model": document["model"],
    }


def run(seeds: list[int], data: str) -> dict[str, Any]:
    """All runs, and `evaluate` and `predict` of the first one's registered model."""
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"sqlite:///{scratch}/mlflow.db"
        runs = {
            name: [train([f"data.path={data}", *changes], seed, uri) for seed in seeds]
            for name, changes in VARIANTS.items()
        }
        first = next(iter(runs.values()))[0]["model"]
        registry = ["--tracking-uri", uri]
        evaluated = prismrec("evaluate", first, "--data", data, *registry)
        predicted = prismrec("predict", first, "--data", data, "--out", f"{scratch}/out", *registry)
    return {
        "machine": machine(),
        "runs": runs,
        "evaluate": {name: evaluated["test"][f"click/{name}"] for name in ("auc", "logloss")},
        "predicted rows": predicted["rows"],
    }


def page(result: dict[str, Any], command: str) -> str:
    """The result as Markdown."""
    lines = [
        "# KuaiRand-Pure, is_click",
        "",
        f"`{command}`, {sentence(result['machine'])}.",
        "",
        f"Recipe `{RECIPE}`: trained up to 2022-05-03, best checkpoint on 05-04, tested on 05-05, two "
        "Ray workers, one epoch. The interval is a bootstrap over test rows.",
        "",
        "| model | seed | AUC | 95 % | GAUC | LogLoss | NE | calibration | rows/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in result["runs"].items():
        lines += [
            f"| {name} | {r['seed']} | {r['auc']:.4f} | {r['auc_low']:.4f}-{r['auc_high']:.4f} | "
            f"{r['gauc']:.4f} | {r['logloss']:.4f} | {r['ne']:.4f} | {r['pcoc']:.4f} | "
            f"{r['rows/s']:,.0f} |"
            for r in runs
        ]
        values = [r["auc"] for r in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        lines.append(
            f"| {name} | mean | {statistics.mean(values):.4f} ± {spread:.4f} | | | | | | |"
        )
    lines += [
        "",
        f"The first run's registered model: `prismrec evaluate` AUC {result['evaluate']['auc']:.4f}, "
        f"LogLoss {result['evaluate']['logloss']:.4f}; `prismrec predict` wrote "
        f"{result['predicted rows']:,} rows.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run and write `OUT.json` and `OUT.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="out/kuairand")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result = run(options.seeds, options.data)
    command = f"python -m benchmarks.kuairand --out {options.out}"
    write(options.out, result, page(result, command))
    print(page(result, command))


if __name__ == "__main__":
    main()
