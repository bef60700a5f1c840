"""The tests of tests/gpu on the device, each file in a process of its own, several at a time.

    python -m benchmarks.gpu.right --out out/right.json

A kernel that fails can take its process with it, but not the other files'. Every test is put down when
it is over.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.channel import ROOT
from benchmarks.gpu.results import Asked, Table, asked

FOLDER = ROOT / "tests" / "gpu"
QUICK = ("test_inference.py", "test_optimizers.py")
"""Files of a trial."""
_LINE = re.compile(r"^tests/gpu/(\S+?)::(.+?) (PASSED|FAILED|ERROR|SKIPPED)(?: \((.*)\))?")
_WHY = re.compile(r"^(?:FAILED|ERROR) tests/gpu/\S+?::(.+?) - (.*)")


class Files:
    """What the tests of some files came to.

    Args:
        run: how they are run, and where their results go.
    """

    def __init__(self, run: Asked) -> None:
        self._run = run
        self._lock = threading.Lock()
        columns = ["file", "passed", "failed", "skipped", "ended with"]
        self._table = run.results.table("Tests", columns)
        self._failures = run.results.table("Tests that failed", ["file", "test", "why"])
        self._skipped = run.results.table("Tests that were skipped", ["file", "test", "why"])
        self.failed: list[str] = []

    def take(self, path: Path) -> None:
        """Run one file."""
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PRISMREC_GPU_TESTS": self._run.device, "COLUMNS": "300"}
        counts = {"PASSED": 0, "FAILED": 0, "SKIPPED": 0, "ERROR": 0}
        whys: dict[str, str] = {}
        process = subprocess.Popen(
            [*command, str(path)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            with self._lock:
                print(f"{path.stem}: {line}", end="", flush=True)
            if found := _LINE.match(line):
                self._put(counts, found)
            elif found := _WHY.match(line):
                whys[found[1]] = found[2][:200]
        code = process.wait()
        with self._lock:
            for row in self._failures.rows:
                row[2] = whys.get(str(row[1]), row[2]) if row[0] == path.name else row[2]
            failed = counts["FAILED"] + counts["ERROR"]
            if code:
                self.failed.append(path.name)
            cells = (path.name, counts["PASSED"], failed, counts["SKIPPED"], f"exit code {code}")
            self._run.results.add(self._table, *cells)

    def _put(self, counts: dict[str, int], found: re.Match[str]) -> None:
        file, test, outcome, why = found.groups()
        with self._lock:
            counts[outcome] += 1
            table: Table | None = None
            if outcome in ("FAILED", "ERROR"):
                table = self._failures
            elif outcome == "SKIPPED":
                table = self._skipped
            if table is not None:
                self._run.results.add(table, file, test, why or "see the log")


def main() -> None:
    """Run all files; exit code 1 if a test failed."""
    run = asked(__doc__)
    paths = sorted(FOLDER.glob("test_*.py"), key=lambda path: (path.stem != "test_training", path))
    if not run.is_full:
        paths = [path for path in paths if path.name in QUICK]
    files = Files(run)
    at_a_time = min(len(paths), max(1, len(os.sched_getaffinity(0)) // 3))
    with ThreadPoolExecutor(at_a_time) as pool:
        for done in [pool.submit(files.take, path) for path in paths]:
            done.result()
    passed = sum(int(row[1] or 0) for row in files._table.rows)
    run.results.fact("passed", passed)
    if files.failed:
        sys.exit(f"tests failed in {', '.join(sorted(files.failed))}")


if __name__ == "__main__":
    main()
