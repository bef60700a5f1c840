"""The recipe of docs/embeddings.md makes the tables that the page says."""

from __future__ import annotations

import re
import tomllib

from prismrec.config import from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.embeddings.collection import physical_tables
from prismrec.models import fields_of, spec_of
from tests.helpers.source_tree import ROOT

PAGE = (ROOT / "docs/embeddings.md").read_text()
SCHEMA = DataSchema(
    name="shop",
    columns={
        "user_id": Column(kind="id", num_ids=100),
        "city": Column(kind="id", num_ids=9),
        "item_id": Column(kind="id", num_ids=50),
        "viewed": Column(kind="ids", num_ids=50),
        "click": Column(kind="label"),
    },
)


def test_the_page_has_the_tables_that_its_recipe_makes() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    recipe = from_dict(
        {
            "name": "page",
            "data": {"path": "nowhere"},
            "model": {"name": "dcnv2"},
            "tasks": [{"name": "click", "label": "click"}],
            **tomllib.loads(block),
        }
    )
    spec = spec_of(recipe, SCHEMA)
    made = {}
    for physical in physical_tables(spec):
        ends = {name: stop - start for name, (start, stop) in physical.slices.items()}
        columns = ", ".join(f"`{name}` {width}" for name, width in ends.items())
        features = ", ".join(f"`{feature}`" for feature in physical.features)
        made[physical.name.removeprefix("t_")] = (features, columns)
    rows = re.findall(r"^\| `(\w+__\w+)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert {name: (features, columns) for name, features, columns in rows} == made
    fields = fields_of(recipe, spec)
    assert fields.set_fields == (4, 4, 2, 1, 4)
    assert fields.set_dims == (64, 16, 32, 16, 32)
