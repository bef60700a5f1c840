"""Dimensional collapse as a run metric: how many dimensions every table still uses."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist

from prismrec.analysis.spectra import Spectrum
from prismrec.analysis.table_spectra import table_spectra
from prismrec.embeddings.sets import LINEAR, EmbeddingSpec
from prismrec.embeddings.shards import LocalShard

MIN_ROWS = 64
"""A table of fewer rows is never called collapsed: few rows span few dimensions whatever training does."""

_log = logging.getLogger(__name__)


class CollapseProbe:
    """Looks at the tables at each evaluation; what `Session.probe` wants.

    Args:
        warn_below: share of its possible information abundance below which a set is counted as
            collapsed, 0..1.
        min_rows: tables with fewer trained rows are measured but never counted.
        device: where ranks add up, the same on all of them, also on those without a table; that of the
            first shard if not given.
    """

    def __init__(
        self, warn_below: float, min_rows: int = MIN_ROWS, device: torch.device | None = None
    ) -> None:
        self._warn_below = warn_below
        self._min_rows = min_rows
        self._device = device
        self._known: set[tuple[str, str]] = set()

    def __call__(
        self, shards: list[LocalShard], spec: EmbeddingSpec, step: int
    ) -> dict[str, float]:
        """Information abundance of every set of every table over those of its rows that moved.

        Warns once, on the first rank, of each set that has fallen below the threshold.

        Collective: every rank calls it with its own shards.

        Returns:
            `collapse/abundance/TABLE/SET` in dimensions, `collapse/share/TABLE/SET` as a share of
            the most possible, and `collapse/collapsed_sets`, how many lie below the threshold. Sets
            with a number that is not finite are only counted, in `collapse/not_finite_sets`.
        """
        metrics: dict[str, float] = {}
        collapsed: dict[str, Spectrum] = {}
        broken: list[str] = []
        for key, spectrum in table_spectra(shards, spec, device=self._device).items():
            if not spectrum.is_finite:
                broken.append(key)
                continue
            if key.rpartition("/")[2] == LINEAR or spectrum.is_zero:
                continue
            share = spectrum.information_abundance / spectrum.bound
            metrics[f"collapse/abundance/{key}"] = spectrum.information_abundance
            metrics[f"collapse/share/{key}"] = share
            if spectrum.rows >= self._min_rows and share < self._warn_below:
                collapsed[key] = spectrum
        self._warn(collapsed, step)
        if broken:
            metrics["collapse/not_finite_sets"] = float(len(broken))
            self._say(broken, step, "hold numbers that are not finite (table/set)", str)
        return metrics | {"collapse/collapsed_sets": float(len(collapsed))}

    def _warn(self, collapsed: dict[str, Spectrum], step: int) -> None:
        def told(key: str) -> str:
            found = collapsed[key]
            return f"{key} {found.information_abundance:.1f} of {found.bound}"

        what = (
            f"use less than {self._warn_below:g} of their dimensions (table/set, dimensions used)"
        )
        self._say(list(collapsed), step, what, told)

    def _say(self, keys: list[str], step: int, what: str, told: Callable[[str], str]) -> None:
        """Warn of those sets that it has not warned of in these words, on the first rank."""
        new = [key for key in keys if (key, what) not in self._known]
        self._known.update((key, what) for key in new)
        if new and not (dist.is_initialized() and dist.get_rank() > 0):
            named = ", ".join(told(key) for key in new)
            _log.warning("step %d: sets of tables %s: %s", step, what, named)
