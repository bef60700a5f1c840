"""What a run starts with: another run's weights, or vectors of files, bit for bit, on 1 and 2 ranks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from prismrec.checkpoint import CheckpointReader, row_owners
from prismrec.checkpoint.exchange import export_tables
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import Recipe, UserError
from prismrec.data.encode.ids import NULL_ID
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import (
    Start,
    Trained,
    alone,
    make_recipe,
    train_each,
    train_one,
    write_rows,
)

SOURCE_ITEMS = [4, 9, 2, 11, 24, 7]
TARGET_ITEMS = [11, 3, 4, 24, 5]
SOURCE = (
    "train.steps=12",
    "train.ema_decay=0.5",
    "embedding.tables.tags.rows=10",
    "tasks=[{name='click',label='click'}]",
)
TARGET = (
    "embedding.sets=[{name='broad',dim=8,init_std=0.1},{name='narrow',dim=4,init_std=0.1},"
    "{name='extra',dim=4,init_std=0.1}]",
    "embedding.layout='separate'",
    "embedding.tables.user={rows=45, sharding='row_wise'}",
    "embedding.tables.tags={rows=7, sharding='column_wise'}",
    "train.ema_decay=0.5",
    "tasks=[{name='click',label='click'}]",
)
"""Two sets of another run, one under another name, and a third; more users, fewer tags, other items."""
ROW_WISE = (
    "embedding.optimizer={name='rowwise_adagrad', learning_rate=0.02}",
    "embedding.layout='separate'",
    "embedding.sharding='row_wise'",
)
MANAGED = "embedding.tables.item={rows=16, ids={kind='managed', interval=3}}"
WIDER = (
    "embedding.sets=[{name='wide',dim=8,init_std=0.1},{name='narrow',dim=4,init_std=0.1},"
    "{name='extra',dim=4,init_std=0.1}]"
)
KINDS = (
    "embedding.tables.user.sharding='row_wise'",
    "embedding.tables.tags.sharding='column_wise'",
)


def _vocabulary(path: Path, ids: Sequence[int]) -> str:
    table = {"id": pa.array(ids), "count": pa.array(range(len(ids), 0, -1), pa.int64())}
    fields = [pa.field(name, pa.int64(), nullable=False) for name in table]
    pq.write_table(pa.table(table, schema=pa.schema(fields)), path)
    return f"embedding.tables.item.ids={{kind='vocabulary', path='{path}'}}"


def _stopped(directory: Path) -> Path:
    """A run's directory in which it is asked to stop before its first step, and saves that."""
    directory.mkdir()
    (directory / "stop").write_text("SIGTERM")
    return directory


