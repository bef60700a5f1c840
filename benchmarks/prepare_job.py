"""`prismrec data build` over many rows: rows per second beside a plain copy, and the memory of all processes.

    python -m benchmarks.prepare_job --rows 10000000 --out benchmarks/results/prepare_job

The rows have 26 ids, 13 numbers, a label, a user as text and a time; a table of 100,000 items is joined,
users and brands get ids, the last tenth becomes the test split, and statistics of all numbers and a
vocabulary are fitted. Once the rows lie in the order of their times, once in no order, so that they are
sorted. Memory is the sum of the resident sizes of the command and every process below it, Ray's own
included, every 0.1 s; memory that processes share counts for each of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.ingest import FILE_ROWS, IDS, NUMBERS, _num_ids
from benchmarks.machine import machine, sentence
from benchmarks.result import write

ITEMS = 100_000
USERS = 1_000_000
DAY = 86_400


def write_rows(directory: Path, rows: int, *, in_order: bool) -> None:
    """Files of 200,000 rows, unless they are there already."""
    files = -(-rows // FILE_ROWS)
    if len(list(directory.glob("*.parquet"))) == files:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for file in range(files):
        rng = np.random.default_rng(file)
        count = min(FILE_ROWS, rows - file * FILE_ROWS)
        columns: dict[str, Any] = {
            name: np.minimum(rng.zipf(1.2, count) - 1, _num_ids(n) - 1)
            if n % 2
            else rng.integers(0, _num_ids(n), count)
            for n, name in enumerate(IDS)
        }
        columns |= {name: rng.normal(size=count).astype(np.float32) for name in NUMBERS}
        columns["label"] = (rng.random(count) < 0.25).astype(np.int8)
        columns["item"] = rng.integers(0, ITEMS * 11 // 10, count)
        columns["user"] = pa.array(rng.integers(0, USERS, count)).cast(pa.string())
        first = file * FILE_ROWS
        stamps = first + np.arange(count) if in_order else rng.integers(0, rows, count)
        columns["stamp"] = stamps * 7 * DAY // rows
        pq.write_table(pa.table(columns), directory / f"part-{file:04d}.parquet")


def write_items(directory: Path) -> None:
    """A table of items with a brand and three numbers."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    brands = [f"brand {n}" for n in rng.integers(0, 5_000, ITEMS)]
    numbers = {name: rng.normal(size=ITEMS).astype(np.float32) for name in ("price", "age", "size")}
    pq.write_table(
        pa.table({"item": np.arange(ITEMS), "brand": brands, **numbers}), directory / "a.parquet"
    )


def write_plan(directory: Path, rows: Path, out: Path) -> Path:
    """The plan and the recipe that it fits for."""
    lines = [
        'name = "prepared"',
        f'rows = "{rows}"',
        f'recipe = "{directory}/recipe.toml"',
        "[columns]",
    ]
    lines += [f'{name} = {{ kind = "id", num_ids = {_num_ids(n)} }}' for n, name in enumerate(IDS)]
    lines += [f'{name} = {{ kind = "number" }}' for name in [*NUMBERS, "price", "age", "size"]]
    lines += [f'{name} = {{ kind = "id", vocabulary = "{name}" }}' for name in ("user", "brand")]
    lines += ['item = { kind = "id" }', 'label = { kind = "label" }', 'stamp = { kind = "time" }']
    lines += ["[[joins]]", f'path = "{directory}/items"', 'on = "item"']
    lines += ['columns = ["brand", "price", "age", "size"]', "[splits]", "test = 0.1"]
    (directory / "plan.toml").write_text("\n".join(lines) + "\n")
    numbers = [f'{{ name = "{name}", encoding = "log_bucket" }}' for name in NUMBERS]
    recipe = f"""
name = "prepared"
[data]
path = "{out}"
splits.train = ["split == 'train'"]
[features]
sparse = ["user", "item"]
numbers = [{", ".join(numbers)}]
statistics = "{out}/_fitted/numbers.json"
[embedding.tables.item.ids]
kind = "vocabulary"
path = "{out}/_fitted/item.parquet"
[model]
name = "dcnv2"
[[tasks]]
name = "label"
label = "label"
"""
    (directory / "recipe.toml").write_text(recipe)
    return directory / "plan.toml"


