"""What a model may ask of domains and labels, in the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prismrec.config import UserError
from prismrec.data.domains import Domains, domains_of
from prismrec.data.schema import Column
from prismrec.data.source import open_data
from prismrec.models import fields_of, spec_of
from tests.helpers.domain_model import SECTION
from tests.unit.data import small

TABS = [3, None, 0, 1, 2, 4, 9, -1]


def written(directory: Path, column: Column = Column(kind="id", num_ids=5)) -> Path:  # noqa: B008
    table = small.table(0, len(TABS)).append_column("tab", pa.array(TABS, pa.int8()))
    return small.write_table(directory, table, tab=column)


def chosen(**features: Any) -> dict[str, Any]:
    return {"model": SECTION, "features": {"domain": "tab", "dense": [], **features}}


def domains(directory: Path, **data: Any) -> list[int]:
    reader = small.reader(directory, global_batch_size=8, lanes=1, **data)
    (step,) = reader.epoch()
    return step[0].domain.tolist()


def test_a_row_of_no_domain_is_named_with_file_and_row(tmp_path: Path) -> None:
    directory = written(tmp_path)
    with pytest.raises(
        UserError,
        match=r"part-0.parquet: row group 0, row 1: column 'tab' names no domain, but the domains "
        r"are 0 to 4; correct the data, or let features.unknown_domain say",
    ):
        domains(directory, **chosen())
    only = {"splits": {"train": ["key != 1", "key != 7"]}}
    with pytest.raises(UserError, match="row group 0, row 6: column 'tab' names domain 9, but"):
        domains(directory, **chosen(), **only)


def test_an_unknown_domain_stands_for_all_that_are_none(tmp_path: Path) -> None:
    directory = written(tmp_path)
    assert domains(directory, **chosen(unknown_domain=2)) == [3, 2, 0, 1, 2, 4, 2, 2]
    inside = {"splits": {"train": ["key > 1", "key < 6"]}, "global_batch_size": 4}
    reader = small.reader(directory, **{**chosen(), "lanes": 1, **inside})
    assert next(reader.epoch())[0].domain.tolist() == [0, 1, 2, 4]


def test_nothing_is_checked_for_a_model_that_reads_no_domain(tmp_path: Path) -> None:
    found = domains(written(tmp_path), features={"domain": "tab"})
    assert found == [3, -1, 0, 1, 2, 4, 9, -1]


def test_a_model_knows_how_many_domains_there_are(tmp_path: Path) -> None:
    schema = open_data(written(tmp_path)).schema
    for model, count in ((SECTION, 5), ({"name": "dnn"}, 0)):
        recipe = small.recipe(tmp_path, **{**chosen(), "model": model})
        fields = fields_of(recipe, spec_of(recipe, schema))
        assert fields.num_domains == count
    assert domains_of(recipe, schema) is None
    assert domains_of(small.recipe(tmp_path, **chosen()), schema) == Domains("tab", 5, None)


def test_domains_have_to_be_counted(tmp_path: Path) -> None:
    uncounted = open_data(written(tmp_path, Column(kind="id"))).schema
    recipe = small.recipe(tmp_path, **chosen())
    with pytest.raises(
        UserError, match="features.domain: column 'tab' has no num_ids, and a model"
    ):
        domains_of(recipe, uncounted)
    other = open_data(written(tmp_path, Column(kind="number"))).schema
    with pytest.raises(UserError, match="column 'tab' of 'small' is of kind 'number', but 'id'"):
        domains_of(recipe, other)
    counted = open_data(written(tmp_path)).schema
    with pytest.raises(UserError, match="features.unknown_domain: the domains of column 'tab' are"):
        domains_of(small.recipe(tmp_path, **chosen(unknown_domain=5)), counted)


def test_recipes_that_name_no_domain_or_need_none_are_refused() -> None:
    with pytest.raises(
        UserError, match="features.domain: the model or the loss tells domains apart"
    ):
        small.recipe("x", model=SECTION)
    features = {"domain": "tab", "unknown_domain": 0}
    with pytest.raises(UserError, match="features.unknown_domain: neither the model nor the loss"):
        small.recipe("x", features=features)
    assert small.recipe("x", **chosen()).raw_columns == ["item", "tab"]
    assert small.recipe("x", features={"domain": "tab"}).raw_columns == ["item", "price"]
    with_tab = chosen(sparse=["tab", "item"])
    assert small.recipe("x", **with_tab).raw_columns == ["tab", "item"]


def chain(directory: Path, **data: Any) -> list[list[float]]:
    reader = small.reader(
        directory,
        global_batch_size=6,
        lanes=1,
        features={"dense": []},
        tasks=[{"name": name, "label": name} for name in ("click", "buy")],
        **data,
    )
    (step,) = reader.epoch()
    return step[0].labels.tolist()


def test_a_label_without_the_one_before_it_ends_the_run(tmp_path: Path) -> None:
    steps = small.table(0, 6)  # keys 0 and 3 are clicked
    known = steps.set_column(3, "click", pa.array([1, 0, None, 1, 0, 0], pa.int8()))
    for buys, wrong in (([1, 0, 1, 0, None, 0], None), ([1, 0, 0, 1, 1, 1], 4)):
        table = known.append_column("buy", pa.array(buys, pa.int8()))
        directory = small.write_table(tmp_path / str(wrong), table, buy=Column(kind="label"))
        loose = chain(directory, model={"name": "esmm", "strict_labels": False})
        assert loose == chain(directory, model={"name": "aitm"})
        if wrong is None:
            assert chain(directory, model={"name": "esmm"}) == loose
            continue
        with pytest.raises(
            UserError, match=f"row group 0, row {wrong}: label 'buy' is 1 and 'click' is 0, but the"
        ):
            chain(directory, model={"name": "esmm"})
