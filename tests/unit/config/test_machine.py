from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from prismrec.config import machine


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_memory_is_cut_to_the_tightest_group_of_version_2(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box",
            "sys/fs/cgroup/pod/memory.max": "1000000",
            "sys/fs/cgroup/pod/memory.current": "400000",
            "sys/fs/cgroup/pod/box/memory.max": "max",
            "sys/fs/cgroup/pod/box/memory.current": "300000",
        },
    )
    assert machine.memory(root) == (1_000_000, 600_000)


def test_memory_is_cut_to_the_group_of_version_1(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/\n0::/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000000",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "2500000",
        },
    )
    assert machine.memory(root) == (2_000_000, 0)


def test_memory_is_the_machines_where_there_is_no_group(tmp_path: Path) -> None:
    total, free = machine.memory(tmp_path)
    assert total == psutil.virtual_memory().total
    assert 0 < free <= total


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/box", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        (
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/box",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/box",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
            },
            len(os.sched_getaffinity(0)),
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
    ],
)
def test_cores_are_cut_to_the_quota(
    tmp_path: Path, files: dict[str, str], cores: int | None
) -> None:
    expected = len(os.sched_getaffinity(0)) if cores is None else cores
    assert machine.usable_cores(_write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "threads"),
    [(8, 1, None, 8), (8, 3, None, 2), (2, 5, None, 1), (8, 2, 3, 3), (8, 2, 6, 4), (8, 1, 1, 1)],
)
def test_processes_share_the_cores_and_take_no_more_than_asked(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cores: int,
    processes: int,
    asked: int | None,
    threads: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert machine.threads_per_process(processes, asked, tmp_path) == threads


def test_shares_are_of_the_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    files = {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": "400000 100000"}
    assert machine.threads_per_process(2, None, _write(tmp_path, files)) == 2


@pytest.mark.parametrize(
    ("value", "threads"),
    [("3", 3), ("4,2", 4), (" 2 ", 2), ("", None), ("many", None), ("0", None)],
)
def test_the_threads_asked_for(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert machine.threads_asked() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert machine.threads_asked() is None
