"""`prismrec plan`: what it prints, as tables and as JSON, and how it ends where tables do not fit."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from prismrec.data.schema import Column, DataSchema
from prismrec.data.world import write_world
from tests.helpers.command import run
from tests.helpers.source_tree import ROOT

Captured = pytest.CaptureFixture[str]
GIB = 2**30

RECIPE = """
name = "planned"
[data]
path = "rows"
global_batch_size = 64
lanes = 8
[features]
sparse = ["user", "item", "tag"]
[embedding]
dim = 16
num_sets = 2
[model]
name = "dcnv2"
[[tasks]]
name = "click"
label = "click"
[workers]
count = 2
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe and a schema, and no rows."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "rows").mkdir()
    columns = {name: Column(kind="id", num_ids=rows) for name, rows in _ROWS.items()}
    columns["click"] = Column(kind="label")
    DataSchema(name="small", columns=columns).write(tmp_path / "rows")


_ROWS = {"user": 10**6 - 1, "item": 10**5 - 1, "tag": 9}


def document(capsys: Captured, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run("plan", "recipe.toml", "--json", *arguments) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_document_adds_up(capsys: Captured) -> None:
    found = document(
        capsys, "--world-size", "16", "--local-size", "8", "--device", "cuda", "--hbm", "1GiB"
    )
    assert found["fits"]
    assert (found["shortage"], found["remedies"], found["error"]) == (None, [], "")
    assert found["machines"] == {
        "world_size": 16,
        "local_world_size": 8,
        "device": "cuda",
        "device_memory": GIB,
        "host_memory": GIB,
        "reserved": 0.15,
        "device_room": int(0.85 * GIB),
        "host_room": int(0.85 * GIB),
        "batch_size": 4,
        "intra_gb_per_s": 644.245,
        "inter_gb_per_s": 13.422,
    }
    lines = {line["table"]: line for line in found["tables"]}
    assert [lines[name]["rows"] for name in _ROWS] == [10**6, 10**5, 10]
    for line in lines.values():
        copies = 16 if line["kind"] == "data_parallel" else 1
        assert line["weight_bytes"] == line["state_bytes"] == line["rows"] * 32 * 4 * copies
        assert line["why"]
    assert [rank["rank"] for rank in found["ranks"]] == list(range(16))
    times = [rank["milliseconds"] for rank in found["ranks"]]
    assert found["milliseconds"] == max(times) == times[found["worst"]["busiest"]]
    device = [rank["device_bytes"] for rank in found["ranks"]]
    whole = sum(line["weight_bytes"] + line["state_bytes"] for line in lines.values())
    gradients = sum(
        line["weight_bytes"] for line in lines.values() if line["kind"] == "data_parallel"
    )
    assert (
        whole <= sum(device) <= whole + gradients + sum(x["buffer_bytes"] for x in lines.values())
    )


def test_options_reach_the_plan(capsys: Captured) -> None:
    found = document(
        capsys,
        *("--world-size", "4", "--local-size", "2", "--device", "cuda", "--hbm", "2GB"),
        *("--host-memory", "8GB", "--intra", "300", "--inter", "25", "--batch-size", "7"),
        *("embedding.reserved_memory=0.5", "embedding.sharding=row_wise"),
    )
    machines = found["machines"]
    assert (machines["device_memory"], machines["host_memory"]) == (2 * 10**9, 4 * 10**9)
    assert (machines["device_room"], machines["batch_size"]) == (10**9, 7)
    assert (machines["intra_gb_per_s"], machines["inter_gb_per_s"]) == (300, 25)
    assert {line["kind"] for line in found["tables"]} == {"row_wise"}


def test_a_faster_network_shortens_the_step(capsys: Captured) -> None:
    common = ("--world-size", "16", "--local-size", "8", "--device", "cuda")
    fixed = "embedding.sharding=table_wise"
    slow = document(capsys, *common, fixed, "--inter", "1")["milliseconds"]
    fast = document(capsys, *common, fixed, "--inter", "100")["milliseconds"]
    assert slow > 10 * fast


def test_without_options_it_is_the_recipes_own_workers(capsys: Captured) -> None:
    found = document(capsys, "train.device=cpu", "--host-memory", "4GiB")
    machines = found["machines"]
    assert (machines["world_size"], machines["local_world_size"]) == (2, 2)
    assert (machines["device"], machines["device_memory"]) == ("cpu", 0)
    assert (machines["host_memory"], machines["batch_size"]) == (2 * GIB, 32)
    assert document(capsys)["machines"]["device"] == "cuda", "auto plans for CUDA"


def test_copies_of_the_tables_are_planned_on_their_ranks(capsys: Captured) -> None:
    found = document(
        capsys,
        *("--world-size", "8", "--local-size", "4", "--device", "cuda"),
        *("embedding.ranks_per_copy=2", "workers.count=4"),
    )
    assert (found["machines"]["world_size"], len(found["ranks"])) == (2, 2)
    assert found["copies"] == 4


def test_chosen_layouts_come_with_their_reasons(capsys: Captured) -> None:
    found = document(capsys, "embedding.layout=auto", "embedding.sets=[]")
    assert found["layouts"]["user"]["layout"] == "packed"
    assert "one lookup" in found["layouts"]["user"]["why"]
    assert [line["layout"] for line in found["tables"]] == ["packed"] * 3


def test_what_does_not_fit_is_told_in_both_forms(capsys: Captured) -> None:
    machines = (
        "--world-size",
        "4",
        "--device",
        "cuda",
        "--hbm",
        "60MiB",
        "--host-memory",
        "400MiB",
    )
    found = document(capsys, *machines, code=2)
    assert not found["fits"]
    assert found["shortage"]["memory"] == "device"
    assert found["shortage"]["table"] == "user"
    assert [each["change"] for each in found["remedies"]] == [
        "tighter reservation",
        "UVM caching",
        "column split",
        "fp16",
        "int8",
    ]
    assert found["error"].startswith("the tables (268.6 MiB with optimizer state")

    assert run("plan", "recipe.toml", *machines) == 2
    printed = capsys.readouterr()
    for each in found["remedies"]:
        verdict = "fits" if each["fits"] else "no" if each["over_bytes"] is None else "still lacks"
        assert f"\n  {each['change']}: {verdict}" in printed.out
    assert found["error"] in printed.err


def test_a_table_that_no_rank_can_hold_says_so(capsys: Captured) -> None:
    assert run("plan", "recipe.toml", "train.device=cpu", "embedding.sharding=grid") == 0
    words = (
        "--world-size",
        "6",
        "--local-size",
        "4",
        "--device",
        "cuda",
        "embedding.sharding=grid",
    )
    assert run("plan", "recipe.toml", *words) == 2
    assert "needs the same number of ranks on every machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cpu", "--hbm", "80GiB"), "--hbm: CPU ranks have no device memory"),
        (("--local-size", "4"), "--local-size: 4 ranks of a machine are more than all 2"),
        (("--hbm", "lots"), "--hbm: 'lots' is no size"),
        (("--device", "tpu"), "train.device: must be one of 'auto', 'cpu' or 'cuda', got 'tpu'"),
        (("data.path=nowhere",), "nowhere: no schema.json"),
    ],
)
def test_mistakes_cost_a_sentence(capsys: Captured, options: tuple[str, ...], message: str) -> None:
    assert run("plan", "recipe.toml", *options) == 2
    assert message in capsys.readouterr().err


