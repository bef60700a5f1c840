import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from prismrec.config import UserError
from prismrec.data.filters import count_rows, row_filter
from prismrec.data.schema import Column
from prismrec.data.source import DataSource, open_data
from tests.unit.data import small


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prismrec" / "counts"


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    rows = small.table(0, 20)
    rows = rows.append_column("page", pa.array(["feed", "it's"] * 10))
    rows = rows.append_column("new", pa.array([True, False, None, True] * 5))
    kinds = {"page": Column(kind="other"), "new": Column(kind="other")}
    return open_data(small.write_table(tmp_path / "data", rows, **kinds))


@pytest.mark.parametrize(
    ("conditions", "counts"),
    [
        ((), [7, 7, 6]),
        (("key >= 5",), [2, 7, 6]),
        (("key>=5", "key < 1_4"), [2, 7, 0]),
        (("key == 3",), [1, 0, 0]),
        (("key != 3",), [6, 7, 6]),
        (("price <= 3.5",), [7, 1, 0]),
        (("price > 1e1",), [0, 0, 0]),
        (("page == 'feed'",), [4, 3, 3]),
        (("page != 'feed'",), [3, 4, 3]),
        (("new == 1",), [3, 4, 3]),
        (("new != 1",), [2, 2, 1]),  # a null passes no condition
    ],
)
def test_rows_that_pass(source: DataSource, conditions: tuple[str, ...], counts: list[int]) -> None:
    assert count_rows(source, row_filter(conditions, source, "split")).tolist() == counts


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("prise > 1", "no column 'prise'; did you mean 'price'"),
        ("price = 1", "not of the form `column op literal`"),
        ("price", "not of the form `column op literal`"),
        ("price > cheap", "neither a number nor a string in single quotes"),
        ("price > 'cheap'", "the column has type float, which text is not compared with"),
        ("page > 3", "the column has type string, which a number is not compared with"),
    ],
)
def test_conditions_that_mean_nothing(source: DataSource, condition: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        row_filter((condition,), source, "data.splits.train")
    assert caught.value.message.startswith(f"data.splits.train: '{condition}'")


def test_counts_are_remembered_and_a_spoilt_memory_is_made_anew(
    source: DataSource, cache: Path
) -> None:
    rows = row_filter(("key >= 5",), source, "split")
    assert count_rows(source, rows).tolist() == [2, 7, 6]
    (file,) = cache.iterdir()
    file.write_text(json.dumps({"counts": [1, 7, 6]}))
    assert count_rows(source, rows).tolist() == [1, 7, 6]
    for spoilt in ("{", "[]", '{"counts": [1, 2]}', '{"counts": [9, 7, 6]}', '{"counts": "x"}'):
        file.write_text(spoilt)
        assert count_rows(source, rows).tolist() == [2, 7, 6]
        assert json.loads(file.read_text()) == {"counts": [2, 7, 6]}
