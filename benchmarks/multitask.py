"""How long forward and backward of the models of several tasks take, beside a plain loop over experts.

python -m benchmarks.multitask --pairs 7

Both hold the same weights and take turns, a window of steps at a time, in one process. A step is the
forward pass, binary cross-entropy of all tasks, and the gradients of all weights and of the sets.
The same program measures AME with 128 tasks beside AME with 4. Times are those of the processor,
which other work on the machine lengthens less than the clock's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.channel import ROOT
from benchmarks.machine import machine, sentence
from benchmarks.multitask_plain import PlainMixture
from benchmarks.result import write
from prismrec.config.models.multitask import (
    AME,
    CGC,
    PLE,
    STEM,
    STEMAL,
    Crocodile,
    Expert,
    HeteroME,
    MMoE,
    MoE,
    SharedBottom,
)
from prismrec.config.section import Section
from prismrec.models import MODELS, Fields, Inputs, build_model
from prismrec.models.mixture import Composition, MixtureSpec, RankingModel

NUM_FIELDS = 16
LAYERS = {"hidden": (256, 128), "tower": (64,)}
MANY, FEW = 128, 4
WIDTHS = (4, 8, 16, 32)
"""Of the sets of AME."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model to measure.

    Args:
        section: the model.
        dims: width of each set.
        num_tasks: number of tasks.
    """

    section: Section
    dims: tuple[int, ...]
    num_tasks: int = FEW

    @property
    def fields(self) -> Fields:
        """The shapes of its inputs."""
        return Fields(
            num_sparse=NUM_FIELDS,
            num_dense=0,
            set_dims=self.dims,
            num_tasks=self.num_tasks,
            set_fields=(NUM_FIELDS,) * len(self.dims),
            sets=tuple(f"set{m}" for m in range(len(self.dims))),
            tasks=tuple(f"task{t}" for t in range(self.num_tasks)),
        )


def cases() -> dict[str, Case]:
    """The models, by name."""
    gate = {"gate_hidden": (64,)}
    both = tuple(Expert(set=f"set{m}", count=2) for m in range(2))
    return {
        "shared_bottom": Case(SharedBottom(name="shared_bottom", **LAYERS), (16,)),
        "moe, 8 experts": Case(MoE(name="moe", **LAYERS), (16,)),
        "mmoe, 8 experts": Case(MMoE(name="mmoe", **LAYERS), (16,)),
        "cgc, 4 shared, 4 x 1": Case(CGC(name="cgc", shared_experts=4, **LAYERS), (16,)),
        "ple, 2 layers of it": Case(PLE(name="ple", shared_experts=4, **LAYERS), (16,)),
        "stem, 4 shared, 4 x 1": Case(
            STEM(name="stem", shared_experts=4, **LAYERS, **gate), (16,) * 5
        ),
        "stem, 2 layers of it": Case(
            STEM(name="stem", shared_experts=4, num_layers=2, **LAYERS, **gate), (16,) * 5
        ),
        "stem_al": Case(STEMAL(name="stem_al", **LAYERS, **gate), (16,) * 2),
        "ame, 4 sets": Case(AME(name="ame", norm="none", **LAYERS), WIDTHS),
        "ame, 4 sets, 128 tasks": Case(AME(name="ame", norm="none", **LAYERS), WIDTHS, MANY),
        "crocodile, 5 sets": Case(
            Crocodile(name="crocodile", prior_set="set5", decorrelation="none", **LAYERS),
            (16,) * 6,
        ),
        "hetero_me, 4 experts": Case(
            HeteroME(name="hetero_me", experts=both, norm="none", **LAYERS), (16, 32)
        ),
    }


def pair_of(case: Case) -> tuple[RankingModel, PlainMixture]:
    """Our model and the plain one, of equal weights off their start."""
    torch.manual_seed(0)
    model = build_model(case.section, case.fields)
    composition = MODELS[str(getattr(case.section, "name", ""))](case.section, case.fields)
    if not isinstance(model, RankingModel) or not isinstance(composition, Composition):
        raise TypeError(f"{case.section} is no composition")
    for name, parameter in model.named_parameters():
        if ".gate.scores.weight" in name:
            nn.init.normal_(parameter, std=0.05)
    (spec,) = composition.branches
    if not isinstance(spec, MixtureSpec):
        raise TypeError(f"{case.section} has no layers of experts")
    widths = [NUM_FIELDS * dim for dim in case.dims]
    return model, PlainMixture(model, spec, widths, case.num_tasks)


def rows_of(case: Case, batch: int) -> tuple[list[Tensor], Tensor]:
    """Sets (B, N, K) that take gradients, and labels (B, T)."""
    torch.manual_seed(1)
    sets = [torch.randn(batch, NUM_FIELDS, dim).mul_(0.1).requires_grad_() for dim in case.dims]
    return sets, (torch.rand(batch, case.num_tasks) < 0.3).float()


def step_of(
    model: nn.Module, forward: Callable[[], Tensor], sets: list[Tensor], labels: Tensor
) -> Callable[[], None]:
    """One step: forward, loss, and the gradients of weights and sets."""
    leaves = [*model.parameters(), *sets]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss = F.binary_cross_entropy_with_logits(forward(), labels)
        loss.backward()

    return step


def programs(case: Case, batch: int) -> dict[str, Callable[[], None]]:
    """A step of ours and of the plain loop."""
    ours, plain = pair_of(case)
    sets, labels = rows_of(case, batch)
    inputs = Inputs(sets, None, torch.zeros(batch, 0))
    return {
        "ours": step_of(ours, lambda: ours(inputs)[0], sets, labels),
        "plain": step_of(plain, lambda: plain(sets), sets, labels),
    }


def take_turns(
    steps: dict[str, Callable[[], None]], pairs: int, window: int
) -> dict[str, list[float]]:
    """Milliseconds of the processor for a step of each program, window by window in turns."""
    for step in steps.values():
        for _ in range(3):
            step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(pairs):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(window):
                step()
            taken[name].append((time.process_time() - start) / window * 1e3)
    return taken


def ratio(slow: list[float], fast: list[float]) -> dict[str, Any]:
    """Median and range over the pairs of windows of how many times as long the first one takes."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "median": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def measure(batch: int, pairs: int, window: int) -> dict[str, Any]:
    """All models beside their loops, and AME with many tasks beside few."""
    found: dict[str, Any] = {}
    for name, case in cases().items():
        print(name, file=sys.stderr)
        taken = take_turns(programs(case, batch), pairs, window)
        found[name] = {
            **{program: round(statistics.median(ms), 2) for program, ms in taken.items()},
            "ratio": ratio(taken["plain"], taken["ours"]),
        }
    sized = {
        f"{tasks}": programs(Case(AME(name="ame", norm="none", **LAYERS), WIDTHS, tasks), batch)
        for tasks in (FEW, MANY)
    }
    taken = take_turns({name: each["ours"] for name, each in sized.items()}, pairs, window)
    many = {
        **{name: round(statistics.median(ms), 2) for name, ms in taken.items()},
        "ratio": ratio(taken[str(MANY)], taken[str(FEW)]),
    }
    return {"models": found, "tasks": many}


