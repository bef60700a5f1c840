"""Data sets that are built: every row, every value and every place in the order, held against plain Python."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import UserError, load
from prismrec.data.building import build as building
from prismrec.data.building.build import Means, build_data, run_here
from prismrec.data.building.files import group_count
from prismrec.data.building.order import Keys, cut, group_order, overlap
from prismrec.data.building.plan import TimeSplits, load_plan
from prismrec.data.encode.numbers.statistics import read_statistics
from prismrec.data.fit_numbers import fit_numbers
from prismrec.data.lookup import filtered_tables
from prismrec.data.source import open_data
from prismrec.data.vocabulary import VocabularyFile, write_vocabularies
from tests.helpers import build_rows
from tests.helpers.source_tree import ROOT

HERE = Means(run_here, None, lambda title, done, total: None)


def rows_of(out: Path, columns: list[str]) -> pa.Table:
    return pa.concat_tables(filtered_tables(open_data(out), (), columns, "rows"))


def build(plan: Path, out: Path, overwrite: bool = False) -> dict[str, Any]:
    return build_data(load_plan(plan), out, HERE, overwrite)


def expected(table: pa.Table) -> list[dict[str, Any]]:
    """What the plan makes of the rows, in Python, row by row."""
    rows = sorted(table.to_pylist(), key=lambda each: (each["stamp"], each["row"]))
    item = {each["id"]: each for each in build_rows.items().to_pylist()}
    for each in rows:
        found = item.get(each["item"], {"brand": None, "price": None})
        each["brand"], each["price"] = found["brand"], found["price"]
    training = [each for each in rows if each["stamp"] < 80_000]
    users = Counter(each["user"] for each in training if each["user"] is not None)
    user = {u: n for n, u in enumerate(sorted(u for u, count in users.items() if count >= 5))}
    words = {w for each in training for w in [*each["seen"], each["brand"]] if w is not None}
    word = {w: n for n, w in enumerate(sorted(words))}
    return [
        {
            "row": each["row"],
            "user": user.get(each["user"]),
            "item": each["item"],
            "seen": [word.get(w, -1) for w in each["seen"]],
            "brand": word.get(each["brand"]),
            "price": None if each["price"] is None else float(each["price"]),
            "amount": each["amount"],
            "bought": int(each["bought"]),
            "stamp": each["stamp"],
            "split": "train"
            if each["stamp"] < 80_000
            else "valid"
            if each["stamp"] < 90_000
            else "test",
        }
        for each in rows
    ]


def check(out: Path, table: pa.Table) -> None:
    wanted = expected(table)
    names = list(wanted[0])
    # files are read by name: test, train, valid
    built = sorted(
        rows_of(out, names[:-1]).to_pylist(), key=lambda each: (each["stamp"], each["row"])
    )
    for mine, theirs in zip(built, wanted, strict=True):
        assert {k: repr(v) for k, v in mine.items()} == {
            k: repr(v) for k, v in theirs.items() if k != "split"
        }
    for split in ("train", "valid", "test"):
        here = pq.ParquetFile  # files of one split, in the order of their names
        parts = [here(path).read() for path in sorted((out / f"split={split}").glob("*.parquet"))]
        rows = [row for part in parts for row in part["row"].to_pylist()]
        assert rows == [each["row"] for each in wanted if each["split"] == split]


@pytest.mark.parametrize("in_order", [False, True])
def test_every_row_and_value_is_as_in_plain_python(tmp_path: Path, in_order: bool) -> None:
    table = build_rows.log(in_order=in_order)
    plan = build_rows.write(tmp_path, table)
    document = build(plan, tmp_path / "out")
    check(tmp_path / "out", table)
    assert document["sorted"] is not in_order
    assert document["rows"] == build_rows.ROWS
    assert document["splits"] == Counter(each["split"] for each in expected(table))
    (join,) = document["joins"]
    unmatched = sum(each["price"] is None for each in expected(table))
    assert (join["how"], join["unmatched"]) == ("broadcast", unmatched)
    assert (
        open_data(tmp_path / "out").schema.columns["user"].num_ids
        == document["vocabularies"]["user"]
    )
    words = pq.read_table(tmp_path / "out/_vocabulary/word.parquet")
    assert words["value"].to_pylist() == sorted(words["value"].to_pylist())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["items", "log", "out", "shop.toml"]


def test_without_a_time_rows_stay_in_their_order(tmp_path: Path) -> None:
    table = build_rows.log()
    plan = build_rows.write(tmp_path, table)
    text = plan.read_text().partition("[splits]")[0].replace('stamp = { kind = "time" }\n', "")
    plan.write_text(text)
    assert build(plan, tmp_path / "out")["sorted"] is False
    assert rows_of(tmp_path / "out", ["row"])["row"].to_pylist() == list(range(build_rows.ROWS))


def test_what_a_recipe_needs_equals_what_the_commands_write(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log())
    out = tmp_path / "out"
    (tmp_path / "shop_recipe.toml").write_text(RECIPE.format(out=out))
    plan.write_text(f'recipe = "{tmp_path}/shop_recipe.toml"\n' + plan.read_text())
    document = build(plan, out)
    recipe, source = load(tmp_path / "shop_recipe.toml"), open_data(out)
    assert (out / "_fitted/numbers.json").read_text() == (
        fit_numbers(recipe, source).model_dump_json(indent=1) + "\n"
    )
    alone = VocabularyFile(("item",), tmp_path / "alone.parquet")
    write_vocabularies(source, [alone], recipe.data.splits.train)
    assert (out / "_fitted/item.parquet").read_bytes() == alone.out.read_bytes()
    assert document["fitted"] == {
        "item": f"{out}/_fitted/item.parquet",
        "statistics": f"{out}/_fitted/numbers.json",
    }


RECIPE = """
name = "shop"
[data]
path = "{out}"
[data.splits]
train = ["split == 'train'"]
[features]
sparse = ["user", "item"]
numbers = ["amount", {{ name = "dear", column = "price", encoding = "log_bucket" }}]
statistics = "{out}/_fitted/numbers.json"
[embedding.tables.item.ids]
kind = "vocabulary"
path = "{out}/_fitted/item.parquet"
[model]
name = "dcnv2"
[[tasks]]
name = "buy"
label = "bought"
"""


def test_a_recipe_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log())
    recipe = tmp_path / "shop_recipe.toml"
    recipe.write_text(RECIPE.format(out=tmp_path / "other"))
    plan.write_text(f'recipe = "{recipe}"\n' + plan.read_text())
    with pytest.raises(UserError, match=r"reads .*/other, but .*/out is built; set its data.path"):
        build(plan, tmp_path / "out")
    recipe.write_text(RECIPE.format(out=tmp_path / "out").replace("out/_fitted/numbers", "numbers"))
    with pytest.raises(
        UserError, match=r"names .*numbers.json; a file that is built with the data"
    ):
        build(plan, tmp_path / "out")


def test_a_recipe_that_needs_nothing_fitted_is_told_why(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log())
    recipe = tmp_path / "shop_recipe.toml"
    text = RECIPE.format(out=tmp_path / "out")
    words, rest = text.partition("[embedding.tables")[0], text[text.index("[model]") :]
    plain = re.sub(r"numbers = .*", 'dense = ["amount"]', words) + rest
    plan.write_text(f'recipe = "{recipe}"\n' + plan.read_text())
    recipe.write_text(plain)
    with pytest.raises(
        UserError,
        match=r"shop_recipe.toml names no vocabulary, and none of its numbers has an encoding "
        r"that needs statistics; leave `recipe` out",
    ):
        build(plan, tmp_path / "out")
    recipe.write_text(re.sub(r"statistics = .*", "", plain))
    with pytest.raises(UserError, match=r"names no vocabulary and no statistics; leave `recipe`"):
        build(plan, tmp_path / "out")


def test_the_page_holds_all_that_its_build_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/preparing.md").read_text()
    for name in ("shop.toml", "shop_recipe.toml"):
        shown = re.search(
            rf"`{name}`[^\n]*:\n\n```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE
        )
        assert shown is not None, name
        Path(name).write_text(shown[1])
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(program, {})  # noqa: S102 - the page's own
    document = build(Path("shop.toml"), Path("out/shop"))
    assert document["fitted"] == {"statistics": "out/shop/_fitted/numbers.json"}
    assert document["splits"] == {"train": 16_000, "valid": 2_000, "test": 2_000}
    assert set(read_statistics(load(Path("shop_recipe.toml")))) == {"price"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("user", "amount"),
            r"columns.user: 'amount' has type double; ids are given to text or whole",
        ),
        (("bought", "user"), r"columns.bought: 'user' is text, kind is 'label'; correct its kind"),
        (("seen", "user"), r"columns.seen: kind 'ids' does not go with type string of 'user'"),
        (
            ("price", "item_prise"),
            r"columns.price: neither .* 'item_prise'; did you mean 'item_price'",
        ),
    ],
)
def test_columns_that_do_not_fit_are_told_before_anything_is_written(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    plan = build_rows.write(tmp_path, build_rows.log(100))
    name, source = change
    lines = plan.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"{name} = {{"):
            kind = line.partition(", source")[0].rstrip(" }")
            lines[number] = f'{kind}, source = "{source}" }}'
    plan.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        build(plan, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "shop"', 'name = "shop"\nrow = "x"', r"- row: unknown key; did you mean 'rows'"),
        (
            "min_count = 5",
            "min_count = 0",
            r"vocabularies.user.min_count: must be >= 1, got 0",
        ),
        (
            'kind = "label"',
            'kind = "lable"',
            r"columns.bought.kind: must be one of 'id', .*, got 'lable'",
        ),
        (
            'prefix = "item_"',
            'prefx = "item_"',
            r"- joins\[0\].prefx: unknown key; did you mean 'prefix'",
        ),
        ("[vocabularies.user]", "[vocabularies.users]", r"vocabularies.users: no column .*'user'"),
        (
            'on = "item"',
            'on = "itm"',
            r"joins\[0\].on: the rows have no column 'itm'; did you mean 'item'",
        ),
        (
            "valid_from = 80_000",
            "valid = 0.1",
            r"splits: give either valid_from and test_from, or valid",
        ),
        (
            "valid_from = 80_000",
            "valid_from = 99_000",
            r"valid_from = 99000 must be before test_from",
        ),
        (
            "test_from = 90_000",
            "test_from = 900_000",
            r"no row would be in 'test', which starts at 900000",
        ),
        (
            'kind = "label"',
            'kind = "label", num_ids = 2',
            r"columns.bought: num_ids belongs to the kinds",
        ),
        ('prefix = "item_"', 'prefix = ""\nhow = "shuffle"', r"columns.brand: neither"),
        (
            'stamp = { kind = "time" }',
            'stamp = { kind = "time", source = "item_price" }',
            r"columns.stamp: .* 'item_price' comes from a joined table; name a column of the rows",
        ),
        (
            'on = "item"',
            'on = "item_price"',
            r"joins\[0\].on: 'item_price' is no column of the rows or of a table joined before; put",
        ),
        (
            'prefix = "item_"',
            'prefix = "item_"\nhow = "shuffle"',
            r"to be shuffled .*needs Ray; leave",
        ),
        (
            'key = "id"',
            'key = "brand"',
            r"'item' of the rows has type int32 and 'brand' .* string; keys",
        ),
        ('stamp = { kind = "time" }', "", r"splits: rows are parted by time; name the column"),
    ],
)
def test_mistakes_of_a_plan(tmp_path: Path, old: str, new: str, message: str) -> None:
    plan = build_rows.write(tmp_path, build_rows.log(100))
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        build(plan, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log(100))
    twice = pa.concat_tables([build_rows.items(), build_rows.items().slice(3, 1)])
    pq.write_table(twice, tmp_path / "items" / "items.parquet")
    with pytest.raises(
        UserError, match=r"joins\[0\]: .*items has more than one row for id = 36; keep"
    ):
        build(plan, tmp_path / "out")


def test_a_row_without_a_time_is_refused(tmp_path: Path) -> None:
    table = build_rows.log(100)
    stamps = pa.array([None, *table["stamp"].to_pylist()[1:]], pa.int64())
    plan = build_rows.write(
        tmp_path, table.set_column(table.column_names.index("stamp"), "stamp", stamps)
    )
    with pytest.raises(
        UserError, match=r"a.parquet.*column 'stamp' of kind 'time' is null in 1 rows.*; give them"
    ):
        build(plan, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("kind", ["number", "label"])
def test_a_timestamp_is_no_number(tmp_path: Path, kind: str) -> None:
    table = build_rows.log(100).append_column("when", pa.array(range(100), pa.timestamp("ms")))
    plan = build_rows.write(tmp_path, table)
    text = plan.read_text().replace("amount = {", f'when = {{ kind = "{kind}" }}\namount = {{')
    plan.write_text(text)
    with pytest.raises(
        UserError, match=rf"columns.when: 'when' has type timestamp\[ms\].*kind '{kind}'"
    ):
        build(plan, tmp_path / "out")


def test_keys_may_be_wider_than_those_of_the_table(tmp_path: Path) -> None:
    table = build_rows.log()
    wide = table["item"].cast(pa.int64()).to_numpy().copy()
    wide[wide >= build_rows.ITEMS] += 2**31  # those that no table has
    plan = build_rows.write(tmp_path, table.set_column(2, "item", pa.array(wide)))
    plan.write_text(plan.read_text().replace("num_ids = 100", 'vocabulary = "item"'))
    narrow = build_rows.items().cast(
        pa.schema([("id", pa.int32()), ("brand", pa.string()), ("price", pa.int64())])
    )
    pq.write_table(narrow, tmp_path / "items" / "items.parquet")
    (join,) = build(plan, tmp_path / "out")["joins"]
    assert join["unmatched"] == int((wide >= 2**31).sum()) > 0


def test_a_wrong_value_in_the_last_row_leaves_the_data_set_that_was_there(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log())
    build(plan, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    table = pq.read_table(tmp_path / "log/b.parquet")
    bought = [*table["bought"].to_pylist()[:-1], None]
    numbers = pa.array([None if each is None else int(each) for each in bought])
    wrong = table.set_column(5, "bought", pa.array([*numbers.to_pylist()[:-1], 7]))
    pq.write_table(wrong, tmp_path / "log/b.parquet", row_group_size=500)
    first = pq.read_table(tmp_path / "log/a.parquet")
    as_int = first.set_column(5, "bought", first["bought"].cast(pa.int64()))
    pq.write_table(as_int, tmp_path / "log/a.parquet", row_group_size=500)
    with pytest.raises(UserError, match=r"a data set lies here already"):
        build(plan, tmp_path / "out")
    with pytest.raises(UserError, match=r"log: column 'bought' holds 7; a label is 0, 1 or null"):
        build(plan, tmp_path / "out", overwrite=True)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after == before
    assert not list(tmp_path.glob("out.*"))


def test_a_file_that_is_cut_off_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log())
    path = tmp_path / "log/b.parquet"
    content = bytearray(path.read_bytes())
    content[100:3000] = os.urandom(2900)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"b.parquet: row group 0: cannot be decoded"):
        build(plan, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_shares_part_rows_by_time(tmp_path: Path) -> None:
    plan = build_rows.write(tmp_path, build_rows.log())
    text = plan.read_text().partition("[splits]")[0] + "[splits]\nvalid = 0.2\ntest = 0.1\n"
    plan.write_text(text)
    assert build(plan, tmp_path / "out")["splits"] == {"train": 4200, "valid": 1200, "test": 600}


@pytest.mark.parametrize(
    ("times", "rows"), [((80_000, 98_967), 2), ((98_000, 98_020), 2), ((None, 98_967), 2)]
)
def test_a_split_of_few_rows_beside_the_sample_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: tuple[int | None, int], rows: int
) -> None:
    monkeypatch.setattr(building, "SAMPLE_ROWS", 16)
    table = build_rows.log()
    stamps = table["stamp"].to_numpy()
    valid, test = times
    edges = [0, *(each for each in times if each is not None), 10**6]
    names = ["train", "valid", "test"] if valid is not None else ["train", "test"]
    wanted = dict(zip(names, np.histogram(stamps, edges)[0].tolist(), strict=True))
    assert rows in wanted.values()
    plan = build_rows.write(tmp_path, table)
    text = plan.read_text().partition("[splits]")[0] + f"[splits]\ntest_from = {test}\n"
    plan.write_text(text + (f"valid_from = {valid}\n" if valid is not None else ""))
    assert build(plan, tmp_path / "out")["splits"] == wanted
    plan.write_text(plan.read_text().replace(f"test_from = {test}", "test_from = 98968"))
    with pytest.raises(UserError, match=r"'test', which starts at 98968; the times are 0 to 98967"):
        build(plan, tmp_path / "again")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cuts_give_every_row_one_bucket_in_order(data: st.DataObject) -> None:
    times = np.array(data.draw(st.lists(st.integers(-3, 30), min_size=1, max_size=200)), np.int64)
    keys = Keys(times, np.arange(len(times)))
    size = data.draw(st.integers(1, 50))
    starts = range(0, len(times), size)
    groups = [group_order(keys.take(slice(n, n + size)), n, 1) for n in starts]
    cuts = cut(groups, None, data.draw(st.integers(1, 300)))
    found = cuts(keys)
    order = np.lexsort((keys.rows, keys.times))
    assert (np.diff(found[order]) >= 0).all()
    by_hand = [
        sum((b, r) <= (t, n) for b, r in zip(cuts.bounds.times, cuts.bounds.rows, strict=True))
        for t, n in zip(keys.times, keys.rows, strict=True)
    ]
    assert found.tolist() == by_hand


def test_buckets_are_of_the_size_that_was_asked_for() -> None:
    keys = Keys(np.random.default_rng(0).integers(0, 10**6, 100_000), np.arange(100_000))
    groups = [group_order(keys.take(slice(n, n + 10_000)), n, 1) for n in range(0, 100_000, 10_000)]
    sizes = np.bincount(cut(groups, TimeSplits(test=0.1), 5_000)(keys))
    assert len(sizes) == 20
    assert sizes.min() > 4_900
    assert sizes.max() < 5_100
    assert [group_count(n * 2**20, 96 * 2**20) for n in (90, 128, 129, 300)] == [1, 1, 2, 4]


def test_rows_in_order_are_read_about_once() -> None:
    keys = Keys(np.arange(100_000) // 3, np.arange(100_000))
    groups = [group_order(keys.take(slice(n, n + 1_000)), n, 4) for n in range(0, 100_000, 1_000)]
    assert overlap(groups, cut(groups, None, 5_300)) <= 1.1
    assert overlap(groups[::-1], cut(groups, None, 5_300)) <= 1.2
    mixed = Keys(np.random.default_rng(0).permutation(100_000), keys.rows)
    many = [group_order(mixed.take(slice(n, n + 1_000)), n, 4) for n in range(0, 100_000, 1_000)]
    assert overlap(many, cut(many, None, 5_000)) > building._MOST_READ


@pytest.mark.parametrize("rows", [160, 190, 249, 251, 333, 349, 651])
def test_cuts_that_meet_row_groups_of_the_source_keep_the_size(rows: int) -> None:
    keys = Keys(np.zeros(rows * 100, np.int64), np.arange(rows * 100))
    starts = [0, *np.cumsum(np.random.default_rng(rows).integers(300, 3_000, 400)).tolist()]
    ends = [*starts[1:], rows * 100]
    groups = [
        group_order(keys.take(slice(a, b)), a, 7)
        for a, b in zip(starts, ends, strict=True)
        if a < rows * 100
    ]
    sizes = np.bincount(cut(groups, None, 10_000)(keys))
    assert sizes.min() >= 10_000 * 64 / 96 - 20
    assert sizes.max() <= 10_000 * 128 / 96 + 20
