"""Scores that explore, beside a served model: how sure it is of each row, by its last hidden layer.

The model's own probabilities stay as they are; a score is for choosing what to show.

Notation: B rows, d width of the last layer, G requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prismrec.config import UserError, nearest
from prismrec.data.encode.ids import mix64
from prismrec.data.write import staged
from prismrec.models.exploration import LastLayerLaplace, probit_mean, upper_bound
from prismrec.models.towers import SharedTower, TaskTowers
from prismrec.serving.inference import InferenceModel

Rule = Literal["greedy", "ucb", "thompson"]
RULES: tuple[Rule, ...] = ("greedy", "ucb", "thompson")
_FACTS, _NUMBERS = "exploration.json", "exploration.safetensors"


@dataclass(frozen=True, slots=True)
class Scores:
    """What an explorer says of some rows, (B,) each.

    Args:
        probability: expected probability, with the model's uncertainty taken into account.
        deviation: standard deviation of the logit.
        score: what to choose by.
    """

    probability: Tensor
    deviation: Tensor
    score: Tensor


@dataclass(slots=True)
class Explorer:
    """A model's last layer and what is known of it.

    Args:
        task: of the model.
        head: precision of the last layer.
        model: SHA-256 of the model it was fitted to.
        rows: that it was fitted to.
    """

    task: str
    head: LastLayerLaplace
    model: str
    rows: int = 0

    @classmethod
    def of(cls, model: InferenceModel, task: str, prior: float) -> Explorer:
        """An explorer that has seen no row.

        Raises:
            UserError: the model has no such task, or no layer before its logits.
        """
        if task not in model.tasks:
            raise UserError(f"--task: no task '{task}'; {nearest(task, model.tasks)}")
        if prior <= 0:
            raise UserError(f"--prior: above 0, got {prior}")
        width = sum(_towers(model))
        return cls(task, LastLayerLaplace(width, prior), digest(model))

    def update(self, model: InferenceModel, columns: Mapping[str, Any]) -> None:
        """Take rows that the model was trained on into account; labels are not needed."""
        phi, logits = last_layer(model, columns, self.task)
        self.head.update(phi, torch.sigmoid(logits))
        self.rows += len(phi)

    def score(
        self,
        model: InferenceModel,
        columns: Mapping[str, Any],
        rule: Rule,
        request: NDArray[np.int64],
        strength: tuple[float, int] = (1.0, 0),
    ) -> Scores:
        """Scores of raw columns.

        Args:
            model: the one that it was fitted to.
            columns: as for `InferenceModel.predict_logits`.
            rule: `greedy`, `ucb`: `sigmoid(m + kappa sqrt(v))`, or `thompson`: one draw of the last
                layer's weights for each request.
            request: (B,) rows of one number are one request, in whatever batch they come.
            strength: kappa of `ucb`, and the seed of `thompson`.

        Raises:
            UserError: it was fitted to another model.
        """
        if digest(model) != self.model:
            raise UserError(
                "the explorer was fitted to another model than the one given; fit it again"
            )
        kappa, seed = strength
        phi, logits = last_layer(model, columns, self.task)
        m, v = logits.double(), self.head.variance(phi)
        if rule == "ucb":
            score = upper_bound(m, v, kappa)
        elif rule == "thompson":
            score = torch.sigmoid(m + self._draws(phi, request, seed))
        else:
            score = torch.sigmoid(m)
        return Scores(probit_mean(m, v), v.sqrt(), score)

    def save(self, out: Path) -> None:
        """Write it into a new or empty directory, whole or not at all.

        Raises:
            UserError: something is there already.
        """
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: already there; choose another directory")
        facts = {
            "task": self.task,
            "prior": self.head.prior,
            "model": self.model,
            "rows": self.rows,
        }
        with staged(out) as stage:
            save_file({"precision": self.head.precision}, stage / _NUMBERS)
            (stage / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Explorer:
        """Read what `save` wrote.

        Raises:
            UserError: the directory holds none, or a damaged one.
        """
        try:
            facts = json.loads((path / _FACTS).read_text())
            precision = load_file(path / _NUMBERS)["precision"]
            head = LastLayerLaplace(len(precision) - 1, facts["prior"])
            head.precision.copy_(precision)
            return cls(facts["task"], head, facts["model"], facts["rows"])
        except (OSError, ValueError, KeyError, SafetensorError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{path}: no explorer ({error}); `prismrec explore fit` makes one"
            ) from None

    def _draws(self, phi: Tensor, request: NDArray[np.int64], seed: int) -> Tensor:
        """What each row's request draws for it, (B,)."""
        requests, place = np.unique(request, return_inverse=True)
        noise = torch.from_numpy(normals(requests, len(self.head.precision), seed))
        return self.head.move(phi, noise, torch.from_numpy(place))


def last_layer(
    model: InferenceModel, columns: Mapping[str, Any], task: str
) -> tuple[Tensor, Tensor]:
    """What comes before the logits of a task, (B, d), and its logits (B,), before any calibration.

    Where several towers add up, their layers stand side by side.

    Raises:
        UserError: a column is missing, or the model has no layer before its logits.
    """
    at = model.tasks.index(task)
    with _hooked(model) as seen:
        logits = model.predict_logits(columns, calibrated=False)
    if not seen:
        raise _no_layer(model)
    parts = [each if each.ndim == 2 else each[at] for each in seen]
    return torch.cat(parts, 1), logits[:, at]


def digest(model: InferenceModel) -> str:
    """SHA-256 of everything that the model is made of."""
    return hashlib.sha256(model.manifest.model_dump_json().encode()).hexdigest()


def normals(keys: NDArray[np.int64], count: int, seed: int) -> NDArray[np.float64]:
    """Normal numbers (G, count) that depend on key, place and seed alone, whatever else is asked for.

    Bits of `mix64`, two of them for each number by Box and Muller.
    """
    start = mix64(keys.astype(np.uint64), seed)
    bits = mix64(np.add.outer(start, np.arange(2 * count, dtype=np.uint64)), 0)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    radius = np.sqrt(-2 * np.log(uniform[:, :count]))
    return radius * np.cos(2 * np.pi * uniform[:, count:])


@contextmanager
def _hooked(model: InferenceModel) -> Iterator[list[Tensor]]:
    """What the heads of the towers are given while the context lasts; not for threads beside each other."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().float())

    handles = [
        each.head.register_forward_pre_hook(keep)
        for each in model.head.modules()
        if isinstance(each, SharedTower | TaskTowers)
    ]
    try:
        yield seen
    finally:
        for each in handles:
            each.remove()


def _towers(model: InferenceModel) -> list[int]:
    """Widths of the layers before the logits."""
    widths = [
        each.body.out_dim
        for each in model.head.modules()
        if isinstance(each, SharedTower | TaskTowers)
    ]
    if not widths:
        raise _no_layer(model)
    return widths


def _no_layer(model: InferenceModel) -> UserError:
    name = getattr(model.recipe.model, "name", "")
    return UserError(
        f"model.name = '{name}' has no hidden layer before its logits; choose a model with a DNN"
    )
