"""A data set that petastorm and Spark wrote, and plain Parquet, imported through petastorm itself.

Takes minutes and a network: petastorm's environment is installed twice, here to write and by Ray to read.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.data.lookup import filtered_tables
from prismrec.data.source import open_data
from prismrec.jobs.from_petastorm import PINS
from tests.helpers.source_tree import ROOT
from tests.ray.commands import PROGRAM, environment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
ROWS = 100


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `petastorm_write.py`, written in petastorm's environment."""
    if shutil.which("java") is None:
        pytest.skip("no java, which Spark needs to write a petastorm data set")
    here = tmp_path_factory.mktemp("petastorm")
    venv.create(here / "env", with_pip=True)
    python = here / "env/bin/python"
    made = subprocess.run(
        [python, "-m", "pip", "install", "-q", *PINS], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"petastorm's environment cannot be installed: {made.stderr[-200:]}")
    command = [python, ROOT / "tests/ray/petastorm_write.py", (here / "data").as_uri(), str(ROWS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return here / "data"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [PROGRAM, "data", "import-petastorm", *map(str, arguments)]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=1500)


def rows_of(out: Path) -> list[dict[str, Any]]:
    source = open_data(out)
    tables = filtered_tables(source, (), list(source.schema.columns), "rows")
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda each: each["row"])


def expected(n: int) -> dict[str, Any]:
    return {
        "row": n,
        "user": None if n % 7 == 0 else n % 50,
        "price": n / 4,
        "click": int(n % 3 == 0),
        "word": f"w{n % 5}",
        "cost": f"{n / 100:.2f}",
        "seen": [n + k for k in range(n % 4)],
        "grid": [float(n + k) for k in range(6)],
    }


def test_every_codec_comes_over(written: Path, tmp_path: Path) -> None:
    refused = run(written, tmp_path / "out")
    assert refused.returncode == 2
    assert "its schema is a Python pickle" in refused.stderr
    assert "say --trust if you would run a program of theirs" in refused.stderr
    assert not list(tmp_path.iterdir())
    done = run(written, tmp_path / "out", "--trust", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["left_out"] == {"picture": "a picture, which is no feature"}
    assert {name: each["kind"] for name, each in document["columns"].items()} == {
        "row": "id", "user": "id", "price": "number", "click": "label", "word": "other", "cost": "other",
        "seen": "ids", "grid": "numbers",
    }  # fmt: skip
    assert document["columns"]["grid"]["shape"] == [2, 3]
    assert rows_of(tmp_path / "out") == [expected(n) for n in range(ROWS)]
    assert not list((tmp_path / "out").glob("_parts*"))


def test_a_schema_says_what_is_taken_and_readers_share_the_rows(
    written: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    columns = {"row": {"kind": "time"}, "seen": {"kind": "ids", "num_ids": 200}}
    schema.write_text(json.dumps({"name": "clicks", "columns": columns}))
    done = run(written, tmp_path / "out", "--trust", "--schema", schema, "--readers", "2")
    assert done.returncode == 0, done.stderr
    wanted = [{name: expected(n)[name] for name in columns} for n in range(ROWS)]
    assert rows_of(tmp_path / "out") == wanted
    assert open_data(tmp_path / "out").schema.columns["row"].kind == "time"


def test_plain_parquet_needs_no_trust(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    table = pa.table(
        {"row": range(50), "bag": [[n, n + 1] for n in range(50)], "x": [n / 2 for n in range(50)]}
    )
    pq.write_table(table, tmp_path / "plain/a.parquet", row_group_size=20)
    done = run(tmp_path / "plain", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert rows_of(tmp_path / "out") == table.to_pylist()
