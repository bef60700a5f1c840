"""Milliseconds of steps: all peers take turns, a window of steps at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.clock import Clock, CudaClock
from benchmarks.embeddings.peers import Peer
from benchmarks.embeddings.ranks import SLOW_MS, SLOW_WINDOWS
from prismrec.train.process_group import Ranks

LONGEST_WINDOW = 50


@dataclass(frozen=True, slots=True)
class Windows:
    """How long to measure.

    Args:
        number: windows of each peer.
        seconds: length of a window, which has one step at least.
    """

    number: int
    seconds: float


@dataclass(slots=True)
class Timed:
    """A peer with its inputs and what it took.

    Args:
        peer: the way.
        batches: its inputs, used in turn.
        gradients: of its outputs.
        steps: of a window.
        windows: how many.
        total: milliseconds of a step in each window.
        forward: the part of it until there are outputs.
    """

    peer: Peer
    batches: list[Any]
    gradients: list[Tensor]
    steps: int = 1
    windows: int = 1
    total: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)


def step(timed: Timed, index: int, mark: Callable[[], None] = lambda: None) -> None:
    """One step: forward, a mark, backward and update."""
    outputs = timed.peer.forward(timed.batches[index % len(timed.batches)])
    mark()
    torch.autograd.backward(outputs, timed.gradients)
    timed.peer.update()


def prepare(peer: Peer, steps: Sequence[Tensor], memory: Tensor, ranks: Ranks) -> Timed:
    """The peer's inputs, and gradients of the shapes of its outputs, all in the same memory.

    Collective: every rank calls it.

    Args:
        peer: the way.
        steps: ids (F, B, bag) of some steps.
        memory: at least as many numbers as the outputs have.
        ranks: this process among the others.
    """
    share = steps[0].shape[1] // ranks.world_size
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    batches = [peer.batch(ids[:, mine].contiguous().to(ranks.device)) for ids in steps]
    gradients, start = [], 0
    for output in peer.forward(batches[0]):
        part = memory[start : start + output.numel()]
        gradients.append(part.view(output.shape))
        start += output.numel()
    return Timed(peer, batches, gradients)


def measure(all_timed: Sequence[Timed], windows: Windows, ranks: Ranks) -> None:
    """Fill in what every peer takes.

    Collective: every rank calls it with the same peers.
    """
    for timed in all_timed:
        step(timed, 0)
        _, taken = _window(timed, ranks)
        longest = torch.tensor(taken)
        if ranks.world_size > 1:
            dist.all_reduce(longest, dist.ReduceOp.MAX)
        expected = longest.item()
        timed.steps = max(1, min(LONGEST_WINDOW, round(windows.seconds * 1e3 / expected)))
        most = SLOW_WINDOWS if expected > SLOW_MS else windows.number
        timed.windows = min(most, windows.number)
    for index in range(windows.number):
        for timed in all_timed:
            if index < timed.windows:
                forward, total = _window(timed, ranks)
                timed.forward.append(forward)
                timed.total.append(total)


def _window(timed: Timed, ranks: Ranks) -> tuple[float, float]:
    """Milliseconds of forward and of all of a step, means over a window."""
    clock = CudaClock() if ranks.device.type == "cuda" else Clock()
    if ranks.world_size > 1:
        dist.barrier()
    clock.mark()
    for index in range(timed.steps):
        step(timed, index, clock.mark)
        clock.mark()
    parts = clock.milliseconds()
    return sum(parts[::2]) / timed.steps, sum(parts) / timed.steps


def copy_rate(device: torch.device, size: int) -> float:
    """GB/s that a copy from the device's memory to itself reads and writes.

    Args:
        device: where.
        size: bytes of each of the two buffers.
    """
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    clock = CudaClock() if device.type == "cuda" else Clock()
    target.copy_(source)
    clock.mark()
    for _ in range(10):
        target.copy_(source)
        clock.mark()
    return 2 * size / statistics.median(clock.milliseconds()) / 1e6
