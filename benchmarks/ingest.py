"""How fast rows reach a batch, beside a plain Arrow scan of the same columns.

python -m benchmarks.ingest --ray --petastorm --out benchmarks/results/ingest
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.channel import ROOT
from benchmarks.machine import machine, sentence
from benchmarks.result import write
from prismrec.config import Recipe, from_dict
from prismrec.data.encode.tables import encoders_of
from prismrec.data.lanes import Share
from prismrec.data.reader import Reader
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import open_data

IDS = [f"id_{n}" for n in range(26)]
NUMBERS = [f"number_{n}" for n in range(13)]
FILE_ROWS = 200_000
BATCH = 4096
PETASTORM = ROOT / "out" / "bench" / "petastorm"


def write_data(rows: int, directory: Path) -> None:
    """Files of 200,000 rows with 26 ids, 13 numbers and a label, unless they are there already.

    Half of the id columns are uniform and half follow a Zipf law, over 10 to 1,000,000 values.
    """
    schema = DataSchema(name="ingest", columns=_columns())
    files = -(-rows // FILE_ROWS)
    if len(list(directory.glob("*.parquet"))) == files and (directory / "schema.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        rng = np.random.default_rng(file)
        count = min(FILE_ROWS, rows - file * FILE_ROWS)
        columns: dict[str, Any] = {}
        for number, name in enumerate(IDS):
            limit = _num_ids(number)
            zipf = np.minimum(rng.zipf(1.2, count) - 1, limit - 1)
            columns[name] = zipf if number % 2 else rng.integers(0, limit, count)
        for name in NUMBERS:
            columns[name] = rng.normal(size=count).astype(np.float32)
        columns["label"] = (rng.random(count) < 0.25).astype(np.int8)
        table = pa.table(columns)
        pq.write_table(table, directory / f"part-{file:04d}.parquet", row_group_size=FILE_ROWS)
    schema.write(directory)


def _num_ids(number: int) -> int:
    return int(10 ** (1 + 5 * number / 25))


def _columns() -> dict[str, Column]:
    ids = {name: Column(kind="id", num_ids=_num_ids(n)) for n, name in enumerate(IDS)}
    numbers = {name: Column(kind="number") for name in NUMBERS}
    return {**ids, **numbers, "label": Column(kind="label")}


def _recipe(directory: Path, order: str) -> Recipe:
    return from_dict(
        {
            "name": "ingest",
            "data": {"path": str(directory), "global_batch_size": BATCH, "order": order},
            "features": {"sparse": IDS, "dense": NUMBERS},
            "model": {"name": "dcnv2"},
            "tasks": [{"name": "label", "label": "label"}],
        }
    )


def _read(directory: Path, order: str) -> Callable[[], int]:
    recipe = _recipe(directory, order)
    source = open_data(directory)
    encoders = encoders_of(recipe, source.schema)
    reader = Reader(source, recipe, "train", encoders, Share(), training=True)

    def passes() -> Iterator[int]:
        for batch, _ in reader.epoch():
            yield batch.num_rows

    return lambda: min(sum(passes()), reader.num_rows)


def _scan(directory: Path) -> int:
    """The yardstick: a dataset scan, each batch stacked into one id and one number array."""
    rows = 0
    for batch in ds.dataset(directory, format="parquet", exclude_invalid_files=True).to_batches(
        columns=[*IDS, *NUMBERS, "label"], batch_size=BATCH
    ):
        columns = [column.to_numpy() for column in batch.columns]
        ids, numbers = np.stack(columns[:26]), np.stack(columns[26:39])
        rows += min(ids.shape[1], numbers.shape[1])
    return rows


def _decode(directory: Path) -> int:
    dataset = ds.dataset(directory, format="parquet", exclude_invalid_files=True)
    return sum(b.num_rows for b in dataset.to_batches(columns=[*IDS, *NUMBERS, "label"]))


def _ray(directory: Path) -> int:
    import ray

    data = ray.data.read_parquet([str(path) for path in sorted(directory.glob("*.parquet"))])
    rows = 0
    for batch in data.iter_torch_batches(batch_size=BATCH):
        rows += len(batch["label"])
    return rows


def petastorm_python() -> Path:
    """The Python of an environment with petastorm, made on first use."""
    python = PETASTORM / "bin" / "python"
    ready = PETASTORM / "ready"
    if not ready.exists():
        venv.create(PETASTORM, clear=True, with_pip=True)
        pins = str(ROOT / "requirements" / "petastorm.txt")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", pins], check=True)
        ready.touch()
    return python


def _petastorm(directory: Path, rows: int) -> float:
    """Rows per second of petastorm's batch reader; its files may hold nothing but Parquet."""
    plain = directory.with_name(directory.name + "-plain")
    plain.mkdir(exist_ok=True)
    for path in directory.glob("*.parquet"):
        (plain / path.name).unlink(missing_ok=True)
        os.link(path, plain / path.name)
    names = ",".join([*IDS, *NUMBERS, "label"])
    script = Path(__file__).with_name("petastorm_read.py")
    done = subprocess.run(
        [
            petastorm_python(),
            "-W",
            "ignore",
            script,
            plain.absolute().as_uri(),
            names,
            str(len(IDS)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"petastorm: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if answer["rows"] != rows:
        raise RuntimeError(f"petastorm read {answer['rows']} of {rows} rows")
    return float(answer["rows"] / answer["seconds"])


def run(
    rows: int,
    directory: Path,
    repeats: int = 7,
    *,
    with_ray: bool = False,
    with_petastorm: bool = False,
) -> list[dict[str, Any]]:
    """Rows per second of every way to read, as medians of alternating runs.

    Args:
        rows: rows of the data set, written into `directory` if need be.
        directory: where the Parquet files are.
        repeats: runs of each way.
        with_ray: also `ray.data.iter_torch_batches`, once.
        with_petastorm: also petastorm's batch reader, once, in an environment of its own.
    """
    write_data(rows, directory)
    ways: dict[str, Callable[[], int]] = {
        "arrow scan, stacked": lambda: _scan(directory),
        "arrow scan, decode only": lambda: _decode(directory),
        "prismrec, file order": _read(directory, "file"),
        "prismrec, shuffled": _read(directory, "shuffle"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            rate = _rate(way, rows)
            if repeat:  # the first round fills the page cache
                rates[name].append(rate)
    if with_ray:
        rates["ray.data.iter_torch_batches"] = [_rate(lambda: _ray(directory), rows)]
    if with_petastorm:
        rates["petastorm.make_batch_reader"] = [_petastorm(directory, rows)]
    plain = rates["arrow scan, stacked"]
    return [_line(name, some, plain) for name, some in rates.items()]


def _line(name: str, rates: list[float], plain: list[float]) -> dict[str, Any]:
    """Median and range, and the ratio to the plain scan round by round where there are rounds."""
    median = statistics.median(rates)
    paired = len(rates) == len(plain)
    ratios = [mine / theirs for mine, theirs in zip(rates, plain, strict=False)]
    return {
        "reader": name,
        "rows_per_second": round(median),
        "low": round(min(rates)),
        "high": round(max(rates)),
        "of_plain_scan": round(
            statistics.median(ratios) if paired else median / statistics.median(plain), 3
        ),
    }


def _rate(way: Callable[[], int], rows: int) -> float:
    start = time.perf_counter()
    read = way()
    if read != rows:
        raise RuntimeError(f"{read} of {rows} rows were read")
    return rows / (time.perf_counter() - start)


def markdown(document: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Ingest",
        "",
        f"`{document['command']}`, {sentence(document['machine'])}. {document['rows']:,} rows of 26 ids, "
        f"13 numbers and a label in files of {FILE_ROWS:,}; batches of {BATCH:,}; medians of "
        f"{document['repeats']} alternating runs, page cache warm; readers of others once.",
        "",
        "| reader | rows/s | range | of the plain scan |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['reader']} | {r['rows_per_second']:,} | {r['low']:,}-{r['high']:,} "
        f"| {r['of_plain_scan']:.1%} |"
        for r in document["results"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the page or JSON, and write both where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6_400_000)
    parser.add_argument("--directory", type=Path, default=Path("out/bench/ingest"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ray", action="store_true", help="also ray.data.iter_torch_batches")
    parser.add_argument(
        "--petastorm", action="store_true", help="also petastorm, from its own venv"
    )
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    facts = machine()
    results = run(
        chosen.rows,
        chosen.directory,
        chosen.repeats,
        with_ray=chosen.ray,
        with_petastorm=chosen.petastorm,
    )
    arguments = " ".join(sys.argv[1:]).replace(f"{ROOT}/", "")
    document = {
        "command": f"python -m benchmarks.ingest {arguments}".strip(),
        "machine": facts,
        "rows": chosen.rows,
        "repeats": chosen.repeats,
        "results": results,
    }
    write(chosen.out, document, markdown(document))
    print(json.dumps(document, indent=1) if chosen.json else markdown(document))


if __name__ == "__main__":
    main()
