"""How the partners of a field pull its vectors down: spectra of sub-embeddings, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from prismrec.analysis.pair_blocks import PairBlocks, pair_blocks
from prismrec.analysis.pearson import pearson
from prismrec.analysis.report.chapter import Cell, Numbers, Plot
from prismrec.analysis.spectra import PairAbundance, pair_abundance_of_grams
from prismrec.analysis.subject import Subject
from prismrec.analysis.subject_spectra import Measured
from prismrec.models.interactions import BiInteraction, CrossV1

MOST_FIELDS = 30
"""Fields of a heat map, those of most rows."""
FEWEST_FIELDS = 5
"""Fewer fields tell no correlation."""
MOST_EXPERTS = 4
"""Experts of a model that get plots, the first ones."""
PAPER = "Guo et al., On the Embedding Collapse when Scaling up Recommendation Models, ICML 2024, section 4"


def pair_findings(
    subject: Subject, short: str, tables: Sequence[Measured]
) -> tuple[list[Plot], list[str]]:
    """IA(E_i -> E_j) of the model's interactions of pairs, its sums over partners and sources, and words.

    An FM is left out, whose pairs meet as they are, so that every E_i -> E_j is E_i, and so is a DCN of
    vectors, whose matrices have rank 1 by their form.

    Args:
        subject: the model.
        short: what titles and sentences call it.
        tables: its tables as measured by rows.
    """
    by_place = {(each.name, each.set_name): each for each in tables}
    plots: list[Plot] = []
    told: list[str] = []
    trivial = (BiInteraction.__name__, CrossV1.__name__)
    weighed = [each for each in pair_blocks(subject) if each.kind not in trivial]
    for blocks in weighed[:MOST_EXPERTS]:
        measured = {
            name: by_place[subject.spec.table_of(name).name, blocks.set_name]
            for name in blocks.fields
            if name in subject.spec.fields
        }
        ordered = sorted(measured, key=lambda name: -measured[name].cardinality)[:MOST_FIELDS]
        if len(ordered) > 1:
            grams = {name: measured[name].gram for name in ordered}
            abundance = pair_abundance_of_grams(grams, blocks.by_names())
            own = {name: measured[name].spectrum.information_abundance for name in ordered}
            plots += [_heat_map(short, blocks, abundance), _sums(short, blocks, abundance, own)]
            told += _followed(short, blocks, abundance, own)
    return plots, told


def _followed(
    short: str, blocks: PairBlocks, abundance: PairAbundance, own: dict[str, float]
) -> list[str]:
    """How far sums over pairs go with the fields' own abundance, where there are fields enough."""
    if len(own) < FEWEST_FIELDS:
        return []
    alone = np.array([own[name] for name in abundance.fields])
    rows, columns = (
        pearson(alone, sums.numpy()) for sums in (abundance.of_sources(), abundance.of_partners())
    )
    if not math.isfinite(rows + columns):
        return []
    return [
        f"{short}, {blocks.name}: over fields, a field's own abundance correlates with that of its "
        f"vectors in pairs by {rows:.2f}, and with that of its partners' vectors by {columns:.2f}."
    ]


def _heat_map(short: str, blocks: PairBlocks, abundance: PairAbundance) -> Plot:
    names = list(abundance.fields)
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": abundance.values.tolist(),
        "hovertemplate": "%{y} as it meets %{x}: %{z:.2f}<extra></extra>",
        "colorbar": {"title": {"text": "IA"}, "thickness": 12},
    }
    layout = {
        "yaxis": {"autorange": "reversed", "title": {"text": "field"}, "dtick": 1},
        "xaxis": {"title": {"text": "meets"}, "dtick": 1, "tickangle": -60},
        "height": max(380, 180 + 16 * len(names)),
    }
    rows: list[tuple[Cell, ...]] = [
        (source, partner, float(abundance.values[i, j]))
        for i, source in enumerate(names)
        for j, partner in enumerate(names)
    ]
    return Plot(
        f"Sub-embeddings of {short}, {blocks.name}",
        "A dark column is a field that collapses whatever meets it; a dark row is a field that is "
        "collapsed itself. Fields stand by their number of rows.",
        "Information abundance of E_i M_{i->j}: the vectors of field i, each row once, behind the matrix "
        "by which the first layer pairs i with j.",
        PAPER,
        [trace],
        layout,
        Numbers(("field", "meets", "information abundance"), rows),
    )


def _sums(short: str, blocks: PairBlocks, abundance: PairAbundance, own: dict[str, float]) -> Plot:
    names = list(abundance.fields)
    sums: list[tuple[str, Tensor]] = [
        ("as the field (row sums)", abundance.of_sources()),
        ("as the partner (column sums)", abundance.of_partners()),
    ]
    traces: list[dict[str, Any]] = [
        {"type": "bar", "name": title, "x": names, "y": values.tolist()} for title, values in sums
    ]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "the field's own IA (right)",
            "x": names,
            "y": [own[name] for name in names],
            "yaxis": "y2",
        }
    )
    layout = {
        "xaxis": {"tickangle": -60, "dtick": 1},
        "yaxis2": {"overlaying": "y", "side": "right", "showgrid": False},
    }
    of_source, of_partner = (values.tolist() for _, values in sums)
    return Plot(
        f"Sums over pairs of {short}, {blocks.name}",
        "Row sums follow a field's own abundance. Where column sums follow it too, partners of low "
        "abundance have pulled down what meets them, though no formula forces that.",
        "Sums of IA(E_i -> E_j) over j for each i, and over i for each j.",
        PAPER,
        traces,
        layout,
        Numbers(
            ("field", "own information abundance", "row sum", "column sum"),
            list(zip(names, (own[n] for n in names), of_source, of_partner, strict=True)),
        ),
    )
