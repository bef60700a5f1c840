"""Finding and reading the files of a source directory, and the options of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from prismrec.config import UserError
from prismrec.data.write import Progress


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What a user may say to an adapter; each one takes what it needs.

    Args:
        schema: `csv` only: the JSON file that says what the columns mean; `schema.json` in the
            source directory if not given.
        delimiter: `csv` only: the character between two fields.
        min_count: `criteo` and `csv`: a value seen less often has no id of its own and is read
            as unknown.
        progress: called now and then by adapters that stream their source.
    """

    schema: Path | None = None
    delimiter: str = ","
    min_count: int = 1
    progress: Progress | None = None


DEFAULT_OPTIONS = PrepareOptions()


def find_files(source: Path, patterns: Sequence[str], holds: str) -> list[Path]:
    """Files in `source` that match any of the patterns, plain or compressed by gzip, sorted.

    Args:
        source: the directory the user named.
        patterns: shell patterns without `.gz`.
        holds: what the directory should hold, told when it does not.

    Raises:
        UserError: no such directory, or no such file in it.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such directory; --source should name one that holds {holds}")
    found = {path for pattern in patterns for path in source.glob(pattern)}
    found |= {path for pattern in patterns for path in source.glob(pattern + ".gz")}
    if not found:
        names = " or ".join(f"'{pattern}'" for pattern in patterns)
        raise UserError(
            f"{source}: no file {names} (or with .gz); the directory should hold {holds}"
        )
    return sorted(found)


def find_file(source: Path, pattern: str, holds: str) -> Path:
    """The one file in `source` that matches the pattern; as `find_files`.

    Raises:
        UserError: there is none, or there are several.
    """
    found = find_files(source, [pattern], holds)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{source}: one file '{pattern}' is needed, found {names}; keep one of them"
        )
    return found[0]


def read_csv(
    path: Path,
    required: Sequence[str] = (),
    convert: pc.ConvertOptions | None = None,
    parse: pc.ParseOptions | None = None,
    read: pc.ReadOptions | None = None,
) -> pa.Table:
    """A whole delimited file, unpacked on the way if its name ends in `.gz`.

    Raises:
        UserError: the file cannot be parsed, or a required column is missing.
    """
    try:
        table = pc.read_csv(path, convert_options=convert, parse_options=parse, read_options=read)
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from None
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise UserError(
            f"{path}: column '{missing[0]}' is missing; the file has {', '.join(table.column_names)}"
        )
    return table


def unreadable(path: Path, error: Exception) -> UserError:
    """The sentence for a file that a parser gave up on."""
    reason = str(error).splitlines()[0]
    return UserError(f"{path}: cannot be parsed: {reason}; fetch the file again or correct it")


def text_columns(names: Sequence[str]) -> pc.ConvertOptions:
    """Conversion that leaves the named columns as text, so that ids keep their spelling."""
    return pc.ConvertOptions(
        column_types={name: pa.string() for name in names}, strings_can_be_null=False
    )


def log1p_signed(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """sign(x) ln(1 + |x|) of a numeric column as float32; null stays null."""
    values = column.to_numpy(zero_copy_only=False).astype(np.float64)
    scaled = np.sign(values) * np.log1p(np.abs(values))
    return pa.array(scaled.astype(np.float32), from_pandas=True)
