"""The search: a way and ranks for every table, so that the busiest rank ends as early as can be.

First layouts are dealt out under several limits of the time that one strip may take: every table
takes the way of the least work within the limit. The best of them are improved table by table, from
the busiest rank. Where none fits, the search for the least memory says how much is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from prismrec.embeddings.plan.cluster import Cluster, Ranks
from prismrec.embeddings.plan.deal import (
    MOST_DEALS,
    Choices,
    Layout,
    first_layouts,
    memory_share,
)
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.price import Option, Piece, Progress

_TRIALS = 3000
"""Ways tried to improve one layout."""
_ROUNDS = 60
"""Times that tables of several ranks are dealt again at once."""
_GROUP = 5
"""Tables of the busiest rank, and of all, that are then dealt again at most."""
_LEFT_OUT = 0.2
"""Share of a table's ways that are left out then, for the sake of trying others."""
_TIE = 1e-9
"""Relative difference of times that is none."""
_SHARPNESS = 12
"""The larger, the more the busiest ranks alone decide what is an improvement."""


_Order = tuple[int, Sequence[int]]
"""A table, and the ways that it may take."""


def best_layout(
    choices: Choices, placement: Placement, progress: Progress | None = None
) -> Layout | None:
    """The layout whose busiest rank ends first, or None where none that was found fits the memory.

    Args:
        choices: every table's priced ways.
        placement: the machines.
        progress: told how much is done of how much.
    """

    def told(share: float) -> None:
        if progress:
            progress(int(100 * share), 100)

    starts = first_layouts(choices, placement, lambda deals: told(deals / MOST_DEALS / 2))
    if not starts:
        starts = [least_memory(choices, placement)]
        if not starts[0].cluster(choices, placement).has_room:
            return None
    return _improved(starts, choices, placement, lambda share: told((1 + share) / 2))


def least_memory(choices: Choices, placement: Placement) -> Layout:
    """The layout whose fullest rank takes the least of its memory, whether it fits or not.

    Args:
        choices: every table's priced ways.
        placement: the machines.
    """
    shares = [[_as_memory(option, placement) for option in options] for options in choices]
    starts = first_layouts(shares, placement, lambda deals: None)
    assert starts, "without bytes everything fits"
    return _improved(starts[:1], shares, placement, lambda share: None)


def _as_memory(option: Option, placement: Placement) -> Option:
    """The same way with shares of memory in place of milliseconds, and no bytes."""
    pieces = tuple(Piece(memory_share(piece, placement), 0, 0, 0) for piece in option.pieces)
    return Option(option.cut, pieces, option.ranks)


def _improved(
    starts: Sequence[Layout],
    choices: Choices,
    placement: Placement,
    told: Callable[[float], None],
) -> Layout:
    """The best of some layouts, each improved while that helps."""
    ends = []
    for index, layout in enumerate(starts):
        cluster = layout.cluster(choices, placement)
        _improve(layout, choices, cluster, _part(told, index, len(starts)))
        ends.append(float(cluster.ms.max()))
    return starts[int(np.argmin(ends))]


def _part(told: Callable[[float], None], index: int, parts: int) -> Callable[[float], None]:
    """Told the share of one part of equal parts that is done."""
    return lambda share: told((index + share) / parts)


def _improve(
    layout: Layout, choices: Choices, cluster: Cluster, told: Callable[[float], None]
) -> None:
    """Give tables other ways and ranks, from the busiest rank, while that helps."""
    draw = np.random.default_rng(0)
    trials, rounds = 0, 0
    while trials < _TRIALS and rounds < _ROUNDS:
        busy = _on_busiest(layout, choices, cluster)
        for table in busy:
            trials += len(choices[table])
            everything: list[_Order] = [(table, range(len(choices[table])))]
            if _dealt_again(everything, layout, choices, cluster) or trials >= _TRIALS:
                break
        else:
            rounds += 1
            some = _some(busy, choices, draw)
            trials += sum(len(allowed) for _, allowed in some)
            _dealt_again(some, layout, choices, cluster)
        told(min(1.0, trials / _TRIALS))


def _some(busy: list[int], choices: Choices, draw: np.random.Generator) -> list[_Order]:
    """Some tables of the busiest rank and some of all, in any order, each without a few of its ways."""
    few = draw.permutation(busy)[: draw.integers(1, _GROUP + 1)]
    others = draw.integers(0, len(choices), _GROUP)
    tables = draw.permutation(list(dict.fromkeys((*few, *others))))
    orders: list[_Order] = []
    for table in tables:
        kept = draw.random(len(choices[table])) >= _LEFT_OUT
        kept[draw.integers(len(kept))] = True
        orders.append((int(table), np.flatnonzero(kept).tolist()))
    return orders


def _on_busiest(layout: Layout, choices: Choices, cluster: Cluster) -> list[int]:
    """Tables with a strip on the busiest rank, those that take longest there first."""
    busiest = int(np.argmax(cluster.ms))
    found = []
    for table, (index, ranks) in enumerate(zip(layout.chosen, layout.ranks, strict=True)):
        pieces = choices[table][index].pieces
        ms = sum(
            piece.ms
            for piece, (first, count) in zip(pieces, ranks, strict=True)
            if first <= busiest < first + count
        )
        if ms > 0:
            found.append((-ms, table))
    return [table for _, table in sorted(found)]


def _dealt_again(
    orders: Sequence[_Order], layout: Layout, choices: Choices, cluster: Cluster
) -> bool:
    """Give tables in turn the way and ranks that help most; false, and all as before, if that does not.

    Args:
        orders: the tables in their turns, with the ways that each may take.
        layout: changed where that helps.
        choices: every table's priced ways.
        cluster: the ranks with all tables on them.
    """
    before = {table: (layout.chosen[table], layout.ranks[table]) for table, _ in orders}
    top = float(cluster.ms.max())
    bound = _unevenness(cluster.ms, top) * (1 - _TIE)
    for table, (index, ranks) in before.items():
        cluster.put(choices[table][index], ranks, -1)
    after: dict[int, tuple[int, Ranks]] = {}
    for table, allowed in orders:
        found = _best_way(choices[table], allowed, cluster, top)
        if found is None:
            break
        after[table] = found
        cluster.put(choices[table][found[0]], found[1])
    helps = len(after) == len(before) and _unevenness(cluster.ms, top) < bound
    if not helps:
        for table, (index, ranks) in after.items():
            cluster.put(choices[table][index], ranks, -1)
        for table, (index, ranks) in before.items():
            cluster.put(choices[table][index], ranks)
        return False
    for table, (index, ranks) in after.items():
        layout.chosen[table], layout.ranks[table] = index, ranks
    return True


def _best_way(
    options: Sequence[Option], allowed: Sequence[int], cluster: Cluster, top: float
) -> tuple[int, Ranks] | None:
    """The way and ranks of a table that leave the ranks most even; None where every way lacks room
    or makes some rank take longer than `top`.
    """
    best, least = None, np.inf
    for index in allowed:
        ranks = cluster.find(options[index])
        if ranks is None:
            continue
        cluster.put(options[index], ranks)
        value = _unevenness(cluster.ms, top)
        cluster.put(options[index], ranks, -1)
        if value < least:
            least, best = value, (index, ranks)
    return best


def _unevenness(ms: NDArray[np.float64], top: float) -> float:
    """Less, the fewer ranks take nearly as long as `top` and the less they all take; at worst infinite."""
    share = ms / top
    if share.max() > 1 + _TIE:
        return np.inf
    return float(np.sum(share**_SHARPNESS) + np.sum(share**2))
