"""Counting ids, vocabularies on disk, and what the ids of a data set make of a recipe's tables."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import Recipe, UserError
from prismrec.config.ids import VocabularyIds
from prismrec.data.collisions import expected_sharing, table_ids
from prismrec.data.encode.copies import (
    copied_files,
    copy_files,
    with_absolute_paths,
    with_copies,
)
from prismrec.data.encode.encoders import TableRows
from prismrec.data.encode.tables import encoders_of, id_tables
from prismrec.data.encode.vocabulary import FIELDS, read_vocabulary, vocabulary_size
from prismrec.data.schema import Column
from prismrec.data.source import open_data
from prismrec.data.vocabulary import (
    IdCounter,
    VocabularyFile,
    count_ids,
    files_of,
    write_vocabularies,
)
from tests.unit.data import small

ANY = Column(kind="id")
BAGS = Column(kind="ids")


def recipe(path: Path | str, sparse: list[Any] | None = None, **tables: Any) -> Recipe:
    features = {"sparse": sparse or ["item"], "dense": [], "group": None, "time": None}
    return small.recipe(path, features=features, tables=tables)


def write_ids(directory: Path, item: list[Any], bags: list[Any] | None = None) -> Path:
    """Rows of any ids, in row groups of 7."""
    rows = pa.table(
        {
            "key": range(len(item)),
            "item": pa.array(item, pa.int64()),
            "bag": pa.array(bags or [[]] * len(item), pa.list_(pa.int32())),
            "click": pa.array([0, 1] * (len(item) // 2), pa.int8()),
        }
    )
    return small.write_table(directory, rows, item=ANY, bag=BAGS)


def listed(path: Path) -> list[tuple[int, int]]:
    table = pq.read_table(path)
    assert table.schema.remove_metadata() == FIELDS
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1)), max_size=12))
def test_ids_are_counted_however_they_are_merged(chunks: list[list[int]]) -> None:
    counter = IdCounter()
    for number, chunk in enumerate(chunks):
        counter.add(np.array(chunk, np.int64))
        if number % 3 == 0:
            counter.counted()
    ids, counts = counter.counted()
    expected = Counter(value for chunk in chunks for value in chunk)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
    assert ids.tolist() == sorted(expected)
    assert counter.total == expected.total()


def test_memory_is_that_of_the_distinct_ids() -> None:
    """Six million ids, of which three are distinct: 48 MB of ids and counts, and as much to merge."""
    distinct, chunks = 3_000_000, 24
    tracemalloc.start()
    try:
        counter, random = IdCounter(), np.random.default_rng(0)
        for _ in range(chunks):
            counter.add(random.integers(0, distinct, 2 * distinct // chunks))
        ids, counts = counter.counted()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counts.sum() == counter.total == 2 * distinct
    assert len(ids) > 0.85 * distinct
    assert peak < 55 * len(ids)


def test_a_vocabulary_is_sorted_by_falling_count_then_by_id(tmp_path: Path) -> None:
    item = [7, None, 7, -2, 10**15, 10**15, 3, -2, 7, 3, 1, None]
    path = write_ids(tmp_path / "rows", item)
    file = VocabularyFile(("item",), tmp_path / "lists" / "item.parquet")
    seen = []
    done = write_vocabularies(
        open_data(path), [file], (), progress=lambda *each: seen.append(each)
    )[0]
    assert listed(file.out) == [(7, 3), (-2, 2), (3, 2), (10**15, 2), (1, 1)]
    assert (done.ids, done.values, done.all_ids, done.all_values) == (5, 10, 5, 10)
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(UserError, match=r"item.parquet: already there; --overwrite"):
        write_vocabularies(open_data(path), [file], ())
    done = write_vocabularies(open_data(path), [file], (), min_count=2, overwrite=True)[0]
    assert listed(file.out) == [(7, 3), (-2, 2), (3, 2), (10**15, 2)]
    assert (done.ids, done.values, done.all_ids) == (4, 9, 5)
    with pytest.raises(UserError, match=r"none of 5 distinct ids was seen 4 times or more"):
        write_vocabularies(open_data(path), [file], (), min_count=4, overwrite=True)
    assert [each.name for each in file.out.parent.iterdir()] == ["item.parquet"]


def test_only_rows_that_meet_the_conditions_and_columns_together(tmp_path: Path) -> None:
    bags = [[1, 1, None], None, [], [2], [9], [9], [1], [1]]
    path = write_ids(tmp_path / "rows", [1, 2, 3, 4, 5, 6, 7, 8], bags)
    source = open_data(path)
    together = VocabularyFile(("item", "bag"), tmp_path / "both.parquet")
    alone = VocabularyFile(("bag",), tmp_path / "bag.parquet")
    write_vocabularies(source, [together, alone], ("key <= 3", "key > 0"))
    assert listed(together.out) == [(2, 2), (3, 1), (4, 1)]
    assert listed(alone.out) == [(2, 1)]
    with pytest.raises(UserError, match="column 'click' .* 'label', but 'id' or 'ids' is needed"):
        count_ids(source, {"x": ("click",)}, ())
    with pytest.raises(UserError, match="conditions: 'kex == 1': no column 'kex'"):
        count_ids(source, {"x": ("item",)}, ("kex == 1",))


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = write_ids(tmp_path / "rows", list(range(20)))
    source, file = open_data(path), path / "part-0.parquet"
    content = bytearray(file.read_bytes())
    content[200:300] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"part-0.parquet: row group 0: cannot be decoded"):
        count_ids(source, {"x": ("item",)}, ())


def write_list(path: Path, ids: list[int], counts: list[int], **names: str) -> Path:
    columns = {names.get("id", "id"): ids, names.get("count", "count"): counts}
    pq.write_table(pa.table(columns), path)
    return path


def options(path: Path | str, min_count: int = 1) -> VocabularyIds:
    return VocabularyIds(kind="vocabulary", path=str(path), min_count=min_count)


@pytest.mark.parametrize("min_count", [1, 2, 5])
def test_an_id_has_the_row_of_its_line_while_it_is_frequent_enough(
    tmp_path: Path, min_count: int
) -> None:
    path = write_list(tmp_path / "list.parquet", [9, -4, 2**40, 3], [7, 5, 2, 1])
    chosen = options(path, min_count)
    size = vocabulary_size(chosen, "here")
    assert size == {1: 4, 2: 3, 5: 2}[min_count]
    rows, unknown = read_vocabulary(chosen, TableRows(size), "here")(np.array([3, 2**40, -4, 9, 0]))
    expected = [place if place < size else size for place in (3, 2, 1, 0, 99)]
    assert rows.tolist() == expected
    assert unknown is not None
    assert unknown.tolist() == [row == size for row in expected]


WRONG: dict[str, tuple[list[int], list[int], dict[str, str], str]] = {
    "not sorted": ([1, 2], [1, 2], {}, "not sorted by falling count"),
    "twice": ([4, 1, 4], [3, 2, 1], {}, "lists id 4 twice"),
    "other columns": ([1, 2], [2, 1], {"count": "value"}, "is no vocabulary, which has columns id"),
    "rare": ([1, 2], [2, 1], {}, "holds no id that was seen 3 times or more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_are_no_vocabularies(tmp_path: Path, case: str) -> None:
    ids, counts, names, message = WRONG[case]
    path = write_list(tmp_path / "list.parquet", ids, counts, **names)
    chosen = options(path, 3 if case == "rare" else 1)
    with pytest.raises(UserError, match=rf"^key.*{message}"):
        read_vocabulary(chosen, TableRows(vocabulary_size(chosen, "key")), "key")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"key.path: .*none.parquet cannot be read .*data vocab"):
        vocabulary_size(options(tmp_path / "none.parquet"), "key")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match=r"key.path: .*text.parquet cannot be read"):
        vocabulary_size(options(tmp_path / "text.parquet"), "key")
    path = write_list(tmp_path / "list.parquet", [1, 2], [2, 1])
    with pytest.raises(UserError, match="was changed while it was read"):
        read_vocabulary(options(path), TableRows(3), "key")


def test_copies_take_the_place_of_the_files_that_a_recipe_names(tmp_path: Path) -> None:
    data = write_ids(tmp_path / "rows", [5, 5, 6, 7])
    lists = [write_list(tmp_path / f"{n}.parquet", [5 + n], [2]) for n in range(2)]
    vocabulary = {"kind": "vocabulary", "path": str(lists[0])}
    chosen = recipe(
        data,
        [{"name": "bag", "table": "b"}, "item", {"name": "again", "column": "item", "table": "c"}],
        b={"ids": vocabulary},
        c={"ids": {"kind": "vocabulary", "path": str(lists[1])}},
    )
    schema = open_data(data).schema
    with pytest.raises(UserError, match="tables.item.rows: missing; ids = 'direct' .* 'item' no"):
        id_tables(chosen, schema)
    (tmp_path / "run").mkdir()
    assert list(copied_files(chosen, tmp_path)) == ["b", "c"]
    with pytest.raises(
        UserError, match=r"tables.b.ids.path: .*0.parquet was changed while the run"
    ):
        copy_files(chosen, tmp_path / "run", {"b": "0" * 64, "c": ""})
    sized = recipe(data, chosen.features.sparse, **_dumped(chosen), item={"rows": 3})
    encoders = encoders_of(sized, schema)
    digests = {name: encoders[f].digest for name, f in (("b", "bag"), ("c", "again"))}
    copy_files(sized, tmp_path / "run", digests)
    for path in lists:
        path.unlink()
    copies = with_copies(sized, tmp_path / "run")
    assert encoders_of(copies, schema)["again"](np.array([5, 6]))[0].tolist() == [1, 0]
    copy_files(sized, tmp_path / "run", digests)  # what is there already is not read again
    with pytest.raises(UserError, match=r"0.parquet cannot be read"):
        encoders_of(sized, schema)


def _dumped(chosen: Recipe) -> dict[str, Any]:
    return {name: each.model_dump() for name, each in chosen.embedding.tables.items()}


def test_paths_are_made_absolute_and_urls_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    chosen = recipe(
        "rows",
        ["item", {"name": "bag", "table": "b"}],
        item={"ids": {"kind": "vocabulary", "path": "lists/i.parquet"}},
        b={"ids": {"kind": "vocabulary", "path": "s3://bucket/b.parquet"}},
    )
    tables = with_absolute_paths(chosen).embedding.tables
    assert [tables[name].ids.path for name in ("item", "b")] == [
        "/lists/i.parquet",
        "s3://bucket/b.parquet",
    ]
    files = files_of(chosen, "item")
    assert files == [VocabularyFile(("item",), Path("lists/i.parquet"))]
    with pytest.raises(UserError, match=r"tables.b.ids.path: s3://bucket/b.parquet is a URL"):
        files_of(chosen)
    with pytest.raises(UserError, match="no table 'itme' with .*; did you mean 'item'"):
        files_of(chosen, "itme")
    with pytest.raises(UserError, match="no table of the recipe has ids.kind = 'vocabulary'"):
        files_of(recipe("rows"))


def test_what_collides_and_what_is_unknown(tmp_path: Path) -> None:
    """Ids 0 to 999, id k standing there once or twice, in the training rows only."""
    item = [*range(1000), *range(0, 1000, 2), *([10**6] * 100), None, None]
    data = write_ids(tmp_path / "rows", item)
    list_ = write_list(tmp_path / "list.parquet", list(range(400)), [2] * 400)
    sparse = [{"name": name, "column": "item", "table": name} for name in "dhtvq"]
    chosen = small.recipe(
        data,
        features={"sparse": sparse, "dense": [], "group": None, "time": None},
        splits={"train": ["key < 1500"]},
        tables={
            "d": {"rows": 900},
            "h": {"ids": "hash", "rows": 500},
            "t": {"ids": {"kind": "hash", "hashes": 2}, "rows": 500},
            "v": {"ids": {"kind": "vocabulary", "path": str(list_)}},
            "q": {"ids": "quotient_remainder", "rows": 900},
        },
    )
    found = {each.table: each for each in table_ids(chosen, open_data(data))}
    assert {(each.ids, each.values) for each in found.values()} == {(1000, 1500)}
    direct = found["d"]
    assert (direct.rows, direct.used_rows, direct.sharing) == (900, 900, 0)
    assert direct.unknown_values == 100 + 50
    listed_ = found["v"]
    assert (listed_.rows, listed_.used_rows, listed_.unknown_values) == (400, 400, 600 + 300)
    quotient = found["q"]
    assert (quotient.rows, quotient.used_rows, quotient.sharing) == (60, 60, 0)
    assert quotient.unknown_values == 150
    hashed, twice = found["h"], found["t"]
    encode = encoders_of(chosen, open_data(data).schema)["h"]
    users = Counter(encode(np.arange(1000))[0].tolist())
    sharing = {id_ for id_ in range(1000) if users[encode(np.array([id_]))[0].item()] > 1}
    assert (hashed.used_rows, hashed.sharing) == (len(users), len(sharing))
    assert hashed.sharing_values == sum(2 - id_ % 2 for id_ in sharing)
    assert hashed.expected_sharing == pytest.approx(1000 * expected_sharing(1000, 500, 1))
    assert abs(hashed.sharing / hashed.expected_sharing - 1) < 0.1
    assert hashed.unknown_values == twice.unknown_values == 0
    assert twice.sharing < 30 < hashed.sharing
    assert twice.expected_sharing == pytest.approx(1000 * 999 * 2 / 500**2, rel=0.01)


def test_more_ids_never_collide_less() -> None:
    assert expected_sharing(1, 1, 1) == 0
    assert expected_sharing(2, 1, 1) == 1
    assert expected_sharing(2, 2, 2) == pytest.approx(2 / 4 - 1 / 8)  # of {0,0}, {0,1}, {1,1}
    shares = [expected_sharing(ids, 50, 2) for ids in range(1, 400)]
    assert shares == sorted(shares)
    assert shares[-1] < expected_sharing(400, 50, 1)
