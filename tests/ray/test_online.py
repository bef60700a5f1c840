"""`prismrec online` as a user runs it: files arrive, the run is killed and stopped, versions appear."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from prismrec.config import load
from prismrec.data.world import write_world
from prismrec.train.periods import PeriodFiles
from tests.helpers.streams import begin_stream, deliver, keys_trained
from tests.ray import commands

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPE = """
name = "flow"
seed = 3
out = "{here}/runs"
tasks = [{{ name = "like", label = "like" }}]
[data]
path = "{here}/stream"
order = "time"
global_batch_size = 64
lanes = 4
[features]
sparse = ["user_id", "item_id", "category"]
time = "time"
[online]
window = 43200
poll_s = 0.2
publish_every = 2
deltas = true
[embedding]
dim = 4
track_touched = true
[model]
name = "dcnv2"
hidden = [8]
[train]
precision = "fp32"
log_every = 5
[checkpoint]
every_steps = 3
[tracking]
uri = "sqlite:///{here}/mlflow.db"
"""


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[pa.Table]:
    """The rows of six days, with a number in the column `key`."""
    directory = tmp_path_factory.mktemp("world") / "data"
    write_world(directory, 6_000, 6, 1)
    table = pa.concat_tables(pq.read_table(each) for each in sorted(directory.glob("*.parquet")))
    table = table.append_column("key", pa.array(range(table.num_rows)))
    parts = [table.filter(pc.equal(table["day"], day)) for day in range(6)]
    schema = json.loads((directory / "schema.json").read_text())
    schema["columns"]["key"] = {"kind": "other"}
    (directory / "schema.json").write_text(json.dumps(schema))
    return [part.replace_schema_metadata({"place": str(directory)}) for part in parts]


class Flow:
    """A stream, a recipe and the command over it.

    Args:
        here: folder of everything.
        days: rows to deliver.
    """

    def __init__(self, here: Path, days: Sequence[pa.Table]) -> None:
        self.here, self.days = here, days
        self.stream = begin_stream(
            here / "stream", Path(days[0].schema.metadata[b"place"].decode())
        )
        self.recipe = here / "flow.toml"
        self.recipe.write_text(RECIPE.format(here=here))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [commands.PROGRAM, "online", str(self.recipe), "--json", *arguments],
            cwd=self.here,
            env=commands.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def deliver(self, day: int) -> None:
        deliver(self.stream, f"day-{day}", self.days[day])

    def run(self) -> Path:
        commands.await_(lambda: bool(list(self.here.glob("runs/flow-*"))), "a run directory")
        (found,) = self.here.glob("runs/flow-*")
        return found

    def windows(self) -> int:
        return sum(each["kind"] == "window" for each in PeriodFiles(self.run()).read_slices())


def test_killed_stopped_and_resumed_every_row_is_trained_on_once(
    tmp_path: Path, days: list[pa.Table]
) -> None:
    flow = Flow(tmp_path, days)
    flow.deliver(0)
    flow.deliver(1)
    process = flow.start("--no-ray")
    commands.await_(lambda: flow.windows() >= 3, "third window")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=commands.DEADLINE_S)

    flow.deliver(2)
    flow.deliver(3)
    process = flow.start("--no-ray", "--resume", "--workers", "2")
    commands.await_(lambda: flow.windows() >= 6, "sixth window")
    process.send_signal(signal.SIGTERM)
    code, out, err = commands.finish(process)
    assert code == 128 + signal.SIGTERM, err
    assert out == ""
    assert "stopped by SIGTERM; saved in" in err.splitlines()[-1]
    assert "versions registered so far stay" in err.splitlines()[-1]

    flow.deliver(4)
    flow.deliver(5)
    process = flow.start("--no-ray", "--resume", "online.idle_s=1")
    code, out, err = commands.finish(process)
    assert code == 0, err
    document = json.loads(out)
    assert (document["windows"], document["rows"], document["late_files"]) == (12, 6000, 0)
    recipe = load(flow.recipe)
    keys = keys_trained(flow.run(), max(flow.run().glob("checkpoints/step-*")), recipe)
    assert sorted(sum(keys, [])) == list(range(6000))
    in_time = [int(line["start"]) for line in PeriodFiles(flow.run()).read_slices()]
    assert in_time == sorted(in_time)
    _versions_are_published(flow, document)


def _versions_are_published(flow: Flow, document: dict[str, Any]) -> None:
    """Every second window a version, judged on the window after it, with what it changed."""
    assert [each["period"] for each in document["periods"]] == [2, 4, 6, 8, 10]
    client = MlflowClient(f"sqlite:///{flow.here}/mlflow.db")
    versions = client.search_model_versions("name='flow'")
    assert len(versions) == 5
    assert {each["model"] for each in document["periods"]} == {
        f"models:/flow/{number}" for number in range(1, 6)
    }
    champion = client.get_model_version_by_alias("flow", "champion")
    last = [each for each in document["periods"] if each["is_champion"]][-1]
    assert last["model"] == f"models:/flow/{champion.version}"
    for each in document["periods"][1:]:
        gain = each["metrics"]["like/auc"] - each["champion_metrics"]["like/auc"]
        assert each["is_champion"] == (gain >= 0)
        assert 0 < each["delta"]["user_id/set0"]
    directories = sorted(flow.run().glob("periods/*"))
    assert [(each / "checkpoint").exists() for each in directories] == [False] * 5
    assert (flow.run() / "windows.png").stat().st_size > 0


def test_under_ray_a_killed_worker_goes_on(tmp_path: Path, days: list[pa.Table]) -> None:
    flow = Flow(tmp_path, days)
    for day in range(4):
        flow.deliver(day)
    process = flow.start("--workers", "2", "online.publish_every=0")
    commands.await_(lambda: flow.windows() >= 3, "third window")
    commands.ray_workers(process)[-1].send_signal(signal.SIGKILL)
    flow.deliver(4)
    commands.await_(lambda: flow.windows() >= 9, "ninth window")
    process.send_signal(signal.SIGTERM)
    code, _, err = commands.finish(process)
    assert code == 128 + signal.SIGTERM, err
    process = flow.start("--no-ray", "--resume", "online={window = 43200, idle_s = 1.0}")
    code, out, err = commands.finish(process)
    assert code == 0, err
    assert json.loads(out)["rows"] == 5000
    keys = keys_trained(flow.run(), max(flow.run().glob("checkpoints/step-*")), load(flow.recipe))
    assert sorted(sum(keys, [])) == list(range(5000))
