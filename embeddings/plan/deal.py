"""First layouts: a way for every table, and the tables dealt out to the ranks, the largest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismrec.config.placement import KINDS
from prismrec.embeddings.plan.cluster import Cluster, Ranks
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.price import Option, Piece

_LIMITS = (8, 24)
"""Fewest and most longest times of a strip that are tried."""
_DEALT_TABLES = 4800
"""Tables that are dealt out for one weight of memory: the more there are, the fewer limits are tried."""
_MEMORY_WEIGHTS = (0.0, 0.3, 1.0, 3.0, 10.0, 100.0)
"""How much a way's share of the memory counts beside its work; the next while not all fits."""
MOST_DEALS = _LIMITS[1] * len(_MEMORY_WEIGHTS) + len(KINDS)
"""Layouts that are tried at most."""

Choices = Sequence[Sequence[Option]]
"""Every table's priced ways."""
_Selection = tuple[int, ...]
"""Index of each table's way among its choices."""


@dataclass(slots=True)
class Layout:
    """A way and ranks for every table.

    Args:
        chosen: index of each table's way among its choices.
        ranks: of each table's strips.
    """

    chosen: list[int]
    ranks: list[Ranks]

    def cluster(self, choices: Choices, placement: Placement) -> Cluster:
        """The ranks with these tables on them; free bytes are negative where they do not fit."""
        filled = Cluster(placement)
        for options, index, ranks in zip(choices, self.chosen, self.ranks, strict=True):
            filled.put(options[index], ranks)
        return filled


def first_layouts(
    choices: Choices, placement: Placement, told: Callable[[int], None]
) -> list[Layout]:
    """The best layout with ways chosen by time, and the best with ways chosen by kind, if any fit.

    Args:
        choices: every table's priced ways.
        placement: the machines.
        told: the number of layouts tried, up to `MOST_DEALS`.
    """
    known: dict[_Selection, tuple[float, Layout] | None] = {}

    def best(selections: Iterator[_Selection]) -> tuple[list[tuple[float, Layout]], bool]:
        """The layout that ends first, if any fits, and whether all of them do."""
        dealt = []
        for chosen in selections:
            if chosen not in known:
                known[chosen] = _dealt(chosen, choices, placement)
                told(len(known))
            dealt.append(known[chosen])
        fitting = [each for each in dealt if each is not None]
        return sorted(fitting, key=lambda each: each[0])[:1], len(fitting) == len(dealt)

    if not _may_fit(choices, placement):
        return []
    found: list[tuple[float, Layout]] = []
    for weight in _MEMORY_WEIGHTS:
        more, all_fit = best(_by_limit(choices, placement, weight))
        found = sorted(found + more, key=lambda each: each[0])[:1]
        if all_fit:
            break
    found += best(_by_kind(choices, placement))[0]
    layouts = [layout for _, layout in found]
    return [
        each for index, each in enumerate(layouts) if all(each is not x for x in layouts[:index])
    ]


def memory_share(piece: Piece, placement: Placement) -> float:
    """Largest share of a rank's room, on its device or its host, that a piece takes."""
    on_host = piece.host / max(1, placement.host_room)
    return max(on_host, piece.device / max(1, placement.device_room) if piece.device else 0.0)


def _may_fit(choices: Choices, placement: Placement) -> bool:
    """Whether the memory of all ranks is enough, and each table has a way with room on empty ranks."""
    least = [
        min(_memory_work(option, placement) for option in options if _fits_alone(option, placement))
        if any(_fits_alone(option, placement) for option in options)
        else np.inf
        for options in choices
    ]
    return sum(least) <= placement.world_size


def _fits_alone(option: Option, placement: Placement) -> bool:
    return all(memory_share(piece, placement) <= 1 for piece in option.pieces)


def _work(choices: Choices, placement: Placement) -> list[NDArray[np.float64]]:
    """Milliseconds over all ranks of each way; infinite where it does not even fit alone."""
    return [
        np.array([option.work if _fits_alone(option, placement) else np.inf for option in options])
        for options in choices
    ]


def _by_limit(choices: Choices, placement: Placement, weight: float) -> Iterator[_Selection]:
    """The least work and memory for every table, under several limits of a strip's time."""
    work = _work(choices, placement)
    slowest = [
        np.where(np.isinf(each), np.inf, [option.slowest for option in options])
        for each, options in zip(work, choices, strict=True)
    ]
    unit = weight * sum(float(each.min()) for each in work) / placement.world_size
    scores = [
        each + unit * np.array([_memory_work(option, placement) for option in options])
        for each, options in zip(work, choices, strict=True)
    ]
    for limit in _limits(slowest):
        yield tuple(
            _cheapest(score, each <= limit) for score, each in zip(scores, slowest, strict=True)
        )


def _by_kind(choices: Choices, placement: Placement) -> Iterator[_Selection]:
    """One kind for every table that may take it, the least work for the others."""
    work = _work(choices, placement)
    for kind in KINDS:
        yield tuple(
            _cheapest(score, np.array([option.cut.kind == kind for option in options]))
            for score, options in zip(work, choices, strict=True)
        )


def _memory_work(option: Option, placement: Placement) -> float:
    """Ranks' memories that a way takes in all."""
    return option.ranks * sum(memory_share(piece, placement) for piece in option.pieces)


def _limits(slowest: list[NDArray[np.float64]]) -> list[float]:
    """Longest times of a strip to try, from any to the shortest that every table can keep."""
    times = np.unique(np.concatenate(slowest))
    times = times[np.isfinite(times) & (times >= max(float(each.min()) for each in slowest))]
    count = min(max(_LIMITS[0], _DEALT_TABLES // len(slowest)), _LIMITS[1], len(times))
    places = np.linspace(0, len(times) - 1, count).round().astype(int)
    return [float(times[place]) for place in places[::-1]]


def _cheapest(score: NDArray[np.float64], allowed: NDArray[np.bool_]) -> int:
    """The lowest score of those allowed, or of all where none of them is finite."""
    among = np.where(allowed, score, np.inf)
    return int(np.argmin(among if np.isfinite(among).any() else score))


def _dealt(
    chosen: _Selection, choices: Choices, placement: Placement
) -> tuple[float, Layout] | None:
    """The better of the layouts dealt out by time and by memory, and when it ends, if one fits."""
    options = [options[index] for options, index in zip(choices, chosen, strict=True)]
    best: tuple[float, Layout] | None = None
    for size in (_time, memory_share):
        sizes = [max(size(piece, placement) for piece in option.pieces) for option in options]
        is_shared = [option.ranks == placement.world_size for option in options]
        order = sorted(range(len(options)), key=lambda i: (not is_shared[i], -sizes[i]))
        cluster, ranks = Cluster(placement), {}
        for index in order:
            found = cluster.find(options[index])
            if found is None:
                break
            cluster.put(options[index], found)
            ranks[index] = found
        if len(ranks) == len(options) and (best is None or cluster.ms.max() < best[0]):
            layout = Layout(list(chosen), [ranks[index] for index in range(len(options))])
            best = float(cluster.ms.max()), layout
    return best


def _time(piece: Piece, placement: Placement) -> float:
    return piece.ms
