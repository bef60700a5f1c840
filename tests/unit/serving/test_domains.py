"""A model that tells domains apart is served with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prismrec.config import UserError, from_dict
from prismrec.data.schema import Column
from prismrec.models import spec_of
from prismrec.serving.bundle import BundleSource, read_manifest, write_bundle
from prismrec.serving.inference import InferenceModel, build_head
from tests.helpers.domain_model import SECTION
from tests.unit.serving.world import SCHEMA, random_raw, recipe

DOMAINS = {**SCHEMA.columns, "tab": Column(kind="id", num_ids=3)}
ROWS = 12


def served(folder: Path, **features: Any) -> InferenceModel:
    schema = SCHEMA.model_copy(update={"columns": DOMAINS})
    tree = recipe(model=SECTION, features=FEATURES | features)
    spec = spec_of(tree, schema)
    torch.manual_seed(0)
    tables = {
        (table.name, each.name): torch.randn(table.rows, each.dim)
        for table in spec.tables
        for each in spec.sets_of(table)
    }
    head = build_head(tree, spec)
    source = BundleSource(tree, schema, spec, lambda t, s: tables[t, s], head)
    write_bundle(folder / "copy", source, "fp32")
    return InferenceModel.load(folder / "copy")


FEATURES: dict[str, Any] = {"sparse": ["user_id", "item"], "domain": "tab"}


def test_every_row_goes_through_the_head_of_its_domain(tmp_path: Path) -> None:
    model = served(tmp_path)
    assert list(model.columns) == ["user_id", "item", "tab"]
    assert "tab" in read_manifest(tmp_path / "copy").data_schema.columns
    raw = random_raw(ROWS)
    tabs = [row % 3 for row in range(ROWS)]
    mixed = model.predict_logits({**raw, "tab": tabs})
    alone = torch.stack([model.predict_logits({**raw, "tab": [s] * ROWS}) for s in range(3)])
    assert torch.equal(mixed, torch.stack([alone[s][row] for row, s in enumerate(tabs)]))
    assert (alone[0] - alone[1]).abs().min() > 1e-3
    towers = model.head.towers
    assert towers.of_domain.heads.tolist() == [0, 1, 2]


def test_a_request_without_a_known_domain_is_refused(tmp_path: Path) -> None:
    model = served(tmp_path)
    with pytest.raises(UserError, match="column 'tab' is missing from the request"):
        model.predict_logits(random_raw(ROWS))
    with pytest.raises(
        UserError, match=r"row 2 of the request: column 'tab' names domain 3, .* 0 to 2"
    ):
        model.predict_logits({**random_raw(4), "tab": [0, 1, 3, 0]})
    with pytest.raises(UserError, match=r"row 1 of the request: column 'tab' names no domain"):
        model.predict_logits({**random_raw(4), "tab": [0, None, 3, 0]})


def test_unknown_domains_are_served_as_they_were_trained(tmp_path: Path) -> None:
    model = served(tmp_path, unknown_domain=1)
    raw = random_raw(4)
    odd = model.predict_logits({**raw, "tab": [2, None, 7, -1]})
    assert torch.equal(odd, model.predict_logits({**raw, "tab": [2, 1, 1, 1]}))


def test_the_recipe_of_a_copy_is_the_recipe(tmp_path: Path) -> None:
    stored = served(tmp_path, unknown_domain=1).manifest.recipe
    assert from_dict(stored).features.unknown_domain == 1