def copy(source: Path, target: Path) -> float:
    """Seconds of reading every file and writing it again, with all threads that Arrow wants."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    start = time.perf_counter()
    for path in sorted(source.glob("*.parquet")):
        pq.write_table(pq.read_table(path), target / path.name, compression="zstd")
    return time.perf_counter() - start


class Peak:
    """The largest sum of resident sizes of a process and all below it.

    Args:
        process: the process.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.bytes = 0
        self._top, self._ended = psutil.Process(process.pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            total = 0
            try:
                for each in [self._top, *self._top.children(recursive=True)]:
                    total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.bytes = max(self.bytes, total)


def build(plan: Path, out: Path, *more: str) -> dict[str, Any]:
    """The document of one build, with `peak_bytes` and seconds of the whole command."""
    program = str(Path(sys.executable).with_name("prismrec"))
    command = [
        program,
        "data",
        "build",
        str(plan),
        "--out",
        str(out),
        "--json",
        "--overwrite",
        *more,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = Peak(process)
    answer, errors = process.communicate()
    peak.end()
    if process.returncode:
        raise RuntimeError(errors)
    took = time.perf_counter() - start
    return json.loads(answer) | {"peak_bytes": peak.bytes, "command_seconds": took}


def group_bytes(out: Path) -> tuple[int, int]:
    """Least and largest decoded size of a row group of the result, a file's last one not counted."""
    sizes = []
    for path in out.rglob("part-*.parquet"):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                sizes.append(file.read_row_group(group).nbytes)
    return min(sizes), max(sizes)


def measure(directory: Path, rows: int, repeats: int) -> list[dict[str, Any]]:
    """A line for every way to read the rows, each of them built and copied in turn."""
    write_items(directory / "items")
    lines = []
    for name, in_order in (("in order", True), ("in no order", False)):
        source, out = directory / name.replace(" ", "_"), directory / "out"
        write_rows(source, rows, in_order=in_order)
        plan = write_plan(directory, source, out)
        for _ in range(repeats):
            copied = copy(source, directory / "copy")
            built = build(plan, out)
            least, most = group_bytes(out)
            lines.append(
                {
                    "rows": name,
                    "copy_rows_per_second": rows / copied,
                    "rows_per_second": rows / built["command_seconds"],
                    "of_copy": copied / built["command_seconds"],
                    "sorted": built["sorted"],
                    "peak_gib": built["peak_bytes"] / 2**30,
                    "files": built["files"],
                    "group_mib": [least / 2**20, most / 2**20],
                }
            )
            print(json.dumps(lines[-1]), file=sys.stderr)
        shutil.rmtree(directory / "copy")
    return lines


def page(document: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Building a data set",
        "",
        f"`{document['command']}`, {sentence(document['machine'])}. {document['rows']:,} rows of 26 ids, "
        "13 numbers, a label, an item, a user as text and a time; a table of 100,000 items joined to them. "
        "Embedded Ray; its start and end count. The copy reads and writes the same files in one process.",
        "",
        "| rows lie | rows/s | rows/s of the copy | of the copy | dealt out first | memory of all processes | "
        "files | row groups decoded |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['rows']} | {r['rows_per_second']:,.0f} | {r['copy_rows_per_second']:,.0f} | "
        f"{r['of_copy']:.0%} | {'yes' if r['sorted'] else 'no'} | {r['peak_gib']:.2f} GiB | {r['files']} | "
        f"{r['group_mib'][0]:.0f} to {r['group_mib'][1]:.0f} MiB |"
        for r in document["results"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--directory", type=Path, default=Path("out/bench/prepare_job"))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    chosen = parser.parse_args()
    facts = machine()
    results = measure(chosen.directory.absolute(), chosen.rows, chosen.repeats)
    document = {
        "command": f"python -m benchmarks.prepare_job {' '.join(sys.argv[1:])}".strip(),
        "machine": facts,
        "rows": chosen.rows,
        "results": results,
    }
    write(chosen.out, document, page(document))
    print(page(document))


if __name__ == "__main__":
    main()
