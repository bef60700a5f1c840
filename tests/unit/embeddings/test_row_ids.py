"""Rows and the ids they stand for, and vectors of a file on their way to rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import UserError
from prismrec.config.embedding import TableOptions
from prismrec.config.ids import HashedIds, IdOptions, QuotientRemainderIds, SemanticIds
from prismrec.data.encode.encoders import DirectEncoder, TableRows, VocabularyEncoder
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.semantic import semantic_segments
from prismrec.data.encode.tables import IdTable
from prismrec.data.semantic.files import write_codes
from prismrec.data.vectors import VectorFiles
from prismrec.embeddings.imported import Fit, imported_rows
from prismrec.embeddings.row_ids import (
    NO_ROW,
    DirectRows,
    ListedRows,
    RowIds,
    TableIds,
    align,
    counterparts,
    fixed_row_ids,
    id_range,
)

EXACT = Fit(1.0, 65504.0)


def _vocabulary(ids: list[int], unknown: int = 1) -> VocabularyEncoder:
    listed = np.array(ids)
    order = np.argsort(listed)
    return VocabularyEncoder(TableRows(len(ids), unknown), listed[order], order, "")


def test_a_direct_id_is_its_row() -> None:
    rows = fixed_row_ids(DirectEncoder(TableRows(3, 2)))
    assert rows is not None
    assert rows.ids_of(1, 5).tolist() == [1, 2, NULL_ID, NULL_ID]
    assert rows.rows_of(np.array([2, 3, -1, NULL_ID])).tolist() == [2, NO_ROW, NO_ROW, NO_ROW]
    assert rows.unknown.tolist() == [3, 4]
    assert id_range(rows, 1, 5) == (1, 3)
    assert id_range(rows, 3, 5) == (0, 0)


def test_a_vocabulary_gives_rows_in_its_order() -> None:
    rows = fixed_row_ids(_vocabulary([70, -5, 12]))
    assert rows is not None
    assert rows.ids_of(0, 4).tolist() == [70, -5, 12, NULL_ID]
    assert rows.rows_of(np.array([12, 13, -5, 70, NULL_ID])).tolist() == [2, NO_ROW, 1, 0, NO_ROW]
    assert id_range(rows, 0, 4) == (-5, 71)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    ours=st.lists(st.integers(-20, 20), unique=True, min_size=1),
    theirs=st.lists(st.integers(-20, 20), unique=True, min_size=1),
    unknown=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_counterparts_stand_for_the_same_ids(
    ours: list[int], theirs: list[int], unknown: tuple[int, int]
) -> None:
    target = fixed_row_ids(_vocabulary(ours, unknown[0]))
    source = fixed_row_ids(_vocabulary(theirs, unknown[1]))
    assert target is not None
    assert source is not None
    expected = [theirs.index(each) if each in theirs else NO_ROW for each in ours]
    if unknown[0] == unknown[1]:
        expected += range(len(theirs), len(theirs) + unknown[1])
    else:
        expected += [NO_ROW] * (unknown[0] - 1) + [len(theirs) + unknown[1] - 1]
    assert counterparts(target, source, 0, target.num_rows).tolist() == expected
    middle = target.num_rows // 2
    assert counterparts(target, source, middle, target.num_rows).tolist() == expected[middle:]


def test_rows_without_an_id_of_their_own_match_nothing() -> None:
    """As the free rows of a managed table, which are no unknown rows either."""
    target = ListedRows(np.array([5, NULL_ID, 9, NULL_ID]), np.array([3]))
    source = ListedRows(np.array([NULL_ID, 9, NULL_ID]), np.array([2]))
    assert counterparts(target, source, 0, 4).tolist() == [NO_ROW, NO_ROW, 1, 2]


def _ids(**tables: IdOptions | int) -> TableIds:
    """Tables by name: direct ones of a number of rows, or 10 rows of other ids."""
    made = {}
    for name, each in tables.items():
        options = (
            TableOptions(rows=each) if isinstance(each, int) else TableOptions(rows=10, ids=each)
        )
        count = 10 if not isinstance(each, int) else each
        if isinstance(each, QuotientRemainderIds):
            count = 4 + 3
        made[name] = IdTable(name, options, options.rows, TableRows(count))
    return TableIds(made)


def test_tables_whose_ids_share_rows_match_only_as_a_whole() -> None:
    here = _ids(a=HashedIds(kind="hash"), b=HashedIds(kind="hash", seed=3), c=10)
    there = _ids(a=HashedIds(kind="hash"), b=HashedIds(kind="hash", seed=4), c=12)
    rows, problem = align((here, "a"), (there, "a"))
    assert rows is not None
    assert (rows(3, 6).tolist(), problem) == ([3, 4, 5], "")
    assert align((here, "b"), (there, "b")) == (None, "ids share rows differently here and there")
    assert align((here, "a"), (there, "c")) == (None, "ids are 'hash' here and 'direct' there")
    rows, _ = align((here, "c"), (there, "c"))
    assert rows is not None
    assert rows(8, 11).tolist() == [8, 9, 12]
    folded = _ids(q=QuotientRemainderIds(kind="quotient_remainder", divisor=3))
    other = _ids(q=QuotientRemainderIds(kind="quotient_remainder", divisor=4))
    assert align((folded, "q"), (folded, "q"))[0] is not None
    assert align((folded, "q"), (other, "q"))[0] is None


def _codes(path: Path, items: int, codebooks: str = "a") -> str:
    """Codes of some items; those of an item do not depend on how many there are."""
    codes = np.random.default_rng(0).integers(0, 4, (20, 2))[:items].astype(np.int32)
    write_codes(path, np.arange(items), codes, (4, 4), {"codebooks": codebooks})
    return str(path)


def _semantic(path: str, **options: Any) -> TableIds:
    ids = SemanticIds(kind="semantic", path=path, **options)
    segments = semantic_segments(ids, "code")
    rows = TableRows(sum(each.rows for each in segments))
    return TableIds({"code": IdTable("code", TableOptions(ids=ids), None, rows, len(segments))})


def test_rows_of_codes_stay_where_items_are_added(tmp_path: Path) -> None:
    """With all grams numbered, and the same codebooks; a hash is that of the table's name."""
    few, more = _codes(tmp_path / "few.parquet", 6), _codes(tmp_path / "more.parquet", 20)
    other = _codes(tmp_path / "other.parquet", 20, "b")

    def matches(first: TableIds, second: TableIds) -> bool:
        return align((first, "code"), (second, "code"))[0] is not None

    for options in ({"numbering": "all"}, {"numbering": "all", "max_rows": 5}):
        assert matches(_semantic(few, **options), _semantic(more, **options))
        assert not matches(_semantic(few, **options), _semantic(other, **options))
    assert matches(_semantic(few), _semantic(few))
    assert not matches(_semantic(few), _semantic(more)), "grams of the file are numbered in order"
    assert not matches(
        _semantic(few, numbering="all"), _semantic(few, numbering="all", form="level")
    )
    assert _semantic(few).row_ids("code") is None, "ids share rows: none can be named by its id"


