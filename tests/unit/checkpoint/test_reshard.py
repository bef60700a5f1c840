"""Saved in one form, restored in every other, bit for bit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.checkpoint import (
    CheckpointReader,
    capture,
    read_dense,
    read_table,
    restore,
    table_shapes,
)
from prismrec.checkpoint.manifest import (
    Block,
    Manifest,
    TensorEntry,
    partition_problem,
    write_manifest,
)
from prismrec.checkpoint.parts import merge_tables, write_part
from prismrec.config import UserError
from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.shards import LocalShard
from tests.unit.checkpoint.forms import (
    FORMS,
    ROWS,
    WIDTHS,
    Form,
    assert_equal,
    dense,
    empty_like,
    fill,
    load,
    logical,
    save,
)


@pytest.mark.parametrize("source", FORMS, ids=str)
def test_every_form_restores_every_other(tmp_path: Path, source: Form) -> None:
    whole = logical()
    path = save(tmp_path, fill(empty_like(source), whole))
    for target in FORMS:
        assert_equal(load(path, target), whole)


@pytest.mark.parametrize("layout", ["packed", "separate"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_row_wise_states_move_between_forms(tmp_path: Path, layout: str, kind: str) -> None:
    whole = logical(row_wise_state=True, coupled=True)
    path = save(tmp_path, fill(empty_like(Form(layout, kind, 2, True)), whole))
    for target in FORMS:
        assert_equal(load(path, replace(target, row_wise_state=True)), whole)


def test_nothing_is_read_through_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logical()
    path = save(tmp_path, fill(empty_like(FORMS[0]), whole))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert_equal(load(path, Form("separate", "row_wise", 2)), whole)


def test_whole_tables_and_dense_groups_are_read(tmp_path: Path) -> None:
    whole, values = logical(), dense()
    path = save(tmp_path, fill(empty_like(Form("packed", "column_wise", 2)), whole))
    assert torch.equal(read_table(path, "item", "narrow"), whole["item/narrow"]["weight"])
    with CheckpointReader(path) as reader:
        assert torch.equal(reader.table("user", "wide", "sum"), whole["user/wide"]["sum"])
    assert torch.equal(read_dense(path, "ema")["tower.weight"], values.ema["tower.weight"])
    read = read_dense(path)
    assert read.keys() == values.model.keys()
    assert all(torch.equal(read[name], value) for name, value in values.model.items())
    assert read["nothing"].shape == (0, 5)
    with pytest.raises(UserError, match=r"no table 'user/wild'; did you mean 'user/wide'"):
        read_table(path, "user", "wild")
    with pytest.raises(UserError, match=r"user/wide has no 'sun'; did you mean 'sum'"):
        CheckpointReader(path).table("user", "wide", "sun")


def test_tables_convert_between_fp32_and_fp16(tmp_path: Path) -> None:
    def one(values: torch.Tensor) -> list[LocalShard]:
        return [LocalShard("t", "s", 2, 4, 0, 0, values)]

    exact = torch.tensor([[1.0, 0.1, -2.5, 3.0], [0.0, 1e-3, 7.0, 65504.0]])
    path = save(tmp_path / "full", [one(exact)])
    values, half = dense(), torch.zeros(2, 4, dtype=torch.float16)
    restore(path, one(half), values.model, values.optimizer, values.ema)
    assert torch.equal(half, exact.half())
    path = save(tmp_path / "half", [one(half)])
    full = torch.zeros(2, 4)
    restore(path, one(full), values.model, values.optimizer, values.ema)
    assert torch.equal(full, exact.half().float())
    path = save(tmp_path / "large", [one(exact * 2)])
    with pytest.raises(UserError, match=r"t/s/weight: a value .* over 65504"):
        restore(path, one(half), values.model, values.optimizer, values.ema)


def test_weights_alone_leave_optimizer_state_and_averages(tmp_path: Path) -> None:
    whole = logical()
    path = save(tmp_path, fill(empty_like(FORMS[0]), whole))
    shards = empty_like(Form("separate", "table_wise", 1))[0]
    values = dense(seed=5)
    restored = restore(path, shards, values.model, None, None)
    for shard in shards:
        assert torch.equal(shard.weight, whole[shard.key]["weight"])
        assert bool(shard.states["sum"].isnan().all())
    assert torch.equal(values.model["norm.count"], torch.tensor(7))
    assert torch.equal(values.ema["tower.weight"], dense(seed=5).ema["tower.weight"])
    assert restored.manifest.extra == {"step": 1, "rank": 0}
    assert restored.conversions == ()


@st.composite
def partitions(draw: st.DrawFn, rows: int, cols: int) -> list[tuple[int, int, int, int]]:
    """Random (row, col, rows, cols) blocks: the rectangle cut again and again, then shuffled."""
    pieces = [(0, 0, rows, cols)]
    for _ in range(draw(st.integers(0, 6))):
        row, col, height, width = pieces.pop(draw(st.integers(0, len(pieces) - 1)))
        if draw(st.booleans()):
            cut = draw(st.integers(0, height))
            pieces += [(row, col, cut, width), (row + cut, col, height - cut, width)]
        else:
            cut = draw(st.integers(0, width))
            pieces += [(row, col, height, cut), (row, col + cut, height, width - cut)]
    return draw(st.permutations(pieces))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    saved=partitions(9, 8),
    wanted=partitions(9, 8),
    world=st.integers(1, 3),
    size=st.integers(24, 400),
)
def test_any_partition_restores_any_other(
    tmp_path_factory: pytest.TempPathFactory,
    saved: list[tuple[int, int, int, int]],
    wanted: list[tuple[int, int, int, int]],
    world: int,
    size: int,
) -> None:
    directory = tmp_path_factory.mktemp("part")
    whole = torch.arange(72.0).reshape(9, 8)

    def shard(piece: tuple[int, int, int, int], values: torch.Tensor) -> LocalShard:
        row, col, height, width = piece
        block = values[row : row + height, col : col + width]
        return LocalShard("t", "s", 9, 8, row, col, block, {"sum": block + 100})

    parts = [
        write_part(
            directory,
            rank,
            capture([shard(piece, whole) for piece in saved[rank::world]], {}, {}, {}),
            {},
            max_file_bytes=size,
        )
        for rank in range(world)
    ]
    manifest = Manifest(
        format="prismrec-checkpoint",
        version=2,
        step=0,
        sequence=1,
        save_id="x",
        world_size=world,
        metric=None,
        files={name: entry for part in parts for name, entry in part.files.items()},
        tables=merge_tables(parts),
        dense={},
        dense_optimizer={},
        ema={},
        extra={},
    )
    write_manifest(directory, manifest)
    target = torch.full((9, 8), torch.nan)
    shards = [shard(piece, target) for piece in wanted]
    restore(directory, shards, {}, {}, {}, {"t/s": (9, 8)})
    assert torch.equal(target, whole)
    for piece in shards:
        expected = whole[
            piece.row : piece.row + piece.weight.shape[0],
            piece.col : piece.col + piece.weight.shape[1],
        ]
        assert torch.equal(piece.states["sum"], expected + 100)


def _entry(*blocks: tuple[int, int, int, int]) -> TensorEntry:
    return TensorEntry(
        dtype="F32",
        shape=(4, 4),
        blocks=tuple(
            Block(file="rank-00000.safetensors", key="k", row=r, rows=h, col=c, cols=w)
            for r, c, h, w in blocks
        ),
    )


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ([(0, 0, 4, 4)], None),
        ([(0, 0, 2, 4), (2, 0, 2, 1), (2, 1, 2, 3)], None),
        ([(0, 0, 4, 3), (0, 3, 2, 1), (2, 3, 2, 1)], None),
        ([(0, 0, 4, 3)], "hold 12 of 16"),
        ([], "hold 0 of 16"),
        ([(0, 0, 4, 4), (3, 3, 1, 1)], "row 3, column 3 overlaps"),
        ([(0, 0, 3, 4), (2, 0, 1, 4)], "row 2, column 0 overlaps"),
        ([(0, 0, 4, 4), (4, 0, 1, 4)], "row 4, column 0 reaches outside"),
        ([(0, 1, 4, 4)], "row 0, column 1 reaches outside"),
    ],
)
def test_blocks_must_cover_every_element_once(
    blocks: list[tuple[int, int, int, int]], problem: str | None
) -> None:
    found = partition_problem(_entry(*blocks), 4)
    assert found is None if problem is None else problem in (found or "")


def test_shapes_of_the_model() -> None:
    tables = tuple(
        TableSpec(name, rows, (name,), "sum", "packed", "auto", TableOptimizer())
        for name, rows in ROWS.items()
    )
    sets = tuple(EmbeddingSet(name, dim, 0.1) for name, dim in WIDTHS.items())
    spec = EmbeddingSpec(sets, tables, tuple(ROWS), "fp32")
    assert table_shapes(spec) == {
        "user/wide": (11, 8),
        "user/narrow": (11, 4),
        "item/wide": (7, 8),
        "item/narrow": (7, 4),
    }
