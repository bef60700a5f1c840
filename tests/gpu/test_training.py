"""Whole models on the device against the CPU: losses, the pipeline, bf16, checkpoints.

Bounds: losses in fp32 within 2e-4 of the CPU's over ten steps and within 2e-3 over two hundred, where
rounding has had time to grow; in bf16 within 3e-2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prismrec.config import Recipe, load
from prismrec.data.batch import Batch
from prismrec.data.source import open_data
from prismrec.data.world import write_world
from prismrec.models import spec_of
from prismrec.train.feed import Splits
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import process_group
from prismrec.train.sharding import ShardedModel, shard_model
from tests.gpu.device import DEVICE, IS_CUDA
from tests.helpers.runs import Start, alone, make_recipe, write_rows
from tests.recipes.codes import drawn_codes
from tests.recipes.vectors import with_drawn_vectors

ROOT = Path(__file__).resolve().parents[2]
WORLD = ROOT / "jobs" / "recipes" / "world"
NAMES = sorted(path.stem for path in WORLD.glob("*.toml") if path.stem != "base")
if (
    not IS_CUDA
):  # each is tried on the CPU by tests/recipes; here it is enough to see that the test runs
    NAMES = ["me_dcnv2", "tim"]
LONG = 200 if IS_CUDA else 20
SHORT = (
    "data.global_batch_size=128",
    "data.shuffle_rows=256",
    "train.precision=fp32",
    "train.log_every=1",
    "evaluate.bootstrap=0",
    "checkpoint.keep_best=false",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the small recipe and a small world."""
    directory = tmp_path_factory.mktemp("device")
    write_rows(directory / "rows")
    write_world(directory / "world", rows=4000, days=7, seed=1)
    return directory


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Products of float32 are taken in float32, as on the CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def losses(recipe: Recipe, directory: Path, device: str, attempt: str = "first") -> list[float]:
    """The loss of every step of one start on a device."""
    section = recipe.train.model_copy(update={"device": device})
    start = Start(recipe.model_copy(update={"train": section}), directory, attempt)
    return alone([start])[0].losses


def of_world(name: str, place: Path, steps: int) -> Recipe:
    """A recipe of the world without dropout, which no two devices draw alike."""
    path, data = WORLD / f"{name}.toml", place / "world"
    length = [f"{key}={steps}" for key in ("train.steps", "train.epochs", "evaluate.every_steps")]
    overrides = [f"data.path='{data}'", *length, *SHORT, *drawn_codes(path, data)]
    if hasattr(load(path).model, "dropout"):
        overrides.append("model.dropout=0.0")
    return with_drawn_vectors(load(path, overrides), data)


@pytest.mark.parametrize("name", NAMES)
def test_every_system_takes_the_same_steps_as_on_the_cpu(
    name: str, place: Path, tmp_path: Path
) -> None:
    recipe = of_world(name, place, 10)
    expected = losses(recipe, tmp_path / "cpu", "cpu")
    assert len(expected) == 10
    assert losses(recipe, tmp_path / "device", DEVICE) == pytest.approx(expected, rel=2e-4)


@pytest.mark.timeout(600)
def test_a_long_run_stays_with_that_of_the_cpu(place: Path, tmp_path: Path) -> None:
    recipe = of_world("me_dcnv2", place, LONG)
    expected = losses(recipe, tmp_path / "cpu", "cpu")
    assert len(expected) == LONG
    assert sum(expected[-5:]) < sum(expected[:5]), "it learns"
    assert losses(recipe, tmp_path / "device", DEVICE) == pytest.approx(expected, rel=2e-3)


def steps(place: Path, count: int, *, is_bf16: bool, is_pipelined: bool) -> list[float]:
    """Losses of some steps, through the loop's pipeline or without any."""
    recipe = make_recipe(place / "rows", f"train.device={DEVICE}")
    source = open_data(recipe.data.path)
    spec = spec_of(recipe, source.schema)
    with process_group(DEVICE) as ranks:
        sharded = shard_model(recipe, spec, ranks, is_bf16=is_bf16, total_steps=count)
        batches = (batch for batch, _ in Splits(recipe, source, ranks).train.epoch())
        if not is_pipelined:
            return [plain_step(sharded, next(batches)) for _ in range(count)]
        pipeline = Pipeline(sharded)
        found = [float(pipeline.step(batches).loss) for _ in range(count)]
        overlap = pipeline._pipeline
        assert isinstance(overlap, TrainPipelineSparseDist)
        if IS_CUDA:
            streams = [overlap._memcpy_stream, overlap._data_dist_stream]
            assert None not in streams
            assert torch.cuda.default_stream() not in streams
            assert all(one != other for one, other in pairwise(streams))
        pipeline.close()
        return found


def plain_step(sharded: ShardedModel, batch: Batch) -> float:
    """Copy, forward, backward and update, one after the other."""
    sharded.optimizers.zero_grad()
    loss, _ = sharded.dmp(batch.to(sharded.ranks.device))
    loss.backward()
    sharded.optimizers.step()
    return float(loss.detach())


def test_overlapping_streams_change_no_loss(place: Path) -> None:
    plain = steps(place, 12, is_bf16=False, is_pipelined=False)
    assert steps(place, 12, is_bf16=False, is_pipelined=True) == pytest.approx(plain, rel=1e-5)


def test_bf16_stays_near_fp32(place: Path) -> None:
    exact = steps(place, 12, is_bf16=False, is_pipelined=True)
    rough = steps(place, 12, is_bf16=True, is_pipelined=True)
    assert rough == pytest.approx(exact, rel=3e-2)
    assert rough != exact, "the model did compute in bf16"


@pytest.mark.parametrize("layout", ["packed", "separate"])
@pytest.mark.parametrize(("first", "second"), [("cpu", DEVICE), (DEVICE, "cpu")])
def test_a_checkpoint_goes_from_one_device_to_the_other(
    first: str, second: str, layout: str, place: Path, tmp_path: Path
) -> None:
    def recipe(count: int) -> Recipe:
        return make_recipe(place / "rows", f"embedding.layout={layout}", f"train.steps={count}")

    whole = losses(recipe(20), tmp_path / "whole", "cpu")
    begun = losses(recipe(10), tmp_path / "run", first)
    resumed = losses(recipe(20), tmp_path / "run", second, attempt="second")
    assert begun == pytest.approx(whole[:10], rel=2e-4)
    assert resumed == pytest.approx(whole[10:], rel=2e-4)