def _read(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: tables and their state by `table/set/name`, dense by name."""
    with CheckpointReader(checkpoint) as reader:
        found = {
            f"{key}/{name}": reader.table(*key.split("/"), name)
            for key, entry in reader.manifest.tables.items()
            for name in entry.tensors
        }
        for which in ("dense", "dense_optimizer", "ema"):
            found |= {f"{which}:{name}": each for name, each in reader.dense(which).items()}
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="module")
def source(data: Path) -> Trained:
    """The run that others start from."""
    items = _vocabulary(data.parent / "source.parquet", SOURCE_ITEMS)
    (run,) = alone([Start(make_recipe(data, *SOURCE, items), data.parent / "source")])
    return run


@pytest.fixture(scope="module")
def row_wise(data: Path) -> Trained:
    """A run with one number of state for a row."""
    (run,) = alone([Start(make_recipe(data, *SOURCE, *ROW_WISE), data.parent / "row_wise")])
    return run


@pytest.fixture(scope="module")
def given(data: Path) -> Trained:
    """A run whose ids were given their rows as they came."""
    (run,) = alone([Start(make_recipe(data, *SOURCE, MANAGED), data.parent / "given")])
    return run


class Pairs(NamedTuple):
    """Runs on two ranks by name, and what each rank said of one that could not be."""

    runs: dict[str, Trained]
    messages: tuple[str, ...]


@pytest.fixture(scope="module")
def pairs(data: Path, source: Trained, row_wise: Trained, given: Trained) -> Pairs:
    """Every run on two ranks, each stopped before its first step."""
    items = _vocabulary(data.parent / "target.parquet", TARGET_ITEMS)
    files = _files(data.parent)
    recipes = {
        "warm": _warm(data, source),
        "cold": make_recipe(data, *TARGET, items),
        "row_wise": make_recipe(data, *SOURCE, *ROW_WISE, _from(row_wise, "strict=true")),
        "given": make_recipe(data, *SOURCE, MANAGED, WIDER, _from(given)),
        "given_cold": make_recipe(data, *SOURCE, MANAGED, WIDER),
        "filled": make_recipe(data, *files, *KINDS),
        "replicated": make_recipe(
            data, *files, "embedding.sharding='data_parallel'", "embedding.layout='separate'"
        ),
        "plain": make_recipe(data),
    }
    starts = [Start(each, _stopped(data.parent / f"2-{name}")) for name, each in recipes.items()]
    _vectors(data.parent / "twice.parquet", [1, 2, 1], 8, 1)  # id 1 lies on the first rank only
    twice = make_recipe(data, *KINDS, _filled("user", "wide", data.parent / "twice.parquet"))
    found = run_ranks(_train_and_fail, 2, starts, Start(twice, data.parent / "2-twice"))
    trained, messages = zip(*found, strict=True)
    return Pairs(dict(zip(recipes, trained[0], strict=True)), messages)


def _train_and_fail(starts: Sequence[Start], wrong: Start) -> tuple[list[Trained], str]:
    """Train every start, then one that cannot be; what that says on this rank."""
    trained = train_each(starts)
    with pytest.raises(UserError) as error:
        train_one(wrong)
    return trained, error.value.message


def _warm(data: Path, source: Trained, *overrides: str) -> Recipe:
    items = _vocabulary(data.parent / "target.parquet", TARGET_ITEMS)
    warm = f"train.warm_start={{source='{source.checkpoint}', sets={{broad='wide'}}, optimizer_state=true}}"
    return make_recipe(data, *TARGET, items, warm, *overrides)


def _filled(table: str, set_name: str, path: Path) -> str:
    return f"embedding.tables.{table}.pretrained=[{{set='{set_name}', path='{path}'}}]"


def _from(source: Trained, more: str = "strict=false") -> str:
    return f"train.warm_start={{source='{source.checkpoint}', optimizer_state=true, {more}}}"


def _counterparts(table: str) -> list[tuple[int, int]]:
    """Rows here and rows there that stand for the same id, the unknown row last."""
    if table == "item":
        pairs = [(TARGET_ITEMS.index(i), SOURCE_ITEMS.index(i)) for i in (11, 4, 24)]
        return [*pairs, (len(TARGET_ITEMS), len(SOURCE_ITEMS))]
    ours, theirs = {"user": (45, 40), "tags": (7, 10)}[table]
    return [*((row, row) for row in range(min(ours, theirs))), (ours, theirs)]


def _check_tables(
    started: dict[str, Tensor], drawn: dict[str, Tensor], other: dict[str, Tensor]
) -> None:
    """Rows with a counterpart are the other run's, the rest as drawn; so is their optimizer state."""
    for table in ("user", "item", "tags"):
        for ours, theirs in (("broad", "wide"), ("narrow", "narrow"), ("extra", None)):
            for name in ("weight", "accumulator"):
                expected = drawn[f"{table}/{ours}/{name}"].clone()
                for here, there in _counterparts(table) if theirs else ():
                    expected[here] = other[f"{table}/{theirs}/{name}"][there]
                assert torch.equal(started[f"{table}/{ours}/{name}"], expected), (table, ours, name)


def test_a_run_starts_with_another_runs_weights(data: Path, source: Trained, pairs: Pairs) -> None:
    (one,) = alone([Start(_warm(data, source), _stopped(data.parent / "1-warm"))])
    other, drawn = _read(source.checkpoint), _read(pairs.runs["cold"].checkpoint)
    for run in (one, pairs.runs["warm"]):
        assert run.steps == 0
        started = _read(run.checkpoint)
        _check_tables(started, drawn, other)
        dense = [name for name in started if ":" in name]
        equal = [n for n in dense if n in other and other[n].shape == started[n].shape]
        assert 10 < len(equal) < len(dense)
        for name in dense:
            if name in equal:
                assert torch.equal(started[name], other[name]), name
            elif not name.startswith("ema"):
                assert torch.equal(started[name], drawn[name]), name
        with CheckpointReader(run.checkpoint) as reader:  # by which Adam corrects its bias
            assert reader.manifest.extra["steps_before"] == 12
    directories = [data.parent / name for name in ("1-warm", "2-warm", "2-cold")]
    facts = [json.loads((each / "run.json").read_text()) for each in directories]
    assert facts[0]["warm_start"] == facts[1]["warm_start"]
    text = (directories[1] / "matched.txt").read_text()
    _check_report(facts[1]["warm_start"], pairs.runs["warm"], text)
    assert "warm_start" not in facts[2]
    assert not (directories[2] / "matched.txt").exists()


def _check_report(report: dict[str, object], run: Trained, text: str) -> None:
    listed = list(report["matches"])  # type: ignore[call-overload]
    matches = {(each["kind"], each["name"]): each for each in listed if each["name"]}
    unused = [each["source"] for each in listed if not each["name"]]
    assert unused == []

    def numbers(kind: str, name: str) -> tuple[object, ...]:
        match = matches[kind, name]
        return match["source"], match["matched"], match["here"], match["there"], match["note"]

    assert numbers("table", "user/broad") == ("user/wide", 41, 46, 41, "")
    assert numbers("table", "item/narrow") == ("item/narrow", 4, 6, 7, "")
    assert numbers("table", "tags/narrow") == ("tags/narrow", 8, 8, 11, "")
    assert numbers("table", "user/extra") == ("", 0, 46, 0, "the other run has no user/extra")
    assert numbers("table state", "user/broad/accumulator") == (
        "user/wide/accumulator", 41, 46, 41, ""
    )  # fmt: skip
    kinds = [kind for kind, _ in matches]
    assert {"dense", "dense state"} < set(kinds)
    wrong = [each for each in matches.values() if each["matched"] == 0 and not each["note"]]
    assert wrong == []
    assert run.log["warm_start/user/broad/share_of_rows"] == {0: 41 / 46}
    assert run.log["warm_start/item/narrow/share_of_source"] == {0: 4 / 7}
    assert 0 < run.log["warm_start/dense/share_of_numbers"][0] < 1
    line = next(line for line in text.splitlines() if line.startswith("user/broad "))
    assert line.split() == ["user/broad", "user/wide", "41", "46", "41"]
    line = next(line for line in text.splitlines() if line.startswith("user/narrow "))
    assert line.split() == ["user/narrow", "same", "41", "46", "41"]


def test_a_resumed_run_does_not_start_again(data: Path, source: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source.checkpoint, copy)
    whole = f"train.warm_start={{source='{copy}', strict=true}}"
    items = _vocabulary(tmp_path / "v", SOURCE_ITEMS)
    recipe = make_recipe(data, *SOURCE, items, whole, "train.steps=3")
    (first,) = alone([Start(recipe, tmp_path / "run")])
    assert first.log["warm_start/dense/share_of_numbers"] == {0: 1.0}
    shutil.rmtree(copy)
    longer = make_recipe(data, *SOURCE, items, whole, "train.steps=5")
    (second,) = alone([Start(longer, tmp_path / "run", "second")])
    assert second.steps == 5
    with CheckpointReader(second.checkpoint) as reader:
        assert reader.manifest.extra["steps_before"] == 0  # only weights were taken
    assert not any(name.startswith("warm_start") for name in second.log)


def test_what_does_not_fit_is_refused(data: Path, source: Trained, tmp_path: Path) -> None:
    def refused(recipe: Recipe, message: str) -> None:
        with pytest.raises(UserError, match=message):
            alone([Start(recipe, tmp_path / "run")])
        shutil.rmtree(tmp_path / "run")

    refused(
        _warm(data, source, "train.warm_start.strict=true"),
        r"strict: not everything has a match in .*: user/broad \(41 of 46\).*user/extra \(0 of 46, "
        "the other run has no user/extra",
    )
    refused(
        _warm(data, source, "train.warm_start.tables={users='user'}"),
        "train.warm_start.tables: this run has no 'users'; did you mean 'user'",
    )
    refused(
        _warm(data, source, "train.warm_start.sets={broad='wild'}"),
        "train.warm_start.sets.broad: the other run has no 'wild'; did you mean 'wide'",
    )
    refused(
        _warm(data, source, f"train.warm_start.source='{tmp_path}'"),
        "train.warm_start.source: .*neither a checkpoint nor the directory of a run",
    )


def test_tables_and_sets_can_be_left_out_or_crossed(
    data: Path, source: Trained, tmp_path: Path
) -> None:
    """A width that differs is listed, a table left out is not, and a row-wise state needs its like."""
    recipe = make_recipe(
        data,
        *SOURCE,
        "embedding.tables.item.rows=10",  # direct here, a vocabulary there: both know their ids
        "embedding.sets=[{name='wide',dim=12},{name='narrow',dim=4}]",
        "embedding.layout='separate'",
        "embedding.optimizer={name='rowwise_adagrad', learning_rate=0.02}",
        f"train.warm_start={{source='{source.checkpoint}', optimizer_state=true, dense=false}}",
        "train.warm_start.tables={user='', tags='item'}",
    )
    (run,) = alone([Start(recipe, _stopped(tmp_path / "run"))])
    started, other = _read(run.checkpoint), _read(source.checkpoint)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["warm_start"]["matches"]
    notes = {each["name"]: (each["matched"], each["note"]) for each in facts}
    assert notes["user/narrow"] == (0, "left out")
    assert notes["tags/wide"] == (0, "12 wide here, 8 wide there")
    assert notes["item/narrow"] == (5, "")  # ids 4, 9, 2 and 7, and the unknown row
    assert notes["tags/narrow"] == (5, "")
    assert "one number for a row in one of the runs" in notes["item/narrow/accumulator"][1]
    assert notes["user/wide"] == (0, "left out")
    for here, there in ((4, 0), (9, 1), (2, 2), (7, 5), (10, 6)):
        assert torch.equal(started["item/narrow/weight"][here], other["item/narrow/weight"][there])
        assert torch.equal(started["tags/narrow/weight"][here], other["item/narrow/weight"][there])
    assert not any(each["kind"].startswith("dense") for each in facts)
    unused = [each["source"] for each in facts if not each["name"]]
    assert unused == ["tags/narrow", "tags/wide", "user/narrow", "user/wide"]


def test_row_wise_state_comes_along(row_wise: Trained, pairs: Pairs) -> None:
    started, other = _read(pairs.runs["row_wise"].checkpoint), _read(row_wise.checkpoint)
    assert started.keys() == other.keys()
    assert all(torch.equal(started[name], other[name]) for name in other)
    assert float(other["user/wide/accumulator"].max()) > 0


def test_managed_ids_keep_their_rows(data: Path, given: Trained, pairs: Pairs) -> None:
    """On another number of ranks; a set that the other run lacks begins as for new ids."""
    run = pairs.runs["given"]
    started, other = _read(run.checkpoint), _read(given.checkpoint)
    assert all(torch.equal(started[n], other[n]) for n in other if n.startswith("item/"))
    with CheckpointReader(run.checkpoint) as ours, CheckpointReader(given.checkpoint) as theirs:
        owners = row_owners(ours, "item")
        assert torch.equal(owners, row_owners(theirs, "item"))
        seen, before = (
            reader.gather(
                reader.manifest.maps["item"].tensors["last_seen"], torch.arange(len(owners))
            )
            for reader in (ours, theirs)
        )
    is_owned = owners != NULL_ID
    assert 5 < int(is_owned.sum()) < 17
    assert torch.equal(seen[is_owned], before[is_owned] - 12)  # the other run made 12 steps
    extra = started["item/extra/weight"]
    assert (extra.abs().sum(1) > 0).tolist() == is_owned.tolist()
    assert float(_read(pairs.runs["given_cold"].checkpoint)["item/extra/weight"].abs().max()) == 0
    assert run.log["warm_start/item/wide/share_of_rows"] == {0: 1.0}


def test_a_direct_table_takes_the_rows_of_managed_ids(
    data: Path, given: Trained, tmp_path: Path
) -> None:
    recipe = make_recipe(data, *SOURCE, "embedding.tables.item.rows=25", _from(given))
    (run,) = alone([Start(recipe, _stopped(tmp_path / "run"))])
    started, other = _read(run.checkpoint), _read(given.checkpoint)
    with CheckpointReader(given.checkpoint) as reader:
        owners = row_owners(reader, "item").tolist()
    known = [(row, owner) for row, owner in enumerate(owners) if 0 <= owner < 25]
    assert len(known) > 5
    for row, owner in known:
        assert torch.equal(started["item/wide/weight"][owner], other["item/wide/weight"][row])
        state = started["item/narrow/accumulator"][owner]
        assert torch.equal(state, other["item/narrow/accumulator"][row])
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["warm_start"]["matches"]
    match = next(each for each in facts if each["name"] == "item/wide")
    assert match["matched"] == len(known) + 1  # and the row of missing ids


def _vectors(path: Path, ids: list[int | None], width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(len(ids), width)).astype(np.float32)
    table = {"id": pa.array(ids, pa.int64()), "vector": [row.tolist() for row in vectors]}
    pq.write_table(pa.table(table), path, row_group_size=8)
    return vectors


USERS = np.random.default_rng(1).permutation(60)[:30].tolist()
"""Some are none of the 40 users."""


def _files(directory: Path) -> tuple[str, str]:
    _vectors(directory / "user.parquet", [*USERS, None], 8, 1)
    _vectors(directory / "tags.parquet", [3, 0], 4, 2)
    return (
        f"embedding.tables.user.pretrained=[{{set='wide', path='{directory / 'user.parquet'}', scale=0.5}}]",
        f"embedding.tables.tags.pretrained=[{{set='narrow', path='{directory / 'tags.parquet'}'}}]",
    )


def test_sets_are_filled_from_files(data: Path, pairs: Pairs, tmp_path: Path) -> None:
    (one,) = alone(
        [Start(make_recipe(data, *_files(tmp_path), *KINDS), _stopped(tmp_path / "one"))]
    )
    expected = _read(pairs.runs["plain"].checkpoint)
    user_vectors = _vectors(tmp_path / "user.parquet", [*USERS, None], 8, 1)
    known = [(row, vector) for row, vector in zip(USERS, user_vectors, strict=False) if row < 40]
    for row, vector in [*known, (40, user_vectors[-1])]:
        expected["user/wide/weight"][row] = torch.from_numpy(vector) * 0.5
    tag_vectors = _vectors(tmp_path / "tags.parquet", [3, 0], 4, 2)
    expected["tags/narrow/weight"][[3, 0]] = torch.from_numpy(tag_vectors)
    for run in (pairs.runs["filled"], pairs.runs["replicated"], one):
        started = _read(run.checkpoint)
        assert all(torch.equal(started[name], expected[name]) for name in expected)
        assert run.log["pretrained/user/wide/share_of_rows"] == {0: (len(known) + 1) / 41}
        assert run.log["pretrained/user/wide/share_of_source"] == {0: (len(known) + 1) / 31}
        assert run.log["pretrained/tags/narrow/share_of_rows"] == {0: 2 / 13}
    directory = data.parent / "2-filled"
    facts = json.loads((directory / "run.json").read_text())["pretrained"]["matches"]
    assert facts[0]["note"] == f"{30 - len(known)} vectors of the file have no row"
    assert "tags/narrow" in (directory / "matched.txt").read_text()


def test_files_that_do_not_fit_are_refused(data: Path, tmp_path: Path) -> None:
    _vectors(tmp_path / "v.parquet", [1, 2, 1], 8, 1)

    def recipe(table: str, set_name: str, *overrides: str) -> Recipe:
        return make_recipe(data, _filled(table, set_name, tmp_path / "v.parquet"), *overrides)

    cases = [
        (recipe("user", "narrow"), "holds vectors of 8 numbers, but set 'narrow' is 4 wide"),
        (
            recipe(
                "tags",
                "narrow",
                "embedding.layout='separate'",
                "embedding.sets=[{name='wide',dim=8},{name='narrow',dim=4,features=['user']}]",
            ),
            "tables.tags.pretrained: the table has no set 'narrow'; known: 'wide'",
        ),
        (
            recipe("user", "wide"),
            r"v.parquet: row 2: column 'id': id 1 stands in the file a second",
        ),
        (
            recipe(
                "item", "wide", "embedding.tables.item.ids='hash'", "embedding.tables.item.rows=9"
            ),
            "tables.item.pretrained: ids of kind 'hash' have no rows of their own",
        ),
    ]
    for index, (each, message) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            alone([Start(each, tmp_path / f"run{index}")])


def test_what_one_rank_finds_ends_all_of_them(pairs: Pairs) -> None:
    assert pairs.messages[0] == pairs.messages[1]
    assert re.search(r"twice.parquet: row 2: column 'id': id 1 stands", pairs.messages[0])


def test_an_export_can_be_started_with(data: Path, source: Trained, tmp_path: Path) -> None:
    with CheckpointTables(source.checkpoint) as tables:
        export_tables(tables, tables.chosen("user", None), tmp_path / "out", lambda *_: None)
    names = ("wide", "narrow")
    entries = ", ".join(f"{{set='{n}', path='{tmp_path / 'out/user' / n}'}}" for n in names)
    recipe = make_recipe(data, f"embedding.tables.user.pretrained=[{entries}]")
    (run,) = alone([Start(recipe, _stopped(tmp_path / "run"))])
    started, other = _read(run.checkpoint), _read(source.checkpoint)
    for name in names:
        assert torch.equal(started[f"user/{name}/weight"], other[f"user/{name}/weight"])
        assert run.log[f"pretrained/user/{name}/share_of_rows"] == {0: 1.0}
