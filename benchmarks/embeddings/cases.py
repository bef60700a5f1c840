"""What is measured: sizes, ids, and the bytes that a step has to move.

Notation: F features, K sets, B rows of a step on all ranks, N ids of a step, U distinct ids of a step,
W = K x width columns of all sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prismrec.config.embedding import MAX_WIDTH

COUNTS = (1, 2, 4, 8)
WIDTHS = (16, 64, 128)
CUDA_WIDTHS = (*WIDTHS, 256)
BAGS = (1, 20)
IDS = ("uniform", "zipf")
KINDS = ("table_wise", "row_wise")
"""Placements on two ranks; on one there is nothing to choose."""
ZIPF = 1.05
_SPREAD = 2_654_435_761
"""An odd number: popular ids must not be neighbours in memory."""
_NUMBER = 4
"""Bytes of an output, a state and a gradient."""
_WEIGHT = {"fp32": 4, "fp16": 2}
_ID = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison; all its peers get the same ids.

    Args:
        k: sets.
        width: columns of each.
        bag: ids of a feature in a row.
        ids: how they are drawn, one of `IDS`.
        ranks: processes.
        rows: rows of each table.
        device: "cpu" or "cuda".
        tables: F, each with one feature.
        batch: B.
        kind: where the tables lie; "one_rank" on one.
        data_type: of the weights, "fp32" or "fp16".
    """

    k: int
    width: int
    bag: int
    ids: str
    ranks: int
    rows: int
    device: str
    tables: int
    batch: int
    kind: str = "one_rank"
    data_type: str = "fp32"

    @property
    def can_pack(self) -> bool:
        """Whether all sets fit one row: a shard has at most 1,024 columns."""
        return self.k * self.width <= MAX_WIDTH

    def document(self) -> dict[str, Any]:
        """What names the case in the results."""
        names = ("k", "width", "bag", "ids", "ranks", "rows", "device")
        return {name: getattr(self, name) for name in names}

    @property
    def modules(self) -> tuple[Any, ...]:
        """Cases that agree in this are measured with the same modules."""
        sizes = (self.k, self.width, self.rows, self.tables, self.data_type)
        return (self.ranks, self.kind, *sizes, self.device)

    @property
    def numbers(self) -> int:
        """Weights of all tables and sets."""
        return self.tables * self.rows * self.k * self.width


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes at width 16 with one id in a bag, from which those of the other cases follow.

    Rows of a table shrink as the width grows, so that the largest case has as many weights at every
    width. So does the batch on CPU, by half as much; longer bags make it an eighth on every device.

    Args:
        device: "cpu" or "cuda".
        tables: F.
        rows: rows of each table.
        batch: B.
        data_type: of the weights.
    """

    device: str
    tables: int
    rows: int
    batch: int
    data_type: str = "fp32"

    def case(
        self, k: int, width: int, bag: int, ids: str, ranks: int = 1, kind: str = "one_rank"
    ) -> Case:
        """One case."""
        batch = self.batch // (8 if bag > 1 else 1)
        if self.device == "cpu":
            batch = batch * 16 // width * (1 if width == 16 else 2)
        return Case(
            k,
            width,
            bag,
            ids,
            ranks,
            self.rows * 16 // width,
            self.device,
            self.tables,
            max(ranks, batch // ranks * ranks),
            kind,
            self.data_type,
        )


def one_rank(
    sizes: Sizes, counts: Sequence[int], widths: Sequence[int], bags: Sequence[int]
) -> list[Case]:
    """Every combination, those with the same modules together."""
    return [
        sizes.case(k, width, bag, ids)
        for width in widths
        for k in counts
        for bag in bags
        for ids in IDS
    ]


def two_ranks(
    sizes: Sizes, counts: Sequence[int], widths: Sequence[int], bags: Sequence[int]
) -> list[Case]:
    """Both placements: every number of sets at the first width and bag, and around four sets the rest."""
    width, bag = widths[0], bags[0]
    around = [(width, bag, "zipf")]
    around += [(width, other, "uniform") for other in bags[1:]]
    around += [(other, bag, "uniform") for other in widths[1:]]
    cases = []
    for kind in KINDS:
        for k in counts:
            cases.append(sizes.case(k, width, bag, "uniform", 2, kind))
            if k == 4:
                cases += [sizes.case(k, *other, 2, kind) for other in around]
    return cases


def grouped(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """The cases that share their modules, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(case.modules, []).append(case)
    yield from groups.values()


def draw(case: Case, number: int, seed: int = 1) -> list[Tensor]:
    """Ids (F, B, bag) of some steps, the same on every rank.

    Args:
        case: rows, batch, and how ids are drawn.
        number: steps.
        seed: of all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (case.tables, case.batch, case.bag)
    if case.ids == "uniform":
        return [torch.randint(case.rows, size, generator=generator) for _ in range(number)]
    ranking = torch.arange(1, case.rows + 1, dtype=torch.double, device=case.device)
    popularity = ranking.pow(-ZIPF).cumsum(0)
    popularity /= popularity[-1].clone()
    steps = []
    for _ in range(number):
        uniform = torch.rand(size, dtype=torch.double, generator=generator).to(case.device)
        place = torch.searchsorted(popularity, uniform).clamp_(max=case.rows - 1)
        steps.append(place * _SPREAD % case.rows)
    return steps


def distinct(case: Case, steps: Sequence[Tensor]) -> float:
    """U, the mean over some steps: ids that differ, or are of different tables."""
    offsets = torch.arange(case.tables, device=case.device).view(-1, 1, 1) * case.rows
    counts = [torch.unique(ids.to(case.device) + offsets).numel() for ids in steps]
    return sum(counts) / len(steps)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The least bytes that a step moves between memory and processor, on all ranks.

    Args:
        forward: ids and rows read, outputs written.
        update: output gradients read, and what it takes to change the weights and their state.
    """

    forward: int
    update: int

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.update


def traffic(case: Case, way: str, unique: float) -> Traffic:
    """What a way of training has to move.

    Args:
        case: sizes.
        way: "packed" and "separate" update in backward; "sparse" writes a gradient for every id,
            adds up those of the same row and then updates; "dense" writes, reads and applies a
            gradient of all rows.
        unique: U.
    """
    ids = case.tables * case.batch * case.bag
    columns = case.k * case.width
    outputs = _NUMBER * case.tables * case.batch * columns
    copies = 1 if way == "packed" else case.k
    weight = _WEIGHT[case.data_type]
    forward = ids * (_ID * copies + weight * columns) + outputs
    changed = 2 * (weight + _NUMBER) * columns * unique  # weight and state, read and written
    if way == "sparse":
        changed += 2 * _NUMBER * columns * (ids + unique)
    elif way == "dense":
        changed = 6 * _NUMBER * case.numbers  # as above for all rows, and their gradient
    return Traffic(forward, round(outputs + changed))
