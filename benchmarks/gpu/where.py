"""Where the time of a step goes on the device: kernels by what they do, and what nobody works in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS: tuple[tuple[str, str], ...] = (
    ("host to device copies", r"memcpy htod|memcpy hto"),
    (
        "tables, backward and update",
        r"backward.*(warp|cta)_per_row|split_embedding.*backward|embedding_backward",
    ),
    ("tables, sorting of ids", r"radix|sort|run_length|linearize|segment_ids|cub::"),
    ("tables, lookup", r"embedding.*forward|split_embedding|embedding_codegen|bounds_check"),
    ("exchange of ids", r"nccl|permute|all_to_all|cumsum|offsets|recat"),
    ("matrix products", r"gemm|cutlass|xmma|cublas|nvjet|addmm|::mm\b|::bmm\b|aten::linear"),
    ("optimizer of dense weights", r"adam|multi_tensor|foreach"),
    ("casts, copies and concatenation", r"copy|cat|memcpy|memset|fill"),
    ("other arithmetic", r""),
)
"""Kinds of kernels in the order in which their names are tried."""


def kind_of(name: str) -> str:
    """What a kernel of this name does.

    >>> kind_of("Memcpy HtoD (Pinned -> Device)"), kind_of("nvjet_hsh_128x256")
    ('host to device copies', 'matrix products')
    """
    return next(kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some intervals.

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4
    """
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def profiled(call: Callable[[], object], device: str, steps: int) -> dict[str, float]:
    """Milliseconds of a step by kind of kernel; on CUDA also `busy`, in which some kernel runs, and `wall`.

    On the CPU it is the own time of operators, and `busy` is their sum.

    Args:
        call: one step.
        device: "cpu" or "cuda".
        steps: to take.
    """
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    events: list[Any] = list(profiler.events() or [])
    times: defaultdict[str, float] = defaultdict(float)
    if device == "cuda":
        # Named ranges of the host appear on the device too, around the kernels begun in them.
        of_device = [
            e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation
        ]
        spans = [(e.time_range.start, e.time_range.end) for e in of_device]
        for event in of_device:
            times[kind_of(event.name)] += event.time_range.elapsed_us()
        times["busy"] = covered(spans)
        times["wall"] = max(s[1] for s in spans) - min(s[0] for s in spans) if spans else 0
    else:
        for event in events:
            times[kind_of(event.name)] += event.self_cpu_time_total
        times["busy"] = times["wall"] = sum(times.values())
    return {kind: taken / steps / 1e3 for kind, taken in times.items()}
