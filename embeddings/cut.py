"""Cutting the pooled vectors of all fields and sets into one tensor per set.

Notation: B batch, M sets, N_m fields of set m, d_m its width, C columns of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Run:
    """Fields of a set at equal distances from each other, as their vectors are.

    Args:
        first: the first field's position in the set.
        every: positions from one field to the next.
        column: first column of the first vector.
        step: columns from one vector to the next.
        count: number of fields.
        width: columns of a vector.
    """

    first: int
    every: int
    column: int
    step: int
    count: int
    width: int

    def among(self, fields: Tensor) -> Tensor:
        """Its fields (B, count, width) among all of the set, (B, N_m, d_m): a view."""
        return fields[:, self.first : self.first + self.every * self.count : self.every]

    def within(self, columns: Tensor) -> Tensor:
        """Its vectors (B, count, width) in the columns (B, C) of all sets: a view."""
        size = (columns.shape[0], self.count, self.width)
        stride = (columns.stride(0), self.step, 1)
        return columns.as_strided(size, stride, columns.storage_offset() + self.column)


@dataclass(frozen=True, slots=True)
class Cut:
    """How the columns fall into sets.

    Args:
        runs: the runs of each set; one run holds a set that is a view.
        is_whole: whether every column belongs to a set.
    """

    runs: tuple[tuple[Run, ...], ...]
    is_whole: bool

    @property
    def is_one(self) -> bool:
        """Whether there is one set only, a view of all columns."""
        return self.is_whole and len(self.runs) == 1 and len(self.runs[0]) == 1


def make_cut(sets: Sequence[tuple[int, Sequence[int]]], width: int) -> Cut:
    """The cut of columns in which no two vectors overlap.

    Args:
        sets: d_m and the first column of each field's vector, for every set.
        width: C.
    """
    covered = sum(dim * len(columns) for dim, columns in sets)
    return Cut(tuple(_runs(columns, dim) for dim, columns in sets), covered == width)


def cut_sets(columns: Tensor, cut: Cut) -> list[Tensor]:
    """The tensors (B, N_m, d_m) in (B, C): views where one run holds a set, else copies.

    The gradient of (B, C) is written once. By autograd's own rule for slices each set's would be a
    tensor of all C columns, and their sum a further one.
    """
    if cut.is_one:
        return [columns.reshape(columns.shape[0], -1, cut.runs[0][0].width)]
    return list(_CutSets.apply(columns if columns.stride(1) == 1 else columns.contiguous(), cut))


class _CutSets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, cut: Cut) -> tuple[Tensor, ...]:
        ctx.cut, ctx.shape = cut, columns.shape
        ctx.set_materialize_grads(False)
        return tuple(_set(columns, runs) for runs in cut.runs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        given = [each for each in gradients if each is not None]
        if not given:
            return None, None
        cut: Cut = ctx.cut
        is_full = cut.is_whole and len(given) == len(gradients)
        columns = (given[0].new_empty if is_full else given[0].new_zeros)(ctx.shape)
        for runs, gradient in zip(cut.runs, gradients, strict=True):
            if gradient is not None:
                for run in runs:
                    run.within(columns).copy_(run.among(gradient))
        return columns, None


def _set(columns: Tensor, runs: tuple[Run, ...]) -> Tensor:
    if len(runs) == 1:
        return runs[0].within(columns)
    num_fields = sum(run.count for run in runs)
    fields = columns.new_empty(columns.shape[0], num_fields, runs[0].width)
    for run in runs:
        run.among(fields).copy_(run.within(columns))
    return fields


def _runs(columns: Sequence[int], width: int) -> tuple[Run, ...]:
    """Runs that are as long as they get, from the first column to the last."""
    found: list[list[tuple[int, int]]] = []
    for at in sorted((column, field) for field, column in enumerate(columns)):
        if not (found and _continues(found[-1], at)):
            found.append([])
        found[-1].append(at)
    runs = []
    for members in found:
        (column, first), (next_column, next_field) = members[0], members[min(1, len(members) - 1)]
        every, step = max(1, next_field - first), max(width, next_column - column)
        runs.append(Run(first, every, column, step, len(members), width))
    return tuple(runs)


def _continues(run: list[tuple[int, int]], at: tuple[int, int]) -> bool:
    """Whether a column and its field are as far from the run's last as those are from each other."""
    column, field = at[0] - run[-1][0], at[1] - run[-1][1]
    if len(run) == 1:
        return field > 0
    return (column, field) == (run[1][0] - run[0][0], run[1][1] - run[0][1])
