"""What may change when a run is resumed, and that it then goes on as it would have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.jobs.resume import check_resumable
from prismrec.jobs.run import resumable
from prismrec.train.run_files import RunFiles
from tests.helpers.runs import Start, alone, make_recipe, write_rows

STEPS, STOP = 12, 5
PLACED = (
    "train.device=cuda",
    "calibration.method=platt",
    "embedding.layout=separate",
    "embedding.sharding=row_wise",
    "embedding.kernel=fused_uvm_caching",
    "embedding.cache_load_factor=0.5",
    "embedding.reserved_memory=0.3",
    "embedding.communication={forward='bf16', backward='fp16'}",
    "embedding.tables.item={layout='packed', sharding='table_wise', kernel='fused'}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("resume") / "rows")


def test_placement_length_and_workers_may_change(tmp_path: Path) -> None:
    begun = make_recipe(tmp_path, "embedding.tables.user.layout=separate")
    others = ("train.steps=50", "workers.count=2", "checkpoint.every_steps=3", "out=elsewhere")
    check_resumable(begun, make_recipe(tmp_path, *PLACED, *others), tmp_path)
    check_resumable(make_recipe(tmp_path, *PLACED), begun, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (("data.global_batch_size=32",), "data.global_batch_size differs from that of"),
        (
            ("seed=6", "model.hidden=[8]", *PLACED),
            "seed and model.hidden differ from those of",
        ),
        (
            (
                "embedding.sets=[{name='wide', dim=16}, {name='narrow', dim=4, init_std=0.1}]",
                "embedding.optimizer.learning_rate=0.1",
                "embedding.tables.item={layout='separate', unknown_rows=2}",
            ),
            "embedding.sets[0].dim, embedding.sets[0].init_std, "
            "embedding.optimizer.learning_rate and embedding.tables.item.unknown_rows differ from",
        ),
        (
            ("embedding.sets=[{name='wide', dim=8, init_std=0.1}]",),
            "embedding.sets differs from that of",
        ),
        (("model={name='fm'}", "features.dense=['x']"), "features.dense and model differ from"),
        (("embedding.data_type=fp16",), "embedding.data_type differs from that of"),
    ],
)
def test_other_keys_may_not_and_are_named(
    tmp_path: Path, overrides: tuple[str, ...], keys: str
) -> None:
    message = rf"^--resume: {re.escape(keys)}.* the run in {tmp_path}; resume with the same recipe"
    with pytest.raises(UserError, match=message):
        check_resumable(make_recipe(tmp_path), make_recipe(tmp_path, *overrides), tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_run_goes_on_in_another_layout(data: Path, tmp_path: Path, optimizer: str) -> None:
    rule = f"embedding.optimizer={{name='{optimizer}', learning_rate=0.05}}"
    whole = make_recipe(data, rule, f"train.steps={STEPS}")
    begun = make_recipe(data, rule, f"train.steps={STOP}")
    now = make_recipe(data, rule, f"train.steps={STEPS}", "embedding.layout=separate")

    files = RunFiles(tmp_path / "run")
    files.directory.mkdir()
    files.write_recipe(begun)
    undisturbed, first = alone([Start(whole, tmp_path / "whole"), Start(begun, files.directory)])
    recipe = resumable(now, files)
    assert files.read_recipe() == recipe == now
    (second,) = alone([Start(recipe, files.directory, "second")])

    assert list(second.log["train/loss"]) == list(range(STOP + 1, STEPS + 1))
    assert [*first.losses, *second.losses] == pytest.approx(undisturbed.losses, rel=1e-5)
    plan = json.loads(files.plan.read_text())
    assert {line["layout"] for line in plan} == {"separate"}