def test_like_ranks_share_a_line(capsys: Captured) -> None:
    assert run("plan", "recipe.toml", "--world-size", "64", "embedding.sharding=row_wise") == 0
    printed = capsys.readouterr().out
    assert re.search(r"│ 0-6[0-3] ", printed)
    assert "busiest, fullest" in printed
    assert re.search(r"│ user +│ row_wise +│ all ", printed)


def test_many_unlike_ranks_are_shown_by_the_worst_and_the_middle(
    capsys: Captured, tmp_path: Path
) -> None:
    names = [f"f{index}" for index in range(40)]
    columns = {
        name: Column(kind="id", num_ids=1000 * (index + 1)) for index, name in enumerate(names)
    }
    columns["click"] = Column(kind="label")
    DataSchema(name="many", columns=columns).write(tmp_path / "rows")
    features = f"features.sparse={json.dumps(names)}"
    machines = ("--world-size", "40", "embedding.sharding=table_wise", features)
    assert run("plan", "recipe.toml", *machines) == 0
    printed = capsys.readouterr().out
    below = printed[printed.index("40 ranks, each with") :]
    lines = [line for line in below.splitlines() if line.startswith("│")]
    assert 3 <= len(lines) <= 6
    for mark in ("busiest", "fullest", "in the middle by time"):
        assert sum(mark in line for line in lines) == 1


def test_the_page_shows_what_the_commands_print(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/planner.md").read_text()
    fits, short = re.findall(r"^prismrec (plan .*)$", page, re.MULTILINE)
    shown, remedies, error = re.findall(r"^```text\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "jobs/recipes").mkdir(parents=True)
    shutil.copy(ROOT / "jobs/recipes/demo.toml", tmp_path / "jobs/recipes")
    write_world(tmp_path / "out/planned", rows=20_000, days=7, seed=1, progress=lambda *_: None)
    assert run(*shlex.split(fits)) == 0
    assert _stripped(capsys.readouterr().out) == shown
    assert run(*shlex.split(short)) == 2
    printed = capsys.readouterr()
    assert _stripped(printed.out).endswith(remedies)
    assert _stripped(printed.err) == error


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()
