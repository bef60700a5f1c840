"""Cores and memory that this process may use, within its container's limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may keep busy: its affinity mask, cut to the container's CPU quota.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cpu_quota(root)
    return max(1, min(pinned or 1, math.ceil(quota) if quota else pinned or 1))


def threads_asked() -> int | None:
    """What the user set `OMP_NUM_THREADS` to, or None.

    To be read where a command is started: Ray sets it to 1 in workers of its own accord.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) else None


def threads_per_process(processes: int, asked: int | None, root: Path = Path("/")) -> int:
    """Threads for one of several processes that share this machine's usable cores.

    Args:
        processes: number of the processes, at least 1.
        asked: the most threads that the user wants in each; see `threads_asked`.
        root: where `proc` and `sys` are mounted.
    """
    share = max(1, usable_cores(root) // processes)
    return share if asked is None else min(share, asked)


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory this process may use in all, and how many of them are free now.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    for limit, used in _memory_limits(root):
        if limit < total:
            total, free = limit, min(free, max(0, limit - used))
    return total, free


def _memory_limits(root: Path) -> list[tuple[int, int]]:
    """Limit and use in bytes of every control group around this process, version 2 and 1."""
    files = [
        *((folder, "memory.max", "memory.current") for folder in _groups(root, "")),
        *(
            (folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
            for folder in _groups(root, "memory")
        ),
    ]
    pairs = [(_number(folder / limit), _number(folder / used)) for folder, limit, used in files]
    return [(limit, used or 0) for limit, used in pairs if limit is not None]


def _cpu_quota(root: Path) -> float | None:
    """The tightest CPU quota around this process, in cores."""
    quotas = []
    for folder in _groups(root, ""):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _groups(root, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and all groups above it.

    Args:
        root: where `proc` and `sys` are mounted.
        controller: a version 1 controller such as `memory`, or empty for version 2.
    """
    mount = root / "sys/fs/cgroup" / controller
    own = "/"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = path
    folder = mount / own.strip("/")
    return [each for each in (folder, *folder.parents) if each == mount or mount in each.parents]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no such controller on this machine
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> int | None:
    """The number in a one-line file; None where there is no file or no limit (`max`, `-1`)."""
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None
