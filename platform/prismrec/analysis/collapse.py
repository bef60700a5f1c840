"""Dimensional collapse as a run metric: how many dimensions every table still uses."""

from __future__ import annotations

from prismrec.analysis.spectra import Spectrum
from prismrec.analysis.table_spectra import table_spectra
from prismrec.embeddings.sets import LINEAR, EmbeddingSpec
from prismrec.embeddings.shards import LocalShard


class CollapseProbe:
    """Looks at the tables at each evaluation; what `Session.probe` wants.

    Args:
        warn_below: share of its possible information abundance below which a set is counted as
            collapsed, 0..1.
        min_rows: tables with fewer trained rows are measured but never counted: few rows span few
            dimensions whatever the training does.
    """

    def __init__(self, warn_below: float, min_rows: int = 64) -> None:
        self._warn_below = warn_below
        self._min_rows = min_rows

    def __call__(
        self, shards: list[LocalShard], spec: EmbeddingSpec, step: int
    ) -> dict[str, float]:
        """Information abundance of every set of every table over those of its rows that moved.

        Collective: every rank calls it with its own shards.

        Returns:
            `collapse/abundance/TABLE/SET` in dimensions, `collapse/share/TABLE/SET` as a share of
            the most possible, and `collapse/collapsed_sets`, how many lie below the threshold.
        """
        metrics: dict[str, float] = {}
        collapsed = 0
        for key, spectrum in table_spectra(shards, spec).items():
            if key.rpartition("/")[2] == LINEAR or spectrum.is_zero:
                continue
            share = spectrum.information_abundance / spectrum.bound
            metrics[f"collapse/abundance/{key}"] = spectrum.information_abundance
            metrics[f"collapse/share/{key}"] = share
            collapsed += self._is_collapsed(spectrum, share)
        return metrics | {"collapse/collapsed_sets": float(collapsed)}

    def _is_collapsed(self, spectrum: Spectrum, share: float) -> bool:
        return spectrum.rows >= self._min_rows and share < self._warn_below
