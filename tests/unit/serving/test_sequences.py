"""The inference copy of a model with sequences says what the trainer says of the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import torch
from torch import Tensor, nn

from prismrec.config import Recipe, UserError
from prismrec.data.encode.tables import encoders_of
from prismrec.data.reader import Reader
from prismrec.data.source import open_data
from prismrec.models import spec_of
from prismrec.serving.bundle import BundleSource
from prismrec.serving.export import HeldOut, export_model
from prismrec.serving.inference import InferenceModel, build_head
from prismrec.serving.tables import TableType, decode_rows, encode_table
from prismrec.train.evaluate import evaluation_mode, predict_batch
from prismrec.train.process_group import process_group
from prismrec.train.sharding import shard_model
from tests.helpers.histories import ROWS, make_recipe, write_histories

DARE = (
    "embedding.sets=[{name='wide', dim=8}, {name='att', dim=4, features=['item', 'category']}]",
    "model.sequence={kind='dare', attention='att', encoding='both', keep=2}",
)
CASES = {
    "tim": (),
    "din": ("model.sequence={kind='din', hidden=[8], activation='dice'}",),
    "dare": DARE,
    "two rows an id": ("embedding.tables.item={ids={kind='hash', hashes=2}, rows=11}",),
    "one column of the sets": (
        "embedding.sets=[{name='wide', dim=8, features=['user', 'item']}, {name='rest', dim=4}]",
    ),
}
DIFFERENCE: dict[TableType, float] = {"fp32": 2e-6, "fp16": 5e-3, "bf16": 5e-2, "int8": 5e-2}
"""Largest difference of a logit by stored type; the logits are of the order of 1."""
COLUMNS = ("user", "item", "category", "items", "categories", "ago", "x")
SHARED = ("user", "items", "categories", "ago")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_histories(tmp_path_factory.mktemp("served") / "rows")


class Trained:
    """A sharded model with drawn weights, its logits of the test rows, and what is exported of it."""

    def __init__(self, recipe: Recipe) -> None:
        source = open_data(recipe.data.path)
        spec = spec_of(recipe, source.schema)
        generator = torch.Generator().manual_seed(3)
        self.tables: dict[tuple[str, str], Tensor] = {}
        head = build_head(recipe, spec)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        self.head: nn.Module = head.eval()
        with process_group("cpu") as ranks:
            sharded = shard_model(recipe, spec, ranks, is_bf16=False, total_steps=1)
            with torch.no_grad():
                for shard in sharded.shards():
                    drawn = torch.randn(shard.weight.shape, generator=generator) * 0.5
                    shard.weight.copy_(drawn)
                    self.tables[shard.table, shard.set_name] = drawn
            sharded.leaf.ranker.model.load_state_dict(head.state_dict())
            reader = Reader(source, recipe, "test", encoders_of(recipe, source.schema))
            with evaluation_mode(sharded):
                found = [predict_batch(sharded, batch) for batch, _ in reader.epoch()]
        self.logits = self._in_file_order(torch.stack(found), reader.lanes.num_lanes)
        self.source = BundleSource(
            recipe, source.schema, spec, lambda t, s: self.tables[t, s], self.head
        )
        rows = ds.dataset(Path(recipe.data.path) / "2-test.parquet").to_table().combine_chunks()
        self.rows: dict[str, Any] = {name: rows[name].combine_chunks() for name in COLUMNS}

    @staticmethod
    def _in_file_order(logits: Tensor, lanes: int) -> Tensor:
        """Steps (S, B, T) of which each holds some rows of every lane, lane by lane."""
        of_lanes = logits.unflatten(1, (lanes, -1)).transpose(0, 1)
        return of_lanes.flatten(0, 2)[: ROWS["test"]]


@pytest.mark.parametrize("name", CASES)
def test_the_copy_says_what_the_trainer_says(data: Path, tmp_path: Path, name: str) -> None:
    trained = Trained(make_recipe(data, *CASES[name]))
    assert trained.logits.std() > 0.3
    none = torch.zeros_like(trained.logits)
    held_out = HeldOut(trained.rows, trained.logits, none, none + 1)
    report = export_model(tmp_path / "copy", trained.source, held_out)
    assert report["max_difference_to_trainer"] < 5e-6
    model = InferenceModel.load(tmp_path / "copy")
    one_by_one = [
        model.predict_logits({key: column[i : i + 1] for key, column in trained.rows.items()})
        for i in range(6)
    ]
    torch.testing.assert_close(torch.cat(one_by_one), trained.logits[:6], atol=5e-6, rtol=0)
    history = {key: column[5:6] for key, column in trained.rows.items() if key in SHARED}
    own = {key: column[:9] for key, column in trained.rows.items() if key not in SHARED}
    same = {key: column.take([5] * 9) for key, column in trained.rows.items() if key in SHARED}
    torch.testing.assert_close(
        model.predict_logits(own, shared=history),
        model.predict_logits(own | same),
        atol=2e-6,
        rtol=0,
    )
    model.unknown_ids.clear()
    model.predict_logits(trained.rows)
    assert (model.unknown_ids["history/items"] > 0) != (
        name == "two rows an id"
    )  # a hash knows all


@pytest.mark.parametrize("table_type", [each for each in DIFFERENCE if each != "fp32"])
def test_compressed_tables_stay_near(data: Path, tmp_path: Path, table_type: TableType) -> None:
    more = (f"export={{table_type='{table_type}', max_auc_change=1.0, max_logloss_change=1.0}}",)
    trained = Trained(make_recipe(data, *more))
    labels = (torch.arange(trained.logits.numel()) % 2).float().view_as(trained.logits)
    held_out = HeldOut(trained.rows, trained.logits, labels, torch.ones_like(labels))
    export_model(tmp_path / "copy", trained.source, held_out)
    logits = InferenceModel.load(tmp_path / "copy").predict_logits(trained.rows)
    difference = (logits - trained.logits).abs().max()
    assert 0 < difference < DIFFERENCE[table_type]


def test_behaviours_that_are_not_earlier_do_not_matter_to_a_request(
    data: Path, tmp_path: Path
) -> None:
    trained = Trained(make_recipe(data))
    none = torch.zeros_like(trained.logits)
    export_model(
        tmp_path / "copy", trained.source, HeldOut(trained.rows, trained.logits, none, none + 1)
    )
    model = InferenceModel.load(tmp_path / "copy")
    row: dict[str, Any] = {"user": [1], "item": [2], "category": [3], "x": [0.5]}

    def logits(items: list[int], ago: list[float]) -> Tensor:
        return model.predict_logits(
            row | {"items": [items], "categories": [[1] * len(items)], "ago": [ago]}
        )

    clean = logits([4, 5], [300.0, 20.0])
    assert torch.equal(logits([4, 5, 9, 6], [300.0, 20.0, 0.0, -7.0]), clean)
    assert torch.equal(logits([7, 4, 5], [float("nan"), 300.0, 20.0]), clean)
    assert not torch.equal(logits([4, 5, 9], [300.0, 20.0, 1.0]), clean)
    with pytest.raises(
        UserError, match=r"row 0 of the request: features.sequences 'history': column"
    ):
        logits([4, 5], [300.0])


def test_rows_are_decoded_as_fbgemm_decodes_them() -> None:
    weight = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    for table_type, tolerance in (("fp32", 0.0), ("fp16", 1e-3), ("int8", 2e-2), ("int4", 0.4)):
        stored = encode_table(weight, table_type, "t/s")
        decoded = decode_rows(stored, table_type)
        assert (decoded - weight).abs().max() <= tolerance
        if table_type in ("int8", "int4"):
            bits = {"int8": 8, "int4": 4}[table_type]
            fused = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, bits)
            expected = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(fused, bits)
            torch.testing.assert_close(decoded, expected, atol=1e-6, rtol=0)
