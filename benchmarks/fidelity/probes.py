"""What studies measure of trained tables."""

from __future__ import annotations

import statistics

import torch

from prismrec.analysis.spectra import Spectrum, gram, spectrum_of_gram
from prismrec.analysis.table_spectra import RowChoice
from prismrec.embeddings.sets import LINEAR, EmbeddingSpec
from prismrec.embeddings.shards import LocalShard

MIN_ROWS = 64
"""Tables with fewer trained rows have no room for many dimensions and are left out of means."""


def abundance(shards: list[LocalShard], spec: EmbeddingSpec, step: int) -> dict[str, float]:
    """Information abundance of every table, all its sets side by side, over the rows that moved.

    One process only, which holds whole tables.

    Returns:
        `abundance/TABLE`; `abundance/joint`, its mean over tables of `MIN_ROWS` trained rows or
        more; `abundance/set`, the mean of single sets of those tables; `abundance/share`, the joint
        one over the most possible.
    """
    choice, joint, single, share = RowChoice(), {}, [], []
    for table in spec.tables:
        own = [s for s in shards if s.table == table.name and s.set_name != LINEAR]
        found = _joined(own, choice)
        if found.is_zero:
            continue
        joint[table.name] = (found.information_abundance, found.rows)
        if found.rows >= MIN_ROWS:
            single += [_joined([each], choice).information_abundance for each in own]
            share.append(found.information_abundance / found.bound)
    values = {f"abundance/{name}": value for name, (value, _) in joint.items()}
    large = [value for value, rows in joint.values() if rows >= MIN_ROWS]
    if large:
        values["abundance/joint"] = statistics.mean(large)
        values["abundance/set"] = statistics.mean(single)
        values["abundance/share"] = statistics.mean(share)
    return values


def _joined(shards: list[LocalShard], choice: RowChoice) -> Spectrum:
    """The spectrum of sets of a table put side by side, over rows that any of them moved."""
    if any(s.weight.shape != (s.num_rows, s.num_cols) for s in shards):
        raise ValueError("the tables are cut; a study runs in one process")
    matrix = torch.cat([shard.weight.detach().double() for shard in shards], dim=1)
    flags = [flag for shard in shards if (flag := choice.of(shard)) is not None]
    moved = torch.stack(flags).amax(0) if flags else torch.ones(len(matrix), dtype=torch.float64)
    return spectrum_of_gram(gram(matrix, moved), int((moved > 0).sum()))
