"""Whether the losses of two tasks pull the vectors of a set the same way.

For every row b and task t there is g_bt = dL_t / dX_b, the gradient of the row's loss with respect to the
vectors that it looked up in a set, or to those from one table. Two tasks conflict on a row where the cosine
of their gradients is negative; over all rows the cosine is that of the gradients side by side. A task whose
loss is kept from a set, as that of STEM from the sets of others, has no gradient there at all.

Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, section 2, which calls gradients
of negative cosine conflicting; looking at vectors per set follows Su et al., "STEM", AAAI 2024.

Notation: B rows of a batch, T tasks, N_m fields that set m covers, d_m its width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prismrec.models import Inputs
from prismrec.models.objectives.decoder import Decoder
from prismrec.models.objectives.losses import RowLoss


@dataclass(frozen=True, slots=True)
class Conflict:
    """How the gradients of tasks lie to each other; `a + b` over the rows of both.

    Args:
        products: (T, T) float64 sums over rows of the inner products of two tasks' gradients.
        cosines: (T, T) float64 sums over rows of their cosines.
        rows: (T, T) rows on which both tasks have a gradient.
        against: (T, T) those of them with a negative cosine.
    """

    products: Tensor
    cosines: Tensor
    rows: Tensor
    against: Tensor

    def __add__(self, other: Conflict) -> Conflict:
        return Conflict(
            self.products + other.products,
            self.cosines + other.cosines,
            self.rows + other.rows,
            self.against + other.against,
        )

    def has_gradient(self, task: int) -> bool:
        """Whether the loss of a task reaches the vectors: a number that is not exactly 0."""
        return float(self.products[task, task]) != 0.0

    def cosine(self, first: int, second: int) -> float | None:
        """Cosine of the gradients of all rows side by side; None where a task has none."""
        if not (self.has_gradient(first) and self.has_gradient(second)):
            return None
        norms = self.products[first, first].sqrt() * self.products[second, second].sqrt()
        return float(self.products[first, second] / norms)

    def mean_cosine(self, first: int, second: int) -> float | None:
        """Mean over rows of the cosine; None where no row has both gradients."""
        rows = int(self.rows[first, second])
        return float(self.cosines[first, second]) / rows if rows else None

    def share_against(self, first: int, second: int) -> float | None:
        """Share of rows with a negative cosine; None where no row has both gradients."""
        rows = int(self.rows[first, second])
        return int(self.against[first, second]) / rows if rows else None


def conflict(gradients: Tensor) -> Conflict:
    """How the gradients of one batch lie to each other.

    Args:
        gradients: (T, B, W) of every task and row, over the W numbers that a row looked up.
    """
    each = gradients.detach().double()
    products = torch.einsum("sbw,tbw->bst", each, each)
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    lengths = norms.unsqueeze(1) * norms.unsqueeze(2)
    have_both = (norms > 0).unsqueeze(1) & (norms > 0).unsqueeze(2)
    cosines = torch.where(have_both, products / lengths.where(have_both, 1.0), 0.0)
    return Conflict(
        products.sum(0), cosines.sum(0), have_both.sum(0), (have_both & (products < 0)).sum(0)
    )


@dataclass(frozen=True, slots=True)
class TaskLosses:
    """The loss of every row and task of a model.

    What compares rows of a batch has no part in it, and neither have auxiliary losses.

    Args:
        decoder: from the model's columns to logits.
        rows: the loss of a row, of each task.
    """

    decoder: Decoder
    rows: Sequence[RowLoss]

    def sums(self, columns: Tensor, labels: Tensor) -> list[Tensor]:
        """Of each task the sum over its rows with a label.

        Args:
            columns: what the model gives.
            labels: (B, T), NaN where there is no label.
        """
        logits, _ = self.decoder(columns.float())
        valid = ~labels.isnan()
        known = labels.nan_to_num()
        return [
            (row(logits[:, t : t + 1], known[:, t : t + 1]) * valid[:, t : t + 1]).sum()
            for t, row in enumerate(self.rows)
        ]


def task_gradients(
    model: nn.Module, inputs: Inputs, labels: Tensor, losses: TaskLosses
) -> list[Tensor]:
    """dL_t / dX of every set, (T, B, N_m, d_m), exact zeros where no path leads.

    What sequence modules and first-order weights read are other tensors, and not in it.

    Args:
        model: in evaluation mode.
        inputs: a batch.
        labels: (B, T), NaN where there is no label.
        losses: what is differentiated.
    """
    sets = [each.detach().clone().requires_grad_() for each in inputs.sets]
    with torch.enable_grad():
        columns, _ = model(replace(inputs, sets=sets))
        sums = losses.sums(columns, labels)
    found = [
        torch.autograd.grad(each, sets, retain_graph=True, materialize_grads=True) for each in sums
    ]
    return [torch.stack(of_set) for of_set in zip(*found, strict=True)]


def conflicts(
    model: nn.Module,
    batches: Iterable[tuple[Inputs, Tensor]],
    losses: TaskLosses,
    tables: Sequence[Mapping[str, Sequence[int]]],
) -> list[dict[str, Conflict]]:
    """Conflicts of the tasks over batches.

    Args:
        model: in evaluation mode.
        batches: inputs and labels (B, T).
        losses: what is differentiated.
        tables: of each set, by the name of a table the positions of its fields among those that the
            set covers.

    Returns:
        Of each set, by table, and under `""` of all its fields together.
    """
    totals: list[dict[str, Conflict]] = [{} for _ in tables]
    for inputs, labels in batches:
        gradients = task_gradients(model, inputs, labels, losses)
        for total, by_table, of_set in zip(totals, tables, gradients, strict=True):
            parts = {name: of_set[:, :, list(places)] for name, places in by_table.items()}
            for name, part in {"": of_set, **parts}.items():
                found = conflict(part.flatten(2))
                total[name] = total[name] + found if name in total else found
    return totals
