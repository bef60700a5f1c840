"""Building on Ray gives the bytes that building in one process gives, and tells the same mistakes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prismrec.data.building.plan import load_plan
from prismrec.jobs.data_build import Where, run_build
from tests.helpers import build_rows
from tests.ray.commands import PROGRAM, await_, environment
from tests.unit.data_build.test_build import RECIPE, check

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def digests(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def with_recipe(here: Path, plan: Path) -> Path:
    """The plan with a recipe that reads `here/out`."""
    recipe = here / "recipe.toml"
    recipe.write_text(RECIPE.format(out=here / "out"))
    plan.write_text(f'recipe = "{recipe}"\n' + plan.read_text())
    return plan


def command(plan: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "data", "build", str(plan), "--out", str(out), *more],
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_ray_writes_what_one_process_writes(tmp_path: Path) -> None:
    table = build_rows.log()
    plan = with_recipe(tmp_path, build_rows.write(tmp_path, table))
    done = command(plan, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check(tmp_path / "out", table)
    on_ray = digests(tmp_path / "out")
    told: list[tuple[str, int, int]] = []
    alone = run_build(
        load_plan(plan),
        tmp_path / "out",
        Where(use_ray=False),
        lambda *x: told.append(x),
        overwrite=True,
    )
    assert digests(tmp_path / "out") == on_ray
    assert document | {"seconds": 0} == alone | {"seconds": 0}
    assert ("Sorting", 12, 12) in told
    assert "_fitted/numbers.json" in on_ray


@pytest.mark.slow
def test_a_shuffled_join_gives_what_a_broadcast_one_gives(tmp_path: Path) -> None:
    table = build_rows.log()
    plan = build_rows.write(tmp_path, table)
    assert command(plan, tmp_path / "small", "--no-ray").returncode == 0
    plan.write_text(
        plan.read_text().replace('prefix = "item_"', 'prefix = "item_"\nhow = "shuffle"')
    )
    done = command(plan, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "shuffle (the plan says so)" in " ".join(done.stdout.split())
    check(tmp_path / "out", table)
    assert digests(tmp_path / "out") == digests(tmp_path / "small")
    twice = build_rows.items()
    pq.write_table(twice, tmp_path / "items" / "again.parquet")
    wrong = command(plan, tmp_path / "wrong")
    assert wrong.returncode == 2
    assert "items has more than one row for some value of id; keep one of them" in wrong.stderr
    assert not list(tmp_path.glob("wrong*"))


@pytest.mark.slow
def test_a_mistake_in_a_task_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log())
    path = tmp_path / "log/b.parquet"
    content = bytearray(path.read_bytes())
    content[100:3000] = os.urandom(2900)
    path.write_bytes(content)
    for how in ("broadcast", "shuffle"):
        text = plan.read_text().replace('prefix = "item_"', f'prefix = "item_"\nhow = "{how}"')
        (tmp_path / "how.toml").write_text(text)
        done = command(tmp_path / "how.toml", tmp_path / "out")
        assert done.returncode == 2
        assert done.stderr.strip().startswith("error: b.parquet: row group 0: cannot be decoded")
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_build_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log(200_000))
    process = subprocess.Popen(
        [PROGRAM, "data", "build", str(plan), "--out", str(tmp_path / "out")],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    await_(lambda: bool(list(tmp_path.glob("out.tmp-*"))), "directory in the making")
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("out*"))
