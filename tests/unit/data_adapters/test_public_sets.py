from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prismrec.config import UserError
from prismrec.data.adapters import PrepareOptions, prepare
from prismrec.data.adapters.census import FIELDS
from prismrec.data.adapters.vocabulary import Vocabulary
from tests.unit.data_adapters.reading import read

Real = Callable[[str, str], Path]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


def test_movielens_by_hand(source: Path, tmp_path: Path) -> None:
    (source / "ratings.dat").write_text("1::20::4::9\n2::10::3::5\n1::10::5::7\n")
    (source / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::07072-12\n")
    movies = "10::Cité: the film (1995)::Drama|Comedy\n20::Seven (a.k.a. Se7en) (1990)::Drama\n"
    (source / "movies.dat").write_bytes(movies.encode("latin1"))
    prepare("movielens", source, tmp_path / "out")
    got = read(tmp_path / "out").to_pydict()
    assert got["time"] == [5, 7, 9]
    assert got["user_id"] == [1, 0, 0]
    assert got["movie_id"] == [0, 0, 1]
    assert got["rating"] == [3, 5, 4]
    assert got["liked"] == [0, 1, 1]
    assert got["gender"] == [1, 0, 0]
    assert Vocabulary.read(tmp_path / "out", "zip").values.to_pylist() == ["07072-12", "48067"]
    assert Vocabulary.read(tmp_path / "out", "year").values.to_pylist() == [1990, 1995]
    assert got["genres"] == [[1, 0], [1, 0], [1]]  # Comedy 0, Drama 1
    (source / "movies.dat").write_text("10::No year::Drama\n")
    with pytest.raises(
        UserError, match=r"movies.dat: line 1 is not `MovieID::Title \(Year\)::Genres`"
    ):
        prepare("movielens", source, tmp_path / "other")
    (source / "movies.dat").unlink()
    with pytest.raises(UserError, match=r"no file 'movies.dat'"):
        prepare("movielens", source, tmp_path / "other")


def test_real_movielens(real: Real) -> None:
    rows = read(real("movielens", "ml-1m"))
    assert rows.num_rows == 1_000_209
    assert rows["liked"].to_numpy().mean() == pytest.approx(0.575, abs=5e-4)
    shares = np.bincount(rows["fold"].to_numpy()) / rows.num_rows
    assert shares == pytest.approx(np.full(10, 0.1), abs=2e-3)


def test_frappe_by_hand(source: Path, tmp_path: Path) -> None:
    header = "label,user,item,daytime,weekday,isweekend,homework,cost,weather,country,city\n"
    for split, user in (("train", 5), ("valid", 3), ("test", 4)):
        (source / f"{split}.csv").write_text(f"{header}1,{user},10,20,30,40,50,60,70,80,9{user}\n")
    schema = prepare("frappe", source, tmp_path / "out")
    got = read(tmp_path / "out").to_pydict()
    assert got["split"] == [0, 1, 2]
    assert got["user"] == [2, 0, 1]
    assert got["item"] == [0, 0, 0]
    assert got["city"] == [2, 0, 1]
    assert schema.columns["user"].num_ids == 3
    (source / "valid.csv.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(
        UserError, match=r"one file 'valid.csv' is needed, found valid.csv, valid.csv.gz"
    ):
        prepare("frappe", source, tmp_path / "other")


def test_real_frappe(real: Real) -> None:
    path = real("frappe", "frappe")
    rows = read(path)
    assert np.bincount(rows["split"].to_numpy()).tolist() == [202_027, 57_722, 28_860]
    distinct = [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]
    for name, count in zip(rows.column_names[2:], distinct, strict=True):
        values = Vocabulary.read(path, name).values.to_numpy()
        assert len(values) == count
        assert (values == np.arange(values[0], values[0] + count)).all()  # re-based, none skipped


def _census(number: str, married: str, income: str, worker: str) -> str:
    known = {"age": number, "marital_stat": married, "income_50k": income, "class_worker": worker}
    numeric = ("wage_per_hour", "capital_gains", "capital_losses", "stock_dividends", "num_emp")
    known |= dict.fromkeys((*numeric, "weeks_worked"), "0") | {"unknown": "1700.09"}
    return ", ".join(known.get(name, "Same") for name in FIELDS) + "\n"


@pytest.mark.parametrize("published", [True, False])
def test_census_by_hand(source: Path, tmp_path: Path, published: bool) -> None:
    train = _census("73", "Widowed", "- 50000.", "Private") + _census(
        "9", "Never married", "50000+.", "?"
    )
    test = _census("20", "Divorced", "50000+.", "Local government")
    if published:
        (source / "census-income.data").write_text(train)
        (source / "census-income.test").write_text(test)
    else:
        header = ",".join(FIELDS) + "\n"
        (source / "census_train.csv").write_text(header + train.replace(", ", ","))
        (source / "census_test.csv.gz").write_bytes(gzip.compress((header + test).encode()))
    schema = prepare("census", source, tmp_path / "out")
    got = read(tmp_path / "out").to_pydict()
    assert got["split"] == [0, 0, 1]
    assert got["income_50k"] == [0, 1, 1]
    assert got["never_married"] == [0, 1, 0]
    assert got["age"] == [73, 9, 20]
    assert got["log1p_age"] == pytest.approx(np.log([74, 10, 21]))
    assert got["class_worker"] == [1, None, 0]  # "?" is missing
    assert got["marital_stat"] == ["Widowed", "Never married", "Divorced"]
    assert schema.columns["marital_stat"].kind == schema.columns["unknown"].kind == "other"
    assert len(schema.columns) == len(FIELDS) + 1 + 1 + 7  # never_married, split, log1p of 7


def test_real_census(real: Real) -> None:
    rows = read(real("census", "census"))
    split = rows["split"].to_numpy()
    assert np.bincount(split).tolist() == [199_523, 99_762]
    train = split == 0
    assert rows["income_50k"].to_numpy()[train].mean() == pytest.approx(0.062, abs=5e-4)
    assert rows["never_married"].to_numpy()[train].mean() == pytest.approx(0.433, abs=5e-4)


def _criteo(label: int, first: str, numbers: str = "2") -> str:
    return "\t".join([str(label), "-3", *[numbers] * 12, first, *["0000000a"] * 25]) + "\n"


def test_criteo_by_hand(source: Path, tmp_path: Path) -> None:
    lines = [
        _criteo(1, "68fd1e64"),
        _criteo(0, "ffffffff", ""),
        _criteo(0, ""),
        _criteo(1, "68fd1e64"),
    ]
    (source / "train.txt").write_text("".join(lines))
    (source / "test.txt").write_text("not read")
    seen: list[tuple[int, int]] = []
    options = PrepareOptions(min_count=2, progress=lambda done, total: seen.append((done, total)))
    schema = prepare("criteo", source, tmp_path / "out", options)
    got = read(tmp_path / "out").to_pydict()
    assert got["label"] == [1, 0, 0, 1]
    assert got["row"] == [0, 1, 2, 3]
    assert got["I1"] == [-3] * 4
    assert got["log1p_I1"] == pytest.approx([-np.log(4)] * 4)
    assert got["I2"] == [2, None, 2, 2]
    assert got["C1"] == [0, None, None, 0]  # seen once, and missing
    assert got["C2"] == [0, 0, 0, 0]
    assert schema.columns["C1"].num_ids == 1
    value = Vocabulary.read(tmp_path / "out", "C1").values[0].as_py()
    assert format(value, "08x") == "68fd1e64"
    size = sum(map(len, lines))
    assert seen == [(size, 2 * size), (2 * size, 2 * size)]
    everything = prepare("criteo", source, tmp_path / "all")
    assert everything.columns["C1"].num_ids == 2


def test_criteo_refuses_other_text(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file '\*.txt' or '\*.tsv'"):
        prepare("criteo", source, tmp_path / "out")
    (source / "readme.txt").write_text("x")
    with pytest.raises(UserError, match=r"no file 'train.txt'"):
        prepare("criteo", source, tmp_path / "out")
    (source / "train.txt").write_text("1\t2\n")
    with pytest.raises(
        UserError, match=r"train.txt: cannot be parsed: .*Expected 40 columns, got 2"
    ):
        prepare("criteo", source, tmp_path / "out")
    (source / "train.txt").write_text(_criteo(1, "green"))
    with pytest.raises(UserError, match=r"train.txt: C1: not a hash of 8 hexadecimal digits"):
        prepare("criteo", source, tmp_path / "out")


def test_real_criteo_equals_its_text(real: Real, raw: Callable[[str], Path]) -> None:
    path = real("criteo", "criteo")
    rows = read(path)
    lines = (raw("criteo") / "criteo_first10k.txt").read_text().splitlines()
    assert rows.num_rows == len(lines) == 10_000
    numbers = {n: Vocabulary.read(path, f"C{n}").values.to_pylist() for n in range(1, 27)}
    for at in range(0, 10_000, 1111):
        row, fields = rows.slice(at, 1).to_pylist()[0], lines[at].split("\t")
        back = [str(row["label"])]
        back += ["" if row[f"I{n}"] is None else str(int(row[f"I{n}"])) for n in range(1, 14)]
        for n in range(1, 27):
            number = row[f"C{n}"]
            back.append("" if number is None else format(numbers[n][number], "08x"))
        assert back == fields
