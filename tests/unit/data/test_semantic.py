"""Semantic ids as rows: grams of codes, their numbering, and files that are none of codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import ConfigError, Recipe, UserError
from prismrec.config.ids import SemanticIds
from prismrec.data.collisions import table_ids
from prismrec.data.encode.copies import copied_files, copy_files, file_digests, with_copies
from prismrec.data.encode.encoders import TableRows, fold
from prismrec.data.encode.ids import NULL_ID, name_seed
from prismrec.data.encode.semantic import (
    SemanticEncoder,
    gram_levels,
    packed,
    semantic_encoder,
    semantic_segments,
)
from prismrec.data.encode.tables import encoders_of, id_tables
from prismrec.data.schema import Column
from prismrec.data.semantic.files import write_codes
from prismrec.data.source import open_data
from tests.unit.data import small

# Items 10 and 30 collide; the codes of the three others are the specification's.
IDS = np.array([30, 10, 20, 40])
CODES = np.array([[0, 2, 3], [0, 2, 3], [3, 3, 1], [1, 1, 2]], np.int32)


def written(path: Path, sizes: tuple[int, ...] = (4, 4, 4), codebooks: str = "a") -> Path:
    write_codes(path, IDS, CODES, sizes, {"codebooks": codebooks})
    return path


def encoder(
    path: Path, unknown_rows: int = 1, table: str = "sid", **options: Any
) -> SemanticEncoder:
    ids = SemanticIds(kind="semantic", path=str(path), **options)
    known = sum(each.rows for each in semantic_segments(ids, table))
    return semantic_encoder(ids, TableRows(known, unknown_rows, 5), table)


def rows_of(encoder: SemanticEncoder, *ids: int) -> list[list[int]]:
    rows, _ = encoder(np.array(ids))
    return rows.reshape(len(ids), encoder.rows_per_id).tolist()


def test_prefixes_are_numbered_behind_those_of_the_level_before(tmp_path: Path) -> None:
    """Section 6: V = 4, offsets (0, 4, 20)."""
    path = written(tmp_path / "sid.parquet")
    prefixes = encoder(path, numbering="all")
    assert [each.first for each in prefixes.segments] == [0, 4, 20]
    assert prefixes.rows == TableRows(4 + 16 + 64, 1, 5)
    assert rows_of(prefixes, 10, 20, 40) == [[0, 6, 31], [3, 19, 81], [1, 9, 42]]
    assert packed(CODES, range(1), (4, 4, 4)).tolist() == [0, 0, 3, 1]
    assert packed(CODES, range(2), (4, 4, 4)).tolist() == [2, 2, 15, 5]
    assert packed(CODES, range(3), (4, 4, 4)).tolist() == [11, 11, 61, 22]


def test_levels_of_different_sizes_are_packed_by_their_own_size() -> None:
    assert packed(np.array([[1, 2, 3]], np.int32), range(1, 3), (2, 3, 5)).tolist() == [2 * 5 + 3]
    assert packed(np.array([[1, 2, 3]], np.int32), range(3), (2, 3, 5)).tolist() == [28]


@pytest.mark.parametrize(
    ("options", "rows", "of_20"),
    [
        ({"form": "level"}, 12, [3, 4 + 3, 8 + 1]),
        ({"form": "level", "levels": 2}, 8, [3, 4 + 3]),
        ({"form": "ngram"}, 32, [15, 16 + 13]),
        ({"form": "ngram", "n": 3}, 64, [61]),
        ({"form": "prefix", "levels": 1}, 4, [3]),
    ],
)
def test_grams_of_each_form(
    tmp_path: Path, options: dict[str, Any], rows: int, of_20: list[int]
) -> None:
    made = encoder(written(tmp_path / "sid.parquet"), numbering="all", **options)
    assert made.rows.known == rows
    assert made.rows_per_id == len(of_20)
    assert rows_of(made, 20) == [of_20]


def test_grams_that_the_file_has_are_numbered_in_order(tmp_path: Path) -> None:
    """First codes 0, 1, 3; pairs (0, 2), (1, 1), (3, 3); triples alike."""
    made = encoder(written(tmp_path / "sid.parquet"))
    assert made.rows.known == 3 + 3 + 3
    assert rows_of(made, 10, 30, 40, 20) == [[0, 3, 6], [0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_grams_beyond_the_most_rows_are_hashed_into_a_segment_of_their_own(tmp_path: Path) -> None:
    made = encoder(written(tmp_path / "sid.parquet"), numbering="all", max_rows=10)
    assert [(each.first, each.rows, each.is_hashed) for each in made.segments] == [
        (0, 4, False),
        (4, 10, True),
        (14, 10, True),
    ]
    pair = 4 + fold(np.array([15]), 10, name_seed("sid/0-2"))
    triple = 14 + fold(np.array([61]), 10, name_seed("sid/0-3"))
    assert rows_of(made, 20) == [[3, pair[0], triple[0]]]
    other = encoder(tmp_path / "sid.parquet", table="other", numbering="all", max_rows=10)
    assert rows_of(other, 10, 20, 40) != rows_of(made, 10, 20, 40)


def test_ids_without_codes_are_unknown(tmp_path: Path) -> None:
    made = encoder(written(tmp_path / "sid.parquet"), unknown_rows=3)
    ids = np.array([[10, 11, NULL_ID], [9, 20, 2**62]])
    rows, unknown = made(ids)
    assert rows.shape == (2, 9)
    assert rows.dtype == np.int64
    assert unknown is not None
    assert unknown.tolist() == [[False, True, True], [True, False, True]]
    by_id = rows.reshape(2, 3, 3)
    assert by_id[0, 2].tolist() == [11, 11, 11], "a missing id has the last row"
    assert set(by_id[unknown].flatten().tolist()) <= {9, 10, 11}
    assert by_id[1, 1].tolist() == [2, 5, 8]
    assert made(np.array([10, 20]))[1] is None
    assert made(np.zeros(0, np.int64))[0].shape == (0,)


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 4)] * 4), min_size=1, max_size=30),
    st.sampled_from(["level", "prefix", "ngram"]),
    st.sampled_from(["seen", "all"]),
)
def test_rows_are_equal_exactly_where_the_codes_of_the_gram_are(
    tmp_path_factory: pytest.TempPathFactory, codes: list[Any], form: str, numbering: str
) -> None:
    """Section 6: a shared prefix of length l is exactly l shared leading rows, and levels never meet."""
    path = tmp_path_factory.mktemp("codes") / "sid.parquet"
    given = np.array(codes, np.int32)
    write_codes(path, np.arange(len(codes)), given, (5, 5, 5, 5), {"codebooks": ""})
    made = encoder(path, form=form, numbering=numbering)
    rows = np.array(rows_of(made, *range(len(codes))))
    for gram, levels in enumerate(gram_levels(SemanticIds(kind="semantic", path="", form=form), 4)):
        part = given[:, levels.start : levels.stop]
        same_codes = (part[:, None] == part[None]).all(axis=2)
        assert ((rows[:, None, gram] == rows[None, :, gram]) == same_codes).all()
        segment = made.segments[gram]
        assert (
            (rows[:, gram] >= segment.first) & (rows[:, gram] < segment.first + segment.rows)
        ).all()
    if numbering == "seen":
        assert set(rows.flatten().tolist()) == set(range(made.rows.known)), "no row is left over"


def rewrite(path: Path, **columns: Any) -> Path:
    """The same file with other columns, or without those that are None."""
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.remove_column(index)
        if values is not None:
            table = table.add_column(index, name, pa.array(values))
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1, 2, 1, 3]}, "has id 1 twice; keep one of the rows"),
        ({"id": [1, 2, None, 3]}, "column 'id' has nulls; leave these rows out"),
        ({"code_1": [0, 1, 4, 2]}, "'code_1' holds 4, but its codes are 0 to 3; write it by"),
        ({"code_0": [0, 1, -1, 2]}, "'code_0' holds -1, but its codes are 0 to 3"),
        ({"code_2": None}, "has no column 'code_2' of integers; write it by"),
        ({"code_2": [0.5, 1, 2, 3]}, "has no column 'code_2' of integers"),
    ],
)
def test_files_whose_columns_are_no_codes(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = rewrite(written(tmp_path / "sid.parquet"), **columns)
    with pytest.raises(UserError, match=rf"tables.sid.ids.path: .*{message}"):
        encoder(path)


def test_files_that_are_none_of_codes(tmp_path: Path) -> None:
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"id": [1], "code_0": [0]}), plain)
    with pytest.raises(
        UserError, match="plain.parquet does not say how many codes its levels have"
    ):
        encoder(plain)
    (tmp_path / "text.parquet").write_text("no Parquet")
    for numbering in ("seen", "all"):
        with pytest.raises(UserError, match=r"sid.ids.path: .*text.parquet cannot be read"):
            encoder(tmp_path / "text.parquet", numbering=numbering)
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(written(tmp_path / "full.parquet")).slice(0, 0), empty)
    with pytest.raises(UserError, match=r"empty.parquet has no row; write it by"):
        encoder(empty)


def test_more_levels_than_there_are_and_more_grams_than_can_be_numbered(tmp_path: Path) -> None:
    path = written(tmp_path / "sid.parquet")
    with pytest.raises(UserError, match=r"sid.ids: 4 levels are asked for, but .* has 3; lower"):
        encoder(path, levels=4)
    with pytest.raises(UserError, match="5 levels are asked for"):
        encoder(path, form="ngram", n=5)
    wide = tmp_path / "wide.parquet"
    written(wide, sizes=(2**30, 2**30, 2**30))
    with pytest.raises(UserError, match="3 levels of .* grams, which 64 bits cannot number"):
        encoder(wide)
    assert rows_of(encoder(wide, levels=2), 20) == [[2, 5]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"form": "prefix", "n": 2}, r"form = 'prefix' has no n; leave it out or use 'ngram'"),
        ({"form": "ngram", "n": 3, "levels": 2}, r"a gram of 3 levels does not fit 2"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, ids: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, sid={"ids": {"kind": "semantic", "path": "x", **ids}})


def test_rows_come_from_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sid.rows: a table of semantic ids has a row for each"):
        recipe(tmp_path, sid={"rows": 5, "ids": {"kind": "semantic", "path": "x"}})


def test_what_is_no_code_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'code_1' holds 3, but its codes are 0 to 2"):
        written(tmp_path / "sid.parquet", sizes=(4, 3, 4))
    with pytest.raises(UserError, match="has id 10 twice"):
        write_codes(tmp_path / "x", np.array([10, 10]), CODES[:2], (4, 4, 4), {"codebooks": ""})
    assert list(tmp_path.iterdir()) == []


def recipe(path: Path, **tables: Any) -> Recipe:
    sparse = ["item", {"name": "item_sid", "column": "item", "table": "sid"}]
    sparse += [{"name": "bag_sid", "column": "bag", "table": "sid"}]
    features = {"sparse": sparse, "dense": [], "group": None, "time": None}
    return small.recipe(path, features=features, tables=tables)


def data(directory: Path) -> Path:
    rows = pa.table(
        {
            "key": range(6),
            "item": pa.array([10, 20, 30, 50, None, 10]),
            "bag": pa.array([[10, 20], [], [50], None, [40], [30, 30]], pa.list_(pa.int64())),
            "click": pa.array([0, 1] * 3, pa.int8()),
        }
    )
    return small.write_table(
        directory, rows, item=Column(kind="id", num_ids=60), bag=Column(kind="ids")
    )


def test_fields_of_one_column_and_copies_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "sid.parquet")
    source = open_data(data(tmp_path / "rows"))
    chosen = recipe(source.path, sid={"ids": {"kind": "semantic", "path": str(path)}})
    tables = id_tables(chosen, source.schema)
    assert (tables["sid"].rows.total, tables["sid"].rows_per_id) == (10, 3)
    assert tables["item"].rows_per_id == 1
    encoders = encoders_of(chosen, source.schema)
    assert encoders["item_sid"] is encoders["bag_sid"]
    assert encoders["item"](np.array([20]))[0].tolist() == [20]
    assert encoders["item_sid"](np.array([20]))[0].tolist() == [2, 5, 8]
    digests = file_digests(chosen, encoders)
    (tmp_path / "run").mkdir()
    assert copied_files(chosen, tmp_path / "run") == {"sid": tmp_path / "run/codes-0000.parquet"}
    copy_files(chosen, tmp_path / "run", digests)
    path.unlink()
    copies = with_copies(chosen, tmp_path / "run")
    again = encoders_of(copies, source.schema)["item_sid"]
    assert again(np.array([20]))[0].tolist() == [2, 5, 8]
    with pytest.raises(UserError, match=r"sid.ids.path: .*sid.parquet cannot be read"):
        encoders_of(chosen, source.schema)


def test_collisions_are_those_of_all_grams(tmp_path: Path) -> None:
    """Items 10 and 30 share all three rows; 50 has no code and the null counts for nothing."""
    path = written(tmp_path / "sid.parquet")
    source = open_data(data(tmp_path / "rows"))
    sid = {"ids": {"kind": "semantic", "path": str(path)}}
    chosen = recipe(source.path, sid=sid)
    found = {each.table: each for each in table_ids(chosen, source)}["sid"]
    assert (found.kind, found.rows, found.used_rows) == ("semantic", 9, 9)
    assert (found.ids, found.sharing, found.expected_sharing) == (5, 2, 0.0)
    assert (found.values, found.unknown_values, found.sharing_values) == (11, 2, 6)