def _files(tmp_path: Path, columns: dict[str, object], group: int = 2) -> VectorFiles:
    pq.write_table(pa.table(columns), tmp_path / "v.parquet", row_group_size=group)
    return VectorFiles(tmp_path / "v.parquet", "id", 1, "set 's'")


def _taken(files: VectorFiles, rows: RowIds, span: range, fit: Fit = EXACT) -> dict[int, float]:
    return {
        row: vector[0]
        for found, vectors in imported_rows(files, rows, span, fit)
        for row, vector in zip(found.tolist(), vectors.tolist(), strict=True)
    }


def test_vectors_go_to_the_rows_of_their_ids(tmp_path: Path) -> None:
    direct = DirectRows(TableRows(6))
    files = _files(
        tmp_path, {"id": [5, 99, 1, None, 4], "vector": [[1.0], [2.0], [3.0], [4.0], [5.0]]}
    )
    assert _taken(files, direct, range(0, 7)) == {5: 1, 1: 3, 6: 4, 4: 5}
    assert _taken(files, direct, range(4, 6), Fit(0.5, 1e9)) == {5: 0.5, 4: 2.5}
    listed = fixed_row_ids(_vocabulary([4, 7, 99]))
    assert listed is not None
    assert _taken(files, listed, range(0, 4)) == {2: 2, 0: 5, 3: 4}


def test_several_unknown_rows_are_told_apart_by_the_column_row(tmp_path: Path) -> None:
    direct = DirectRows(TableRows(2, 2))
    columns = {"id": [0, None, None], "vector": [[1.0], [2.0], [3.0]]}
    assert _taken(_files(tmp_path, columns), direct, range(4)) == {0: 1}
    with_rows = _files(tmp_path, {**columns, "row": [0, 3, 2]})
    assert _taken(with_rows, direct, range(4)) == {0: 1, 3: 2, 2: 3}
    strange = _files(tmp_path, {**columns, "row": [0, 1, 9]})  # no unknown rows of this table
    assert _taken(strange, direct, range(4)) == {0: 1}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 1, 3], r"v.parquet: row 2: column 'id': id 3 stands in the file a second time"),
        ([3, 3, 1], r"v.parquet: row 1: column 'id': id 3 stands"),
        ([None, 1, None], r"row 2: column 'id': a vector without an id stands"),
    ],
)
@pytest.mark.parametrize("group", [1, 3])
def test_an_id_has_one_vector(
    tmp_path: Path, ids: list[int | None], message: str, group: int
) -> None:
    files = _files(tmp_path, {"id": ids, "vector": [[1.0], [2.0], [3.0]]}, group)
    with pytest.raises(UserError, match=message):
        _taken(files, DirectRows(TableRows(6)), range(7))
    out_of_range = _files(tmp_path, {"id": [8, 8, 1], "vector": [[1.0], [2.0], [3.0]]}, group)
    assert _taken(out_of_range, DirectRows(TableRows(6)), range(7)) == {1: 3}


def test_a_number_must_fit_the_stored_type(tmp_path: Path) -> None:
    files = _files(tmp_path, {"id": [0, 1], "vector": [[1.0], [700.0]]})
    with pytest.raises(
        UserError, match=r"row 1: number 0 .* is 70000 when scaled by 100, .* 65504"
    ):
        _taken(files, DirectRows(TableRows(2)), range(3), Fit(100.0, 65504.0))
