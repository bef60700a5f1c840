"""Every model of the zoo is a program of torch's own, but for those that read sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prismrec.config import UserError, load
from prismrec.data.source import DataSource, open_data
from prismrec.data.values import one_array
from prismrec.data.world import write_world
from prismrec.jobs.evaluate import split_tables
from prismrec.jobs.systems import SYSTEMS
from prismrec.models import spec_of
from prismrec.serving.bundle import BundleSource, write_bundle
from prismrec.serving.inference import InferenceModel, build_head
from prismrec.serving.program import FILES, write_program

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "world"
SEQUENCES = {"din", "dare", "tim"}
FILES_NEEDED = {"see", "semantic_ids"}
"""Their recipes read files that other runs make; their dense parts are those of others here."""

NAMES = sorted({system.name for system in SYSTEMS} - FILES_NEEDED)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    path = tmp_path_factory.mktemp("world") / "data"
    write_world(path, 2_000, 6, 1)
    return open_data(str(path))


def untrained(name: str, world: DataSource, path: str, out: Path) -> InferenceModel:
    """The model of a recipe with tables drawn at random."""
    recipe = load(FOLDER / f"{name}.toml", [f"data.path={path}"])
    spec = spec_of(recipe, world.schema)
    rows = {table.name: table.rows for table in spec.tables}
    dims = {each.name: each.dim for each in spec.sets}
    generator = torch.Generator().manual_seed(1)

    def table(name: str, of_set: str) -> torch.Tensor:
        return torch.randn(rows[name], dims[of_set], generator=generator) * 0.1

    head = build_head(recipe, spec).eval()
    source = BundleSource(recipe, world.schema, spec, table, head)
    return InferenceModel.load(write_bundle(out, source, "fp32"))


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_as_programs(name: str, world: DataSource, tmp_path: Path) -> None:
    model = untrained(name, world, str(world.path), tmp_path / "model")
    table = next(split_tables(model.recipe, world, "all", list(model.columns))).slice(0, 70)
    columns = {column: one_array(table.column(column)) for column in model.columns}
    for kind, file in FILES.items():
        if name in SEQUENCES:
            with pytest.raises(UserError, match=r"cannot be a program: it reads sequences"):
                write_program(model, tmp_path / file, kind, columns)
        else:
            assert write_program(model, tmp_path / file, kind, columns) < 1e-5
