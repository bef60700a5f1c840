"""What the loop tells the outside: two protocols, implemented by whoever starts the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard


class Tracker(Protocol):
    """Takes the record of a run; only rank 0 calls it, and no call may hold up training."""

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Facts that hold for the whole run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers as of a step."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """A file to keep with the run, under a folder of it."""

    def close(self) -> object:
        """Deliver what is still waiting to be written."""


class Probe(Protocol):
    """Looks at the sharded tables at each evaluation."""

    def __call__(
        self, shards: list[LocalShard], spec: EmbeddingSpec, step: int
    ) -> dict[str, float]:
        """Metrics of the tables.

        Collective: every rank calls it with its own shards.
        """


class Trackers:
    """Several trackers as one.

    Args:
        trackers: each is told everything, in this order.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Tell all of them."""
        for tracker in self._trackers:
            tracker.log_parameters(parameters)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Tell all of them."""
        for tracker in self._trackers:
            tracker.log_metrics(metrics, step)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Tell all of them."""
        for tracker in self._trackers:
            tracker.log_file(path, folder)

    def close(self) -> None:
        """Close all of them."""
        for tracker in self._trackers:
            tracker.close()
