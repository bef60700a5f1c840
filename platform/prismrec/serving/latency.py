"""How long models take from raw columns to probabilities, side by side.

Notation: B rows of a request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor

BATCHES = (1, 64, 1024)
"""Rows of a request that are timed."""

_CALLS, _SECONDS = 200, 8.0


class Predictor(Protocol):
    """What is timed."""

    def probabilities(self, columns: Mapping[str, Any]) -> Tensor:
        """Probabilities (B, T) of raw columns."""
        ...


def measure_latency(
    models: Mapping[str, Predictor],
    columns: Mapping[str, pa.Array],
    batches: Sequence[int] = BATCHES,
) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of a prediction, the models taking turns call by call.

    Each batch size is timed for 200 calls of each model, or for 8 seconds where that is shorter.

    Args:
        models: by name.
        columns: raw columns of at least one row; they are repeated where a batch needs more.
        batches: values of B.

    Returns:
        By model and batch size `p50_ms`, `p99_ms` and `calls`.
    """
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for batch in batches:
        request = {name: _repeated(array, batch) for name, array in columns.items()}
        taken: dict[str, list[float]] = {name: [] for name in models}
        for model in models.values():
            model.probabilities(request)  # the first call chooses kernels
        until = time.perf_counter() + _SECONDS
        for _ in range(_CALLS):
            for name, model in models.items():
                began = time.perf_counter()
                model.probabilities(request)
                taken[name].append(time.perf_counter() - began)
            if time.perf_counter() > until:
                break
        for name, seconds in taken.items():
            half, last = np.percentile(seconds, [50, 99]) * 1e3
            found[name][str(batch)] = {
                "p50_ms": float(half),
                "p99_ms": float(last),
                "calls": float(len(seconds)),
            }
    return found


def _repeated(array: pa.Array, rows: int) -> pa.Array:
    return array.take(pa.array(np.arange(rows) % len(array)))
