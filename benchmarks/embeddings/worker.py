"""What each of the measuring processes does."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.embeddings.cases import Case, distinct, draw, traffic
from benchmarks.embeddings.peers import Peer, ours, peers_of
from benchmarks.embeddings.ranks import Plan
from benchmarks.embeddings.room import Room
from benchmarks.embeddings.timing import Timed, Windows, copy_rate, measure, prepare, step
from benchmarks.embeddings.wire import ids_sent
from prismrec.train.process_group import Ranks, process_group
from prismrec.train.quiet import library_output

BATCHES = 4
"""Steps whose ids differ."""
_GRADIENT = 1e-3


@dataclass(frozen=True, slots=True)
class Place:
    """A process among the others.

    Args:
        rank: 0 says the results.
        ranks: how many there are.
        directory: that all of them see.
    """

    rank: int
    ranks: int
    directory: str


def run(place: Place, plan: Plan, put: Callable[[dict[str, Any]], None]) -> None:
    """Measure everything.

    Collective: every process calls it.

    Args:
        place: this process.
        plan: what to measure.
        put: takes the results as they come.
    """
    numbers = {"RANK": place.rank, "LOCAL_RANK": place.rank}
    numbers |= {"WORLD_SIZE": place.ranks, "LOCAL_WORLD_SIZE": place.ranks}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    device = plan.cases[0].device
    with library_output(Path(place.directory) / f"rank{place.rank}.log", verbose=False):
        torch.set_num_threads(max(1, plan.threads // place.ranks))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            init_method=f"file://{place.directory}/rendezvous",
            rank=place.rank,
            world_size=place.ranks,
        )
        with process_group(device) as ranks:
            if plan.copied:
                put({"copy_gb_per_s": round(copy_rate(ranks.device, plan.copied), 1)})
            bench = Bench(plan, ranks, put)
            for group in plan.groups:
                bench.compare(group)
            if plan.curve:
                bench.curve(plan.curve)
        dist.destroy_process_group()


class Bench:
    """One process's measurements.

    Args:
        plan: what to measure and for how long.
        ranks: this process among the others.
        put: takes the results.
    """

    def __init__(self, plan: Plan, ranks: Ranks, put: Callable[[dict[str, Any]], None]) -> None:
        self._ranks = ranks
        self._put = put
        self._only = plan.only
        self._windows = Windows(plan.windows, plan.seconds)
        largest = max(case.numbers for case in plan.cases)
        self._room = Room(round(2.1 * largest / ranks.world_size), ranks.device)
        outputs = (c.batch // c.ranks * c.tables * c.k * c.width for c in plan.cases)
        self._gradients = torch.full((max(outputs),), _GRADIENT, device=ranks.device)

    def compare(self, cases: Sequence[Case]) -> None:
        """All peers of some cases that share their modules."""
        made = [self._make(maker) for maker in peers_of(cases[0], self._ranks)]
        peers = [peer for peer in made if not self._only or peer.name in self._only]
        for case in cases:
            self._put({"rows": self._rows(case, peers)})

    def curve(self, cases: Sequence[Case]) -> None:
        """Ours with every number of sets, in turns with each other."""
        steps = draw(cases[0], BATCHES)
        timed = []
        for case in cases:
            for layout in ("packed", "separate"):
                peer = self._make(partial(ours, case, self._ranks, layout))
                timed.append(self._prepared(peer, steps))
        measure(timed, self._windows, self._ranks)
        points = [
            {"k": case.k, "packed": packed.total, "separate": separate.total}
            for case, packed, separate in zip(cases, timed[::2], timed[1::2], strict=True)
        ]
        self._put({"curve": {**cases[0].document(), "k": None}, "points": points})

    def _make(self, maker: Callable[[], Peer]) -> Peer:
        with self._room:
            return maker()

    def _prepared(self, peer: Peer, steps: Sequence[torch.Tensor]) -> Timed:
        return prepare(peer, steps, self._gradients, self._ranks)

    def _rows(self, case: Case, peers: Sequence[Peer]) -> list[dict[str, Any]]:
        steps = draw(case, BATCHES)
        unique = distinct(case, steps)
        timed = [self._prepared(peer, steps) for peer in peers]
        measure(timed, self._windows, self._ranks)
        totals = {each.peer.name: each.total for each in timed}
        rows = []
        for each in timed:
            moved = traffic(case, each.peer.way, unique)
            against = each.peer.against if each.peer.against in totals else timed[0].peer.name
            rows.append(
                {
                    "case": case.document(),
                    "peer": each.peer.name,
                    **summary(each.total, totals[against]),
                    "bytes": moved.total,
                    "against": against,
                    "kind": case.kind,
                    "batch": case.batch,
                    "data_type": case.data_type,
                    "forward_milliseconds": round(statistics.median(each.forward), 3),
                    "forward_bytes": moved.forward,
                    "ids_sent": self._sent(each) if case.ranks > 1 else None,
                }
            )
        return rows

    def _sent(self, timed: Timed) -> int:
        """Ids that all ranks hand over in one step."""
        with ids_sent() as counted:
            step(timed, 0)
        return int(self._ranks.sum(torch.tensor(counted.ids, device=self._ranks.device)))


def summary(taken: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Median and range of a peer's windows, and their ratio to ours, window by window.

    A slow peer has fewer windows; they are compared with the first ones of ours.
    """
    ratios = [other / own for other, own in zip(taken, ours, strict=False)]
    return {
        "milliseconds": round(statistics.median(taken), 3),
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(taken), 3), round(max(taken), 3)],
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }
