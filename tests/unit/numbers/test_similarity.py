"""Similarities of vectors that are not trained: worked values, missing ones, and what goes wrong."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import ConfigError, Recipe, UserError
from prismrec.data.encode.copies import copied_files, copy_files, file_digests, with_copies
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.numbers.encoders import NumberEncoder
from prismrec.data.encode.numbers.similarity import similarity_source
from prismrec.data.encode.numbers.vectors import known_vectors
from prismrec.data.encode.tables import encoders_of
from prismrec.data.fit_numbers import fit_numbers
from prismrec.data.schema import Column
from prismrec.data.source import open_data
from tests.unit.data import small

USERS = {5: (1.0, 0.0), 7: (3.0, 4.0), 9: (0.0, 0.0)}
ITEMS = {0: (2.0, 0.0), 1: (0.0, -1.0), 2: (-6.0, -8.0), 3: (1.0, 1.0)}
"""Ids 9 has a vector of length 0; users 6 and item 4 have none."""


def vectors(path: Path, of: dict[int, tuple[float, ...]], scale: float = 1.0) -> Path:
    """A file of vectors in the form that its ending asks for, rows not in the order of the ids."""
    ids = np.array(list(reversed(of)), np.int64)
    values = np.array([of[i] for i in ids.tolist()], np.float32) * np.float32(scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, item_ids=ids, item_vectors=values)
    elif path.suffix == ".npy":
        whole = np.zeros((max(of) + 1, 2), np.float32)
        whole[ids] = values
        np.save(path, whole)
    else:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 2)
        pq.write_table(pa.table({"id": ids, "vector": flat}), path)
    return path


def data(path: Path) -> Path:
    """Pairs with every case, and a history in each row."""
    rows = [
        (5, 0, [0, 1]),
        (5, 1, [2]),
        (7, 2, [0, 4, 3]),
        (7, 3, []),
        (6, 0, [0, 1, 2, 3]),
        (7, 4, [4, 4]),
        (None, 0, None),
        (9, 0, [3]),
    ]
    user, item, history = (list(column) for column in zip(*rows, strict=True))
    key = np.arange(len(rows))
    table = pa.table(
        {
            "key": key,
            "user": pa.array(user, pa.int64()),
            "item": pa.array(item, pa.int64()),
            "seen": pa.array(history, pa.list_(pa.int64())),
            "click": key % 2,
            "at": key,
            "price": key * 1.0,
        }
    )
    kinds = {"user": Column(kind="id", num_ids=10), "seen": Column(kind="ids", num_ids=5)}
    return small.write_table(path, table, **kinds)


def number(path: Path, right: str = "item", **more: Any) -> dict[str, Any]:
    encoding = more.pop("encoding", {"kind": "mnse", "quantiser": "cosine"})
    sides = {
        "left": {"column": "user", "vectors": str(path / "users.npz")},
        "right": {"column": right, "vectors": str(path / "items.parquet")},
    }
    return {"name": "near", "similarity": sides | more, "encoding": encoding}


def recipe(path: Path, of: dict[str, Any], **features: Any) -> Recipe:
    return small.recipe(path / "rows", features={"dense": [], "numbers": [of], **features})


def similarities(path: Path, of: dict[str, Any]) -> list[float | None]:
    chosen, source = recipe(path, of), open_data(path / "rows")
    found = similarity_source(chosen.features.numbers[0], source.schema)
    arrays = {
        name: pq.read_table(path / "rows/part-0.parquet").column(name).combine_chunks()
        for name in found.columns
    }
    return [None if math.isnan(value) else value for value in found(arrays).tolist()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    vectors(tmp_path / "users.npz", USERS)
    vectors(tmp_path / "items.parquet", ITEMS)
    data(tmp_path / "rows")
    return tmp_path


NOT_KNOWN = [None, None, None]
"""A user without a vector, an item without one, a missing user."""


def test_pairs(place: Path) -> None:
    cosine = similarities(place, number(place))
    assert cosine == [1, 0, -1, pytest.approx(7 / (5 * math.sqrt(2))), *NOT_KNOWN, None]
    dot = similarities(place, number(place, measure="dot"))
    assert dot == [2, 0, -50, 7, *NOT_KNOWN, 0]
    distance = similarities(place, number(place, measure="l2"))
    assert distance == [-1, -math.sqrt(2), -15, -math.sqrt(4 + 9), *NOT_KNOWN, -2]


def test_histories(place: Path) -> None:
    """Items without a vector count for nothing; an empty history is a missing number, not 0."""
    mean = similarities(place, number(place, "seen", measure="dot"))
    assert mean == [1, -6, pytest.approx((6 + 7) / 2), None, *NOT_KNOWN, 0]
    most = similarities(place, number(place, "seen", measure="dot", history="max"))
    assert most == [2, -6, 7, None, *NOT_KNOWN, 0]
    assert similarities(place, number(place, "seen"))[0] == 0.5


def test_missing_vectors_look_up_the_rows_of_a_missing_number(place: Path) -> None:
    encoder = encoders_of(recipe(place, number(place)), open_data(place / "rows").schema)[
        "near::b2"
    ]
    assert isinstance(encoder, NumberEncoder)
    table = pq.read_table(place / "rows/part-0.parquet")
    arrays = {name: table.column(name).combine_chunks() for name in ("user", "item")}
    codes = encoder.number(arrays)
    assert codes[[0, 1, 2]].tolist() == [1023, 512, 0]
    assert codes[4:].tolist() == [NULL_ID] * 4
    rows, odd = encoder(codes)
    assert odd is not None
    assert odd.tolist() == [False] * 4 + [True] * 4
    assert rows.reshape(8, 11)[4].tolist() == [*range(2, 30, 3), 33]


@pytest.mark.parametrize("name", ["items.npz", "items.npy", "items.parquet", "whole/"])
def test_every_form_of_file(place: Path, name: str) -> None:
    vectors(place / "other" / (f"{name}part-00000.parquet" if name == "whole/" else name), ITEMS)
    of = number(place, measure="dot")
    of["similarity"]["right"]["vectors"] = str(place / "other" / name)
    assert similarities(place, of) == [2, 0, -50, 7, *NOT_KNOWN, 0]


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 6.3), st.integers(0, 5))
@settings(derandomize=True, max_examples=25, deadline=None)
def test_cosines_know_neither_scale_nor_direction(
    first: float, second: float, angle: float, seed: int
) -> None:
    """A joint turn of both spaces and a scale for each change nothing."""
    from prismrec.data.encode.numbers.similarity import SimilaritySource
    from prismrec.data.encode.numbers.vectors import KnownVectors

    rng = np.random.default_rng(seed)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pairs = rng.normal(size=(2, 6, 2))
    ids = np.arange(6)
    arrays = {name: pa.array(ids) for name in ("u", "i")}

    def found(left: Any, right: Any) -> Any:
        sides = [
            KnownVectors(
                ids, ids, each.astype(np.float32), np.linalg.norm(each.astype(np.float32), axis=1)
            )
            for each in (left, right)
        ]
        return SimilaritySource(("u", "i"), sides[0], sides[1], "cosine", None)(arrays)

    plain = found(*pairs)
    assert found(pairs[0] @ turn * first, pairs[1] @ turn * second) == pytest.approx(
        plain, abs=1e-5
    )
    assert plain.std() > 0.1
    assert np.abs(plain).max() <= 1


def test_similarities_of_training_rows_are_fitted(place: Path) -> None:
    of = number(place, measure="dot", encoding={"kind": "mnse", "levels": 3})
    chosen = recipe(place, of, statistics="unread.json")
    found = fit_numbers(chosen, open_data(place / "rows")).numbers["near"]
    assert (found.values, found.missing, found.least, found.most) == (5, 3, -50, 7)
    assert found.source == "the dot of 'user' and 'item'"
    assert found.quantiles == [0, 2], "of -50, 0, 0, 2 and 7"


def test_vectors_are_copied_with_a_run(place: Path, tmp_path: Path) -> None:
    of = number(place)
    chosen, run = recipe(place, of), tmp_path / "run"
    run.mkdir()
    digests = file_digests(chosen, encoders_of(chosen, open_data(place / "rows").schema))
    copy_files(chosen, run, digests)
    copies = copied_files(chosen, run)
    where = "features.numbers.near.similarity"
    assert copies == {
        f"{where}.left.vectors": run / "vectors-0000.npz",
        f"{where}.right.vectors": run / "vectors-0001.parquet",
    }
    before = similarities(place, of)
    shutil.move(place / "users.npz", place / "gone.npz")
    moved = with_copies(chosen, run).features.numbers[0].model_dump(exclude_none=True)
    assert similarities(place, moved) == before
    vectors(place / "users.npz", USERS, scale=2)
    (run / "vectors-0000.npz").unlink()
    with pytest.raises(
        UserError, match=r"near.similarity.left.vectors: .*users.npz was changed while"
    ):
        copy_files(chosen, run, digests)


@pytest.mark.parametrize("type_", [np.float32, np.float16])
def test_arrays_of_float32_are_read_where_they_lie(tmp_path: Path, type_: Any) -> None:
    values = np.random.default_rng(0).normal(size=(20_000, 3)).astype(type_)
    np.save(tmp_path / "v.npy", values)
    found = known_vectors(str(tmp_path / "v.npy"), "key")
    assert isinstance(found.vectors, np.memmap) == (type_ == np.float32)
    assert found.vectors.tolist() == values.astype(np.float32).tolist()
    lengths = np.linalg.norm(values.astype(np.float64), axis=1)
    np.testing.assert_allclose(found.lengths, lengths, rtol=1e-12)
    assert found.rows_of(np.array([19_999, 20_000, 0])).tolist() == [19_999, -1, 0]


def test_a_changed_file_is_read_anew(place: Path) -> None:
    of = number(place, measure="dot")
    assert similarities(place, of)[0] == 2
    vectors(place / "items.parquet", {**ITEMS, 4: (0.0, 0.0)}, scale=10)
    assert similarities(place, of)[0] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": "nothing.npz"}, r"near.similarity.left.vectors: .*nothing.npz: no such file"),
        (
            {"right": "wide.npz"},
            r"near.similarity: the vectors to the left have 2 numbers and .* 3;",
        ),
        (
            {"right": "empty"},
            r"near.similarity.right.vectors: .* is a directory with 0 Parquet files; name",
        ),
        ({"left": "pickled.npz"}, r"near.similarity.left.vectors: .*pickled.npz"),
    ],
)
def test_files_that_are_refused(place: Path, change: dict[str, str], message: str) -> None:
    np.savez(place / "wide.npz", ids=np.arange(3), vectors=np.ones((3, 3), np.float32))
    np.savez(place / "pickled.npz", ids=np.arange(3), vectors=np.array([[1, None]], object))
    (place / "empty").mkdir()
    of = number(place)
    for side, name in change.items():
        of["similarity"][side]["vectors"] = str(place / name)
    with pytest.raises(UserError, match=message):
        similarities(place, of)


def test_columns_that_are_refused(place: Path) -> None:
    of = number(place)
    of["similarity"]["left"]["column"] = "seen"
    with pytest.raises(
        UserError, match=r"near.similarity.left: column 'seen' .* kind 'ids', but 'id'"
    ):
        similarities(place, of)
    with pytest.raises(
        ConfigError, match=r"a similarity is not read from a column; leave one of them"
    ):
        recipe(place, {**number(place), "column": "price"})
