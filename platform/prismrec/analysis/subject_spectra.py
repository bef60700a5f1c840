"""Spectra of a model's tables and fields, of whole tables and of what a sample of rows looks up.

Notation: R rows of a table, d width of a set, L rows that a field looks up in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.analysis.spectra import Spectrum, gram, spectrum_of_gram
from prismrec.analysis.subject import Progress, Subject
from prismrec.embeddings.sets import LINEAR, EmbeddingSet, TableSpec

_CHUNK_ROWS = 262_144


@dataclass(frozen=True, slots=True)
class Measured:
    """How many dimensions a part of a set uses.

    Args:
        name: of the table or field.
        set_name: the set.
        cardinality: rows of the table for known ids.
        width: d.
        spectrum: of the part's vectors.
        gram: (d, d) fp64 Gram matrix of these.
    """

    name: str
    set_name: str
    cardinality: int
    width: int
    spectrum: Spectrum
    gram: Tensor

    @property
    def share(self) -> float:
        """Information abundance as a share of the most possible, 0..1; 0 of zeros."""
        bound = self.spectrum.bound
        return self.spectrum.information_abundance / bound if bound else 0.0


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What a field looked up in a sample.

    Args:
        rows: (U,) int64 distinct rows of its table, ascending.
        counts: (U,) int64, how often each.
    """

    rows: Tensor
    counts: Tensor


def looked_up(subject: Subject, progress: Progress) -> dict[str, LookedUp]:
    """By field, the rows that the sample looks up; memory grows with the distinct ones only."""
    found: dict[str, LookedUp] = {}
    done = 0
    for sample in subject.samples():
        for name, field in sample.fields.items():
            rows, counts = torch.unique(field.rows, return_counts=True)
            if name in found:
                rows = torch.cat([found[name].rows, rows])
                counts = torch.cat([found[name].counts, counts])
                rows, place = torch.unique(rows, return_inverse=True)
                counts = torch.zeros(len(rows), dtype=torch.int64).index_add_(0, place, counts)
            found[name] = LookedUp(rows, counts)
        done += len(sample.labels)
        progress(f"{subject.name}: rows that are looked up", done, subject.num_rows)
    return found


def by_rows(subject: Subject, progress: Progress) -> list[Measured]:
    """Every set of every table, all rows for known ids counting once, a block of rows at a time.

    Source: table-wise information abundance of "On the Embedding Collapse when Scaling up Recommendation
    Models" (ICML 2024).
    """
    pairs = _sets_of_tables(subject)
    measured = []
    for done, (table, each) in enumerate(pairs):
        total = torch.zeros(each.dim, each.dim, dtype=torch.float64)
        for start in range(0, table.known_rows, _CHUNK_ROWS):
            rows = torch.arange(start, min(start + _CHUNK_ROWS, table.known_rows))
            total += gram(subject.vectors(table.name, each.name, rows))
        found = spectrum_of_gram(total, table.known_rows)
        measured.append(Measured(table.name, each.name, table.known_rows, each.dim, found, total))
        progress(f"{subject.name}: spectra of tables", done + 1, len(pairs))
    return measured


def by_samples(subject: Subject, seen: dict[str, LookedUp], progress: Progress) -> list[Measured]:
    """Every set of every field, each row of its table counting as often as the sample looks it up.

    Args:
        subject: the model.
        seen: from `looked_up`.
        progress: told the fields done.
    """
    measured = []
    for done, (name, rows) in enumerate(seen.items()):
        table = subject.spec.table_of(name)
        for each in subject.spec.sets_of(table):
            if each.name != LINEAR and each.covers(name):
                vectors = subject.vectors(table.name, each.name, rows.rows)
                total = gram(vectors, rows.counts)
                found = spectrum_of_gram(total, len(rows.rows))
                measured.append(Measured(name, each.name, table.known_rows, each.dim, found, total))
        progress(f"{subject.name}: spectra of fields", done + 1, len(seen))
    return measured


def _sets_of_tables(subject: Subject) -> list[tuple[TableSpec, EmbeddingSet]]:
    return [
        (table, each)
        for table in subject.spec.tables
        for each in subject.spec.sets_of(table)
        if each.name != LINEAR
    ]