def markdown(document: dict[str, Any]) -> str:
    """The results as a page."""
    many = document["tasks"]
    low, high = many["ratio"]["range"]
    lines = [
        "# Models of several tasks",
        "",
        f"`{document['command']}`, {sentence(document['machine'])}; load before: "
        f"{document['machine']['load_before']:.1f}. Forward and backward of a batch of "
        f"{document['batch']}, {NUM_FIELDS} fields, experts {LAYERS['hidden']}, towers "
        f"{LAYERS['tower']}, float32, {document['threads']} thread(s); milliseconds of the "
        f"processor, medians of {document['pairs']} alternating windows of {document['window']} "
        "steps. The loop has a module for each expert, gate and tower, and the same weights.",
        "",
        "| model, 4 tasks where it does not say | ours, ms | loop, ms | loop / ours | range |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, each in document["models"].items():
        least, most = each["ratio"]["range"]
        lines.append(
            f"| {name} | {each['ours']} | {each['plain']} | {each['ratio']['median']} "
            f"| {least}-{most} |"
        )
    lines += [
        "",
        f"AME on sets of width {', '.join(map(str, WIDTHS))}: {many[str(FEW)]} ms with {FEW} tasks, "
        f"{many[str(MANY)]} ms with {MANY}: {many['ratio']['median']} times ({low}-{high}) for "
        f"{MANY // FEW} times the tasks.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print a table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--window", type=int, default=5, help="steps of a window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    document = {
        "command": "python -m benchmarks.multitask "
        + " ".join(sys.argv[1:]).replace(f"{ROOT}/", ""),
        "machine": machine(),
        "batch": asked.batch,
        "pairs": asked.pairs,
        "window": asked.window,
        "threads": asked.threads,
        **measure(asked.batch, asked.pairs, asked.window),
    }
    write(asked.out, document, markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
