"""Keeping freed memory, so that a step on CPU finds its buffers where the last one left them."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30
_LARGEST_REUSED_BYTES = 256 << 20
_ARENAS = 2
"""One of the step's and one that all threads beside it share."""


def reuse_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory for later allocations up to 256 MiB.

    Left alone, the C library hands the large tensors of a step back to the system and has every page
    of them made and zeroed anew in the next step: 10,000 page faults and more, 7 % of a float32 step
    and 18 % of a bfloat16 step of the benchmark's model (`benchmarks/results/train_step_notes.md`).
    There are two arenas for that instead of eight per core: every evaluation and every checkpoint
    starts threads, and each would find another arena to fill, whose freed memory no other uses.
    Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_REUSED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
