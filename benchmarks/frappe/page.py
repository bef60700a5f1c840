"""The results as a page."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.frappe import setting
from benchmarks.frappe.study import Runs, chosen, complete, finals, trials
from benchmarks.machine import sentence

NAMES = {"ours": "ours", "fuxictr": "FuxiCTR"}
NUM_TRIALS = len(setting.grid("fm"))


def spread_of(runs: list[dict[str, Any]], metric: str) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    values = [each[metric] for each in runs]
    return statistics.mean(values), statistics.stdev(values)


def verdict(runs: Runs, model: str) -> str:
    """Whether our mean test AUC is above FuxiCTR's, within the larger spread of it, or below."""
    ours, own = spread_of(finals(runs, "ours", model), "test_auc")
    theirs, other = spread_of(finals(runs, "fuxictr", model), "test_auc")
    if ours >= theirs:
        return "above"
    return "within the spread" if theirs - ours <= max(own, other) else "below"


def page(document: dict[str, Any]) -> str:
    """Test results of the chosen rates, then what was tried on the validation rows."""
    runs: Runs = document["runs"]
    done = complete(runs)
    left = [model for model in setting.MODELS if model not in done]
    lines = [
        "# Frappe, beside FuxiCTR",
        "",
        f"`{document['command']}`, {sentence(document['machine'])}.",
        "",
        *_setting(),
        *([""] if left else []),
        *([f"**Not complete**: {', '.join(left)} are not done."] if left else []),
        "",
        "## Test rows",
        "",
        f"Mean and standard deviation of seeds {', '.join(map(str, setting.SEEDS))}.",
        "",
        "| model | AUC ours | AUC FuxiCTR | LogLoss ours | LogLoss FuxiCTR | AUC is |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in done:
        cells = [
            "{:.4f} ± {:.4f}".format(*spread_of(finals(runs, program, model), metric))
            for metric in ("test_auc", "test_logloss")
            for program in NAMES
        ]
        lines.append(f"| {model} | {' | '.join(cells)} | {verdict(runs, model)} |")
    lines += [
        "",
        "## What was tried on the validation rows",
        "",
        f"AUC at seed {setting.SEEDS[0]} by learning rate; the best one, in bold, is used with every seed.",
        "",
        "| model | program | "
        + " | ".join(f"trial {n + 1}" for n in range(NUM_TRIALS))
        + " | epochs of the best |",
        "| --- " * (NUM_TRIALS + 3) + "|",
    ]
    for model in done:
        for program, name in NAMES.items():
            best = chosen(runs, program, model)
            tried = trials(runs, program, model, setting.SEEDS[0])
            tried.sort(key=lambda each: float(each["rate"]))
            cells = [_trial(each, best) for each in tried]
            epochs = next(each["epochs"] for each in tried if each["rate"] == best)
            lines.append(f"| {model} | {name} | {' | '.join(cells)} | {epochs} |")
    return "\n".join(lines) + "\n"


def _trial(run: dict[str, Any], best: float | None) -> str:
    auc = f"{run['valid_auc']:.4f}"
    return f"{run['rate']:g}: " + (f"**{auc}**" if run["rate"] == best else auc)


def _setting() -> list[str]:
    hidden = " x ".join(map(str, setting.HIDDEN))
    return [
        "Frappe in the split of BARS `Frappe_x1`, prepared by `prismrec data prepare frappe`: 202,027 / "
        "57,722 / 28,860 rows, ten fields. The validation and test files are the public ones; **the "
        "negatives of this copy's training file were drawn again** by the same law, so nothing here "
        "compares with published numbers.",
        "",
        f"Both programs read the same ids and get: tables of width {setting.DIM} (ours are multiples of 4; "
        f"the public benchmark has 10), DNN {hidden} with batch normalisation and dropout "
        f"{setting.DROPOUT}, {setting.CROSS_LAYERS} cross layers, CIN "
        f"{' x '.join(map(str, setting.MAPS))}, batch {setting.BATCH:,}, at most {setting.EPOCHS} epochs, "
        f"patience {setting.PATIENCE} on the AUC of the validation rows, the best epoch tested, fp32, no "
        f"L2. Both have Adam on everything at one rate, of which each tries the same {NUM_TRIALS}, and cut it "
        "to a tenth after an epoch without gain. What differs: FuxiCTR draws tables with a deviation of "
        f"{setting.INIT_STD['fuxictr']:g}, clips the norm of the gradient to 10 and moves every row of a table "
        f"in every step; ours draws them with {setting.INIT_STD['ours']:g}, clips nothing, and has "
        "`data_parallel` tables, whose rows move when looked up.",
    ]
