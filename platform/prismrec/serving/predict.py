"""Batch prediction: Parquet in, Parquet of probabilities out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from prismrec.config import UserError, nearest
from prismrec.data.source import resolve_filesystem
from prismrec.data.write import staged
from prismrec.serving.inference import InferenceModel

Progress = Callable[[int, int], None]
"""Told the rows done so far and the rows in all."""


def predict_parquet(
    model: InferenceModel,
    data_path: str,
    out: Path,
    *,
    keys: Sequence[str] | None = None,
    batch_rows: int = 16_384,
    progress: Progress | None = None,
) -> int:
    """Write the probabilities of every row of a data set.

    `out` gets one file for every file of the data, of the same name and with its rows in the same
    order: the key columns, then one float32 column per task, named after it. At most a few batches
    are held in memory, and `out` appears only when it is complete.

    Args:
        model: the model.
        data_path: a directory of Parquet files, or one file; a path or any URL that
            `resolve_filesystem` knows.
        out: the directory to make; it must not exist or be empty.
        keys: columns to carry over; those of the recipe's group and every `*_id` column that the
            data have, if not given.
        batch_rows: rows predicted at once.
        progress: told after every batch.

    Returns:
        The number of rows.

    Raises:
        UserError: there is no Parquet, a column is missing or of another type, or `out` is taken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there and not empty; choose another directory")
    dataset, root = _open(data_path)
    names = dataset.schema.names
    carried = _keys(model, names, keys, data_path)
    for name in model.columns:
        if name not in names:
            raise UserError(f"{data_path}: column '{name}' is missing; {nearest(name, names)}")
    with staged(out) as draft:
        job = _Job(model, dataset.schema, carried, batch_rows)
        done, total = 0, dataset.count_rows() if progress else 0
        for fragment in sorted(dataset.get_fragments(), key=lambda each: each.path):
            for rows in job.write(fragment, draft / os.path.relpath(fragment.path, root)):
                done += rows
                if progress:
                    progress(done, total)
    return done


def _open(data_path: str) -> tuple[ds.Dataset, str]:
    """The Parquet files under a path, and the path as their file system writes it."""
    try:
        system, root = resolve_filesystem(data_path)
        kind = system.get_file_info(root).type
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{data_path}: cannot be opened ({error}); correct the path") from None
    if kind == fs.FileType.NotFound:
        raise UserError(f"{data_path}: no such directory; correct the path of the data")
    selector = fs.FileSelector(root, recursive=True) if kind == fs.FileType.Directory else None
    paths = [root] if selector is None else _visible(system, selector, root)
    if not paths:
        raise UserError(f"{data_path}: holds no .parquet file; correct the path of the data")
    base = root if selector is not None else os.path.dirname(root)
    partitioning = ds.HivePartitioning.discover(infer_dictionary=False)
    try:
        dataset = ds.FileSystemDatasetFactory(
            system,
            sorted(paths),
            ds.ParquetFileFormat(),
            ds.FileSystemFactoryOptions(base, partitioning),
        ).finish()
    except (pa.ArrowInvalid, OSError) as error:
        text = str(error).splitlines()[0][:300]
        raise UserError(f"{data_path}: not readable as Parquet: {text}") from None
    return dataset, base


def _visible(system: fs.FileSystem, selector: fs.FileSelector, root: str) -> list[str]:
    """Parquet files below a directory, without those in or named as hidden ones."""
    infos = system.get_file_info(selector)
    paths = [info.path for info in infos if info.type == fs.FileType.File]
    return [
        path
        for path in paths
        if path.endswith(".parquet")
        and not any(
            part.startswith((".", "_")) for part in os.path.relpath(path, root).split(os.sep)
        )
    ]


def _keys(
    model: InferenceModel, names: Sequence[str], keys: Sequence[str] | None, data_path: str
) -> list[str]:
    if keys is None:
        keys = [name for name in names if name == model.recipe.features.group or name[-3:] == "_id"]
    for name in keys:
        if name not in names:
            raise UserError(f"{data_path}: there is no key column '{name}'; {nearest(name, names)}")
        if name in model.tasks:
            raise UserError(
                f"{data_path}: the key column '{name}' has the name of a task, which the column of "
                "its probabilities takes; rename the column or leave it out of the keys"
            )
    return list(dict.fromkeys(keys))


class _Job:
    """What is the same for every file."""

    def __init__(
        self, model: InferenceModel, schema: pa.Schema, keys: list[str], batch_rows: int
    ) -> None:
        self._model = model
        self._schema = schema
        self._keys = keys
        self._batch_rows = batch_rows
        self._read = list(dict.fromkeys([*keys, *model.columns]))
        fields = [schema.field(name) for name in keys]
        fields += [pa.field(task, pa.float32()) for task in model.tasks]
        self._out_schema = pa.schema(fields)

    def write(self, fragment: ds.ParquetFileFragment, path: Path) -> Iterator[int]:
        """Predict one file; yields the rows of each batch as they are written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, self._out_schema, compression="zstd") as writer:
            for batch in self._batches(fragment):
                writer.write_batch(self._predict(batch, fragment.path))
                yield batch.num_rows

    def _batches(self, fragment: ds.ParquetFileFragment) -> Iterable[pa.RecordBatch]:
        scanner = fragment.scanner(
            schema=self._schema,
            columns=self._read,
            batch_size=self._batch_rows,
            batch_readahead=2,
            fragment_readahead=1,
        )
        try:
            yield from scanner.to_batches()
        except (pa.ArrowInvalid, OSError) as error:
            text = str(error).splitlines()[0][:300]
            raise UserError(
                f"{fragment.path}: cannot be decoded ({text}); write the file again"
            ) from None

    def _predict(self, batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
        try:
            columns = {name: batch.column(name) for name in self._model.columns}
            probabilities = self._model.probabilities(columns)
        except UserError as error:
            raise UserError(f"{where}: {error.message}") from None
        arrays = [batch.column(name) for name in self._keys]
        arrays += [pa.array(column) for column in probabilities.T.contiguous().numpy()]
        return pa.record_batch(arrays, schema=self._out_schema)
