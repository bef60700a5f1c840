"""Cores, memory, disk, shared memory and bfloat16 of this machine, within its container's limits."""

from __future__ import annotations

import shutil
from pathlib import Path

from prismrec.config.machine import memory, usable_cores

__all__ = [
    "BF16_FLAGS",
    "GIB",
    "bf16_instructions",
    "free_disk",
    "memory",
    "shared_memory",
    "usable_cores",
]

GIB = 2**30
BF16_FLAGS = ("amx_bf16", "avx512_bf16")


def free_disk(directory: Path) -> int:
    """Bytes that may still be written into `directory`."""
    return shutil.disk_usage(directory).free


def shared_memory(directory: Path = Path("/dev/shm")) -> int | None:
    """Size in bytes of the shared-memory file system, or None where the system has none."""
    return shutil.disk_usage(directory).total if directory.is_dir() else None


def bf16_instructions(root: Path = Path("/")) -> tuple[str, ...]:
    """The bfloat16 matrix instructions of this processor, out of `BF16_FLAGS`; empty if unknown."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return ()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return tuple(flag for flag in BF16_FLAGS if flag in flags)
