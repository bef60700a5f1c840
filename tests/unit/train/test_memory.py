from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import numpy as np
from prismrec.train.memory import reuse_freed_memory

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        a, b = np.ones(3_000_000), np.ones(3_000_000)
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

reuse_freed_memory()
faults(2)
print(faults(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_arrays_are_used_again() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    pages_of_one_step = 2 * 3_000_000 * 8 // 4096
    assert int(ended.stdout) < pages_of_one_step / 10


ARENAS = """
import ctypes, sys, threading
import numpy as np
from prismrec.train.memory import reuse_freed_memory

reuse_freed_memory()
all_live = threading.Barrier(8)
def allocate():
    all_live.wait()
    kept = [np.ones(1000) for _ in range(1000)]
    all_live.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[each.start() for each in threads]
[each.join() for each in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.fclose.argtypes = [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_threads_share_arenas(tmp_path: Path) -> None:
    listed = tmp_path / "malloc.xml"
    subprocess.run([sys.executable, "-c", ARENAS, str(listed)], check=True)
    assert listed.read_text().count("<heap nr=") == 2
