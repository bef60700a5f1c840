"""Scores requests of several clients together, and changes to another model between them.

Notation: B rows of a request, T tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from prismrec.config import UserError
from prismrec.serving.http.requests import Limits, RequestError, read_columns
from prismrec.serving.inference import InferenceModel
from prismrec.serving.sides import Sides

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """A model with the name that answers tell.

    Args:
        inference: the inference copy in memory.
        name: registered name, or the directory it came from.
        version: version in the registry, None for a directory.
    """

    inference: InferenceModel
    name: str
    version: int | None

    @property
    def label(self) -> str:
        """`name/version`, or the directory."""
        return self.name if self.version is None else f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A checked request.

    Args:
        model: the model that it was checked for, which also answers it.
        sides: its columns.
    """

    model: ServedModel
    sides: Sides

    @property
    def rows(self) -> int:
        """B."""
        return self.sides.rows


Outcome = Tensor | Exception
"""(B, T) float32 probabilities of a request, or why there are none: `RequestError` where it is the
client's fault."""


class Scorer:
    """The model that serves now. `read` and `score` may run in different threads.

    Args:
        model: the first model.
        limits: what a request may be.
        scored: told the rows that got probabilities each time some were computed together.
    """

    def __init__(
        self, model: ServedModel, limits: Limits, scored: Callable[[int], None] | None = None
    ) -> None:
        self._model = model
        self.limits = limits
        self._scored = scored

    @property
    def model(self) -> ServedModel:
        """The model that the next request is checked for."""
        return self._model

    def replace(self, model: ServedModel) -> None:
        """Serve another model from the next request on; those that were read keep theirs."""
        self._model = model

    def read(self, body: bytes) -> Request:
        """A request for the model that serves now.

        Raises:
            RequestError: what is wrong with it.
        """
        model = self._model
        return Request(model, read_columns(body, model.inference.columns, self.limits))

    def score(self, requests: Sequence[Request]) -> list[Outcome]:
        """Probabilities of each request, computed together as far as they fit together.

        A request that fails is scored again by itself, so that it fails alone.
        """
        outcomes: list[Outcome] = [torch.zeros(0)] * len(requests)
        for members in _fitting(requests, self.limits.rows):
            scored = self._together([requests[i] for i in members])
            for index, outcome in zip(members, scored, strict=True):
                outcomes[index] = outcome
        return outcomes

    def _together(self, requests: list[Request]) -> list[Outcome]:
        model = requests[0].model.inference
        sides = requests[0].sides
        if len(requests) > 1:
            columns = {
                name: pa.concat_arrays([r.sides.each[name] for r in requests])
                for name in sides.each
            }
            sides = Sides(sum(each.rows for each in requests), columns)
        try:
            scores = _probabilities(model, sides)
        except Exception as error:  # noqa: BLE001 - others must not fail with it
            if len(requests) > 1:
                return [outcome for each in requests for outcome in self._together([each])]
            if isinstance(error, UserError):
                return [RequestError(400, error.message)]
            _log.exception("%s: a request failed", requests[0].model.label)
            return [error]
        parts = scores.split([each.rows for each in requests])
        outcomes = [_finite(part) for part in parts]
        good = [len(each) for each in outcomes if isinstance(each, Tensor)]
        if good and self._scored is not None:
            self._scored(sum(good))
        return outcomes


def _probabilities(model: InferenceModel, sides: Sides) -> Tensor:
    if sides.rows == 0:
        return torch.zeros(0, len(model.tasks))
    return torch.sigmoid(model.logits_of(sides))


def _finite(scores: Tensor) -> Outcome:
    is_finite = torch.isfinite(scores).all(1)
    if bool(is_finite.all()):
        return scores
    row = int((~is_finite).nonzero()[0])
    return RequestError(
        400, f"row {row}: its numbers are too large for the model to give a probability"
    )


def _fitting(requests: Sequence[Request], most_rows: int) -> list[list[int]]:
    """Places of the requests that can be scored together: of one model, with columns of the same
    types, and no more than `most_rows` in all. One with shared columns is scored by itself.
    """
    groups: dict[tuple[object, ...], list[list[int]]] = {}
    for index, each in enumerate(requests):
        alone = index if each.sides.shared else None
        key = (id(each.model), alone, *(array.type for array in each.sides.each.values()))
        found = groups.setdefault(key, [[]])
        if found[-1] and sum(requests[i].rows for i in found[-1]) + each.rows > most_rows:
            found.append([])
        found[-1].append(index)
    return [members for found in groups.values() for members in found]
