from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from prismrec.config import Recipe, dump, from_dict
from prismrec.config.document import recipe_page, to_toml
from prismrec.config.section import sections_in

ROOT = Path(__file__).resolve().parents[3]
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"path": 'C:\\data "é" 😀'},
    "features": {"sparse": ["user", {"name": "last", "table": "user", "pooling": "mean"}]},
    "model": {"name": "dcnv2", "hidden": [8, 4]},
    "tasks": [{"name": "click", "label": "is_click"}],
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"embedding": {"sets": [{"name": "a", "dim": 8}, {"name": "b", "dim": 16}]}},
        {"embedding": {"tables": {"user": {"rows": 7}}}},
        {"features": {"sparse": ["the user id"]}, "embedding": {"tables": {"the user id": {}}}},
        {"model": {"name": "team.models:build", "options": {"depth": 2, "deep": {"x": [0.5]}}}},
        {"tracking": {"registry_name": ""}, "data": {"path": "d", "splits": {"test": ["day > 3"]}}},
    ],
)
def test_toml_reads_back_to_the_same_recipe(changes: dict[str, Any]) -> None:
    recipe = from_dict({**SMALL, **changes})
    assert dump(from_dict(tomllib.loads(to_toml(recipe)))) == dump(recipe)


def test_toml_shows_defaults_and_what_is_not_set() -> None:
    lines = to_toml(from_dict(SMALL)).splitlines()
    assert "learning_rate = 0.05" in lines[lines.index("[embedding.optimizer]") :][:3]
    assert "# steps is not set" in lines
    assert "hidden = [8, 4]" in lines
    task = (
        '  { name = "click", label = "is_click", loss = "bce", weight = 1.0, pos_weight = 1.0, '
        "negative_rate = 1.0 },"
    )
    assert lines[lines.index("tasks = [") + 1] == task


def test_page_has_a_row_for_every_key_of_every_section() -> None:
    page = recipe_page()
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")[1:]}
    for name, field in Recipe.model_fields.items():
        if f"`[{name}]`" in sections:
            for key in sections_in(field.annotation)[0].model_fields:
                own, nested = f"| `{key}` |", f"`[{name}.{key}]`"
                assert own in sections[f"`[{name}]`"] or nested in sections
    assert '| `order` | `"shuffle"`, `"file"`, `"time"` | `"shuffle"` |' in sections["`[data]`"]
    assert "| `beta1` | number | `0.9` | >= 0, < 1 |" in sections["`[train.optimizer]`"]
    assert "| `label` | string | required |" in sections["`[[tasks]]`"]
    assert "| `rows` | whole number | not set | >= 1 |" in sections["`[embedding.tables.NAME]`"]
    cross = sections['`[model]` with `name = "dcnv2"`']
    assert "| `hidden` | list: whole number | `[400, 400]` | each >= 1 |" in cross


def test_committed_page_is_the_generated_one() -> None:
    assert (ROOT / "docs/recipes.md").read_text() == recipe_page(), (
        "the schema changed: run `prismrec config --docs > docs/recipes.md`"
    )
