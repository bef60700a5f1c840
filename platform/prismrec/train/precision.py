"""Choosing bfloat16 where the machine computes it faster."""

from __future__ import annotations

import time

import torch

from prismrec.train.process_group import Ranks

_ROWS, _WIDTH, _SECONDS = 2048, 512, 0.25


def resolve_precision(wanted: str, ranks: Ranks) -> str:
    """`fp32` or `bf16` for a recipe's `train.precision`, the same on every rank.

    `auto` takes bf16 on CUDA. On CPU it times the matrix products of a small layer, forward and
    backward, for half a second on rank 0 and takes bf16 only where that is at least 1.15 times as
    fast.

    Collective: every rank calls it.
    """
    if wanted != "auto":
        return wanted
    if ranks.device.type == "cuda":
        return "bf16"
    faster = ranks.is_first and _rate(is_bf16=True) > 1.15 * _rate(is_bf16=False)
    return "bf16" if ranks.agree(faster) else "fp32"


def _rate(*, is_bf16: bool) -> float:
    """Passes per second through a linear layer and back."""
    layer = torch.nn.Linear(_WIDTH, _WIDTH)
    rows = torch.randn(_ROWS, _WIDTH)

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            out = layer(rows)
        out.float().square().mean().backward()

    once()  # the first call chooses kernels
    passes, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        once()
        passes += 1
    return passes / (time.perf_counter() - start)
