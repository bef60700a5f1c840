"""What a run prints, and a model of the user's own that the workers find."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.ray import commands

MODEL = """
import torch
from torch import nn


class Sum(nn.Module):
    def __init__(self, fields, scale):
        super().__init__()
        width = fields.num_sparse * sum(fields.set_dims) + fields.num_dense
        self.scale, self.out = scale, nn.Linear(width, fields.num_tasks)

    def forward(self, inputs):
        parts = [each.flatten(1) for each in inputs.sets] + [inputs.dense]
        return self.scale * self.out(torch.cat(parts, dim=1)), {}


def build(fields, options):
    return Sum(fields, options["scale"])
"""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
OURS = re.compile(r"(starting workers|training) .*|step \d+ (valid|test): .*")


def read_all(descriptor: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(descriptor, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


@pytest.mark.ray
def test_a_run_of_an_own_model_is_quiet_on_a_terminal(tmp_path: Path, data: Path) -> None:
    at = commands.home(tmp_path, data)
    (tmp_path / "my_team.py").write_text(MODEL)
    ours, theirs = pty.openpty()
    own = ["model.name=my_team:build", "model.options={scale = 0.5}"]
    text = at.recipe.read_text().replace('name = "dcnv2"\nhidden = [8]\n', "")
    at.recipe.write_text(text)
    process = subprocess.Popen(
        [commands.PROGRAM, "train", str(at.recipe), *own, "train.steps=20", "--json"],
        cwd=at.directory,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = CONTROL.sub("", read_all(ours))
    out, _ = process.communicate(timeout=commands.DEADLINE_S)
    os.close(ours)
    assert process.returncode == 0, shown
    assert json.loads(out)["version"] == 1
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert [line for line in lines if not OURS.fullmatch(line)] == []
    assert any(line.startswith("training") and "20/20" in line for line in lines)
    assert sum(line.startswith("step 20 test: like auc ") for line in lines) == 1


@pytest.mark.ray
def test_a_corrupt_file_that_one_rank_meets_ends_the_run_at_once(tmp_path: Path) -> None:
    data = commands.world(tmp_path)
    (path,) = data.glob("*.parquet")
    groups = pq.ParquetFile(path).metadata
    last = max(g for g in range(groups.num_row_groups) if day(groups, g) <= 3)
    column = groups.row_group(last).column(names(groups).index("item_id"))
    start = column.dictionary_page_offset or column.data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * column.total_compressed_size)
    at = commands.home(tmp_path, data)
    code, out, err = commands.train(at, "--json")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {path.name}: row group {last}: cannot be decoded (")
    assert len(list(at.run().glob("error-*.txt"))) == 1
    assert not list(at.run().glob("checkpoints/*.tmp-*"))


def names(metadata: pq.FileMetaData) -> list[str]:
    return [metadata.schema.column(c).path for c in range(metadata.num_columns)]


def day(metadata: pq.FileMetaData, group: int) -> int:
    return int(metadata.row_group(group).column(names(metadata).index("day")).statistics.min)
