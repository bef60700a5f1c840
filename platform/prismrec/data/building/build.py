"""Building a data set: looks at the rows, cuts their order, writes the files, fits what a recipe needs.

Each step is work on single row groups or buckets, which a `Runner` does one by one in this process, or
on the machines of a cluster. The result does not depend on it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prismrec.config import UserError
from prismrec.data.adapters.vocabulary import ValueCounts, Vocabulary
from prismrec.data.building.files import (
    FileWritten,
    Scattered,
    Writing,
    gather,
    plan_files,
    scatter,
)
from prismrec.data.building.fit import check_paths, fit_recipe
from prismrec.data.building.order import (
    SAMPLE_ROWS,
    Cuts,
    GroupOrder,
    cut,
    group_order,
    overlap,
)
from prismrec.data.building.plan import ROW, BuildPlan
from prismrec.data.building.rows import Encoding, Rows, check_columns, columns_read, count_values
from prismrec.data.building.tables import OpenJoin, open_columns, open_joins
from prismrec.data.source import DataSource
from prismrec.data.write import group_rows, staged

_MOST_READ = 2.5
"""How often a row may be read at the most before rows are dealt out to buckets instead."""

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Found = TypeVar("Found")

Stages = Callable[[str, int, int], None]
"""Told what is done, how much of it and how much there is."""


class Runner(Protocol):
    """Does the same work on many items."""

    def __call__(
        self, work: Callable[[Shared, Item], Found], shared: Shared, items: Sequence[Item]
    ) -> Iterator[Found]:
        """What `work(shared, item)` gives for every item, in their order."""


class ShuffleJoin(Protocol):
    """Joins a table that is too large for every process to hold."""

    def __call__(self, rows: Rows, columns: list[str], join: OpenJoin, out: Path) -> None:
        """Write some columns of the rows and the joined ones to Parquet files, numbered by `__row`."""


@dataclass(frozen=True, slots=True)
class Means:
    """How a build does its work.

    Args:
        run: work on many items.
        shuffle: large joins, None if there is no way to do them.
        tell: told how far it is.
    """

    run: Runner
    shuffle: ShuffleJoin | None
    tell: Stages


def run_here(
    work: Callable[[Shared, Item], Found], shared: Shared, items: Sequence[Item]
) -> Iterator[Found]:
    """A `Runner` that works in this process."""
    return (work(shared, item) for item in items)


def build_data(plan: BuildPlan, out: Path, means: Means, overwrite: bool = False) -> dict[str, Any]:
    """Build a data set that appears at `out` whole or not at all.

    Args:
        plan: what is built.
        out: directory to make, where every process of the build can write.
        means: how the work is done.
        overwrite: replace a data set that lies at `out`.

    Returns:
        The document of `prismrec data build --json`: `rows`, `files`, `row_groups`, rows by `splits`,
        `joins` and how each was done, ids by `vocabularies`, whether rows were `sorted`, `fitted`
        files, and `seconds`.

    Raises:
        UserError: plan, rows, joined tables or recipe are wrong, or `out` is taken.
    """
    began = time.monotonic()
    source, joins = _opened(plan)
    check_paths(plan, out)
    with staged(out, overwrite) as stage:
        scratch = stage / "_scratch"
        scratch.mkdir()
        rows, done = _joined(plan, source, joins, scratch, means)
        groups = _looked_at(rows, means)
        encoding, cuts = _cut(rows, groups, means)
        writing = Writing(rows, cuts, encoding, stage, scratch)
        written, is_sorted = _write(writing, groups, means)
        encoding.schema().write(stage)
        for name, vocabulary in encoding.vocabularies.items():
            vocabulary.write(stage, name)
        shutil.rmtree(scratch)
        fitted = fit_recipe(plan, stage, out, means.run, means.tell)
    broadcast = [sum(each.misses[i] for each in written) for i in range(len(rows.lookups))]
    in_memory = iter(broadcast)
    return {
        "name": plan.name,
        "rows": sum(each.rows for each in written),
        "files": sum(each.rows > 0 for each in written),
        "row_groups": sum(each.groups for each in written),
        "splits": _by_split(written),
        "joins": [
            replace(each, unmatched=next(in_memory)).row()
            if each.how == "broadcast"
            else each.row()
            for each in done
        ],
        "vocabularies": {name: len(each) for name, each in encoding.vocabularies.items()},
        "sorted": is_sorted,
        "fitted": fitted,
        "seconds": round(time.monotonic() - began, 1),
    }


@dataclass(frozen=True, slots=True)
class JoinDone:
    """How a table was joined.

    Args:
        table: its path.
        how: `broadcast` or `shuffle`.
        why: in words.
        unmatched: rows whose key the table does not have; None where nobody counted.
    """

    table: str
    how: str
    why: str
    unmatched: int | None = None

    def row(self) -> dict[str, Any]:
        """Everything by name."""
        return asdict(self)


def _opened(plan: BuildPlan) -> tuple[DataSource, list[OpenJoin]]:
    """The rows and the joined tables, every column that is needed looked for."""
    taken = {name for join in plan.joins for name in join.taken}
    wanted = [*columns_read(plan), *(join.on for join in plan.joins)]
    own = [name for name in dict.fromkeys(wanted) if name not in taken]
    everything = open_columns(plan.rows, [], "rows")
    have = {field.name: field.type for field in everything.arrow(0)}
    joins = open_joins(plan, everything)
    types = dict(have)
    for each in joins:
        arrow = each.source.arrow(0)
        for name, column in zip(each.join.taken, each.join.columns, strict=True):
            types[name] = arrow.field(column).type
    check_columns(plan, types)
    if plan.time is not None and plan.read_from(plan.time) not in have:
        raise UserError(
            f"columns.{plan.time}: kind 'time' orders the rows before tables are joined, and "
            f"'{plan.read_from(plan.time)}' comes from a joined table; name a column of the rows"
        )
    return open_columns(plan.rows, own, "rows"), joins


def _joined(
    plan: BuildPlan, source: DataSource, joins: list[OpenJoin], scratch: Path, means: Means
) -> tuple[Rows, list[JoinDone]]:
    """Rows with their joined tables: small ones in memory, large ones written beside the rows."""
    rows, done = Rows(plan, source, ()), []
    columns = list(source.schema.columns)
    for number, each in enumerate(joins):
        how, why = _way(each, plan, means)
        if how == "broadcast":
            means.tell(f"Reading {each.join.path}", 0, 1)
            rows = replace(rows, lookups=(*rows.lookups, each.load()))
        else:
            if each.join.on not in columns:
                raise UserError(
                    f"{each.where}: '{each.join.on}' comes from a table that every process holds, and "
                    "rows cannot be shuffled by it; set how = 'shuffle' for that one too"
                )
            means.tell(f"Joining {each.join.path}", 0, 1)
            out = scratch / f"joined-{number}"
            out.mkdir()
            assert means.shuffle is not None
            means.shuffle(replace(rows, lookups=()), columns, each, out)
            columns += each.join.taken
            joined = open_columns(str(out), [*columns, ROW], "rows")
            if joined.num_rows != source.num_rows:
                raise UserError(
                    f"{each.where}: {each.join.path} has more than one row for some value of "
                    f"{each.join.key_column}; keep one of them, so that no row is doubled"
                )
            rows = replace(rows, source=joined)
        done.append(JoinDone(each.join.path, how, why))
    return rows, done


def _way(join: OpenJoin, plan: BuildPlan, means: Means) -> tuple[str, str]:
    """How a table is joined, and why."""
    mebibytes = join.size / 2**20
    if join.join.how != "auto":
        how, why = join.join.how, "the plan says so"
    elif mebibytes <= plan.broadcast_mib:
        return "broadcast", f"{mebibytes:.1f} MiB, at most {plan.broadcast_mib} fit every process"
    else:
        how, why = "shuffle", f"{mebibytes:.1f} MiB, more than {plan.broadcast_mib}"
    if how == "shuffle" and means.shuffle is None:
        raise UserError(
            f"{join.where}: {join.join.path} is to be shuffled ({why}), which needs Ray; leave out "
            "--no-ray, or set how = 'broadcast' where memory allows it"
        )
    return how, why


def _look(shared: tuple[Rows, int], group: int) -> GroupOrder:
    rows, stride = shared
    _, keys = rows.read(group, [])
    splits = rows.plan.splits
    return group_order(keys, rows.first_row(group), stride, splits.times if splits else ())


def _looked_at(rows: Rows, means: Means) -> list[GroupOrder]:
    """What the row groups hold of the order."""
    stride = max(1, -(-rows.source.num_rows // SAMPLE_ROWS))
    groups = range(len(rows.source.group_rows))
    return list(_told(means, "Looking at times", _look, (rows, stride), groups))


def _count(shared: tuple[Rows, int | None], group: int) -> dict[str, ValueCounts]:
    return count_values(shared[0], group, shared[1])


def _cut(rows: Rows, groups: list[GroupOrder], means: Means) -> tuple[Encoding, Cuts]:
    """What rows become, and where their order is cut."""
    plan, total = rows.plan, rows.source.num_rows
    cuts = cut(groups, plan.splits, max(total, 1))
    names = {each.vocabulary for each in plan.columns.values() if each.vocabulary}
    counts = {name: ValueCounts() for name in sorted(names)}
    if counts:
        every = range(len(rows.source.group_rows))
        for part in _told(means, "Counting values", _count, (rows, cuts.train_until), every):
            for name, counted in part.items():
                counts[name].join(counted)
    vocabularies: dict[str, Vocabulary] = {}
    for name, each in counts.items():
        options = plan.vocabularies.get(name)
        vocabularies[name] = each.vocabulary(options.min_count if options else 1)
        if not len(vocabularies[name]):
            raise UserError(
                f"vocabularies.{name}: no value is frequent enough in the training rows; lower "
                "min_count or correct the splits"
            )
    encoding = Encoding(plan, vocabularies)
    first = next(group for group, each in enumerate(groups) if each.num_rows)
    table, _ = rows.read(first, columns_read(plan))
    sample = encoding(rows.join(table)[0], rows.source.where(first))
    wanted = group_rows(sample, total, plan.row_group_mib * 2**20)
    return encoding, cut(groups, plan.splits, wanted)


def _write(
    writing: Writing, groups: list[GroupOrder], means: Means
) -> tuple[list[FileWritten], bool]:
    """Write all files; whether rows had to be dealt out to buckets for that."""
    scattered: list[Scattered] | None = None
    if overlap(groups, writing.cuts) > _MOST_READ:
        every = [group for group, each in enumerate(groups) if each.num_rows]
        scattered = list(_told(means, "Sorting", scatter, writing, every))
    files = plan_files(writing.cuts, [each.ends for each in groups], scattered)
    return list(_told(means, "Writing", gather, writing, files)), scattered is not None


def _told(
    means: Means,
    title: str,
    work: Callable[[Shared, Item], Found],
    shared: Shared,
    items: Sequence[Item],
) -> Iterator[Found]:
    """The results of some work, with somebody told how many there are."""
    means.tell(title, 0, len(items))
    for done, found in enumerate(means.run(work, shared, items), 1):
        means.tell(title, done, len(items))
        yield found


def _by_split(written: list[FileWritten]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in written:
        if each.bucket.split is not None:
            found[each.bucket.split] = found.get(each.bucket.split, 0) + each.rows
    return found
