"""Questions about single columns and rows that the training reader does not answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prismrec.config import Recipe
from prismrec.data.encode.encoders import Encoder
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.filters import row_filter
from prismrec.data.lanes import Share
from prismrec.data.rows import Ints
from prismrec.data.skipped import Skipped, attempt, unreadable
from prismrec.data.source import DataSource


def id_frequency(
    source: DataSource, recipe: Recipe, feature: str, encoder: Encoder, share: Share
) -> Ints:
    """(rows of the table,) how often the training split has each row of a feature's table.

    One column of one rank's part of the row groups is read; the sum over ranks is the answer.

    Args:
        source: the data set.
        recipe: for the training split and the feature.
        feature: a sparse feature with one id a row.
        encoder: its encoder, which gives an id one row.
        share: which part of the row groups.
    """
    chosen = next(each for each in recipe.features.sparse if each.name == feature)
    rows = row_filter(recipe.data.splits.train, source, "data.splits.train")
    counts = np.zeros(encoder.rows.total, np.int64)
    skipped = Skipped(source) if recipe.data.on_bad_file == "skip" else None
    groups = range(share.rank, len(source.group_rows), share.world_size)
    fragments = {
        file: source.fragments(file) for file in {int(source.group_file[g]) for g in groups}
    }
    for group in groups:
        file = int(source.group_file[group])
        read = partial(
            fragments[file][source.group_index[group]].to_table,
            columns=[chosen.source],
            filter=rows.expression,
            schema=source.arrow(file),
        )
        table = attempt(skipped, source, group, read)
        if table is None:
            continue
        ids = pc.fill_null(table.column(0).cast(pa.int64()), NULL_ID).to_numpy()
        found, _ = encoder(ids)
        counts += np.bincount(found, minlength=len(counts))
    return counts


def raw_rows(
    source: DataSource, places: tuple[Ints, Ints, Ints], columns: Sequence[str]
) -> pa.Table:
    """Rows as they stand in the files.

    Args:
        source: the data set.
        places: file, row group of the file and row of that, for each row wanted.
        columns: names of the columns.
    """
    files, groups, rows = places
    if not len(rows):
        arrow = source.arrow(0)
        return pa.schema([arrow.field(name) for name in columns]).empty_table()
    parts, order = [], []
    for file in np.unique(files).tolist():
        fragments = source.fragments(file)
        for group in np.unique(groups[files == file]).tolist():
            here = np.flatnonzero((files == file) & (groups == group))
            table = fragments[group].to_table(columns=list(columns), schema=source.arrow(file))
            parts.append(table.take(pa.array(rows[here])))
            order.append(here)
    back = np.argsort(np.concatenate(order))
    return pa.concat_tables(parts).take(pa.array(back))


def filtered_tables(
    source: DataSource,
    conditions: Sequence[str],
    columns: Sequence[str],
    where: str,
    groups: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """The rows that meet the conditions, in the order of the files, one row group at a time.

    Args:
        source: the data set.
        conditions: as in `data.splits`; every row if there are none.
        columns: names of the columns.
        where: what the conditions are called in errors.
        groups: row groups to read, in rising order; all if not given.

    Raises:
        UserError: a condition cannot be read, a column is missing, or a row group cannot be
            decoded.
    """
    rows = row_filter(conditions, source, where)
    wanted = range(len(source.group_rows)) if groups is None else groups
    for file, of_file in groupby(wanted, lambda group: int(source.group_file[group])):
        arrow, fragments = source.arrow(file), source.fragments(file)
        source.schema.check_arrow(arrow, list(columns), source.files[file].name)
        for group in of_file:
            fragment = fragments[source.group_index[group]]
            try:
                yield fragment.to_table(columns=list(columns), filter=rows.expression, schema=arrow)
            except (pa.ArrowException, OSError) as error:
                raise unreadable(source.where(group), error) from None
