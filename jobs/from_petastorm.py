"""Data sets of petastorm, read by petastorm itself in an environment of its own, into ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from prismrec.cluster.members import check_members
from prismrec.cluster.runtime import ray_runtime
from prismrec.config import UserError, nearest
from prismrec.data.schema import Column, DataSchema, Kind
from prismrec.data.source import resolve_filesystem
from prismrec.data.write import staged, write_parts
from prismrec.train.signals import signals_end

PINS = (
    "petastorm==0.13.1",
    "pyarrow==14.0.2",
    "numpy<2",
    "pandas<3",
    "pyspark<4",
    "setuptools<70",
)
"""Its environment, as in `requirements/petastorm.txt`; it cannot live beside our Arrow."""
_SCHEMA_KEY = b"dataset-toolkit.unischema.v1"
"""Key of the metadata under which petastorm keeps its schema, as a pickle."""
_SETUP_S = 1200


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a data set is imported.

    Args:
        columns: meaning of the columns that are taken; all of them, by their types, if None.
        trust: the data set's pickled schema may be read, which runs code that is in it.
        readers: processes that read.
        address: of a Ray cluster; an embedded Ray starts without one.
        overwrite: replace a data set that lies where this one is written.
        verbose: show what Ray says.
    """

    columns: DataSchema | None = None
    trust: bool = False
    readers: int = 1
    address: str | None = None
    overwrite: bool = False
    verbose: bool = False


def import_petastorm(
    url: str, out: Path, options: ImportOptions, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Write a data set that petastorm can read in our format; it appears whole or not at all.

    SIGTERM ends it as Ctrl-C does, and the embedded Ray with it.

    Args:
        url: its directory or URL; of petastorm's making or plain Parquet.
        out: directory to write.
        options: how.
        tell: told in a line what is done, before what takes minutes.

    Returns:
        The document of `prismrec data import-petastorm --json`: `rows`, `columns` with kind, type and
        shape, and columns that were `left_out`, with the reason.

    Raises:
        UserError: there is nothing to read, its schema is pickled and not trusted, the environment
            cannot be made, petastorm cannot read it, or a column does not fit its kind.
    """
    url = url if "://" in url else Path(url).absolute().as_uri()
    has_schema = has_pickled_schema(url)
    if has_schema and not options.trust:
        raise UserError(
            f"{url}: its schema is a Python pickle, and reading one runs whatever code its author put "
            "into it; say --trust if you would run a program of theirs"
        )
    with signals_end(), staged(out, options.overwrite) as stage:
        parts = stage / "_parts"
        parts.mkdir()
        tell("setting up petastorm's own environment (pip; minutes the first time), then reading")
        told = _export(url, parts, options, has_schema=has_schema)
        rows = sum(each["rows"] for each in told)
        facts = told[0]["columns"]
        arrow = checked(parts, rows, facts)
        schema = schema_of(arrow, options.columns, facts, url)
        write_parts(stage, _tables(parts, arrow, list(schema.columns)), schema)
        for each in parts.iterdir():
            each.unlink()
        parts.rmdir()
    return {
        "rows": rows,
        "columns": {
            name: {
                "kind": column.kind,
                "type": str(arrow.field(name).type),
                "shape": facts.get(name, {}).get("shape"),
            }
            for name, column in schema.columns.items()
        },
        "left_out": {name: each["left_out"] for name, each in facts.items() if "left_out" in each},
    }


def has_pickled_schema(url: str) -> bool:
    """Whether the files of a data set hold a schema of petastorm's, which nobody reads here.

    Raises:
        UserError: there is no such directory, it has no Parquet file, or one cannot be read.
    """
    system, base = resolve_filesystem(url)
    if system.get_file_info(base).type != fs.FileType.Directory:
        raise UserError(f"{url}: no such directory; name that of a data set")
    listed = system.get_file_info(fs.FileSelector(base, recursive=True))
    names = [info.path for info in listed if info.type == fs.FileType.File]
    data = [name for name in names if name.endswith(".parquet")]
    if not data:
        raise UserError(
            f"{url}: no *.parquet file in it or below; name the directory of a data set"
        )
    beside = [
        name for name in names if name.rpartition("/")[2] in ("_common_metadata", "_metadata")
    ]
    for name in [*beside, *data]:
        try:
            metadata = pq.read_metadata(name, filesystem=system).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{name}: not a Parquet file ({str(error).splitlines()[0]}); write it again or remove it"
            ) from None
        if _SCHEMA_KEY in metadata:
            return True
    return False


def _export(
    url: str, parts: Path, options: ImportOptions, *, has_schema: bool
) -> list[dict[str, Any]]:
    """Have petastorm write plain Parquet; what every reader has to say."""
    program = files("prismrec.jobs").joinpath("petastorm_export.py").read_text()
    wanted = None if options.columns is None else list(options.columns.columns)
    order = {
        "url": url, "out": str(parts), "columns": wanted, "shards": options.readers,
        "has_schema": has_schema,
    }  # fmt: skip
    orders = [json.dumps(order | {"shard": shard}) for shard in range(options.readers)]
    with ray_runtime(options.address, num_workers=options.readers, verbose=options.verbose):
        if options.address is not None:
            check_members()
        import ray

        def export(text: str, order: str) -> tuple[int, str, str]:
            # Sent by value: nothing of prismrec can be imported where it runs.
            import subprocess
            import sys
            import tempfile

            with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
                file.write(text)
                file.flush()
                command = [sys.executable, "-W", "ignore", file.name, order]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout, done.stderr

        environment = {
            "pip": {"packages": list(PINS), "pip_check": False},
            "config": {"setup_timeout_seconds": _SETUP_S},
        }
        task = ray.remote(export).options(runtime_env=environment, num_cpus=1)
        try:
            answers = ray.get([task.remote(program, each) for each in orders])
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise UserError(
                "petastorm's environment could not be made; Ray installs "
                f"{', '.join(PINS)} on the machine that reads ({_last_line(str(error))})"
            ) from None
    for code, _, errors in answers:
        if code:
            raise UserError(f"{url}: petastorm cannot read it: {_last_line(errors)}")
    said = [
        line for _, out, _ in answers for line in out.splitlines() if line.startswith('{"rows"')
    ]
    return [json.loads(line) for line in said]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def checked(parts: Path, rows: int, facts: Mapping[str, Any]) -> pa.Schema:
    """The columns of the parts that another Arrow has written.

    Args:
        parts: their directory.
        rows: how many there should be.
        facts: what petastorm said of the columns.

    Raises:
        UserError: a part is unreadable, rows are missing, an array has another size than its field says,
            or a column comes in types that do not go together.
    """
    found = sorted(parts.glob("*.parquet"))
    schemas, count = [], 0
    for path in found:
        table = pq.read_table(path)
        table.validate(full=True)
        count += table.num_rows
        schemas.append(table.schema.remove_metadata())
        for name, fact in facts.items():
            shape = fact.get("shape")
            if shape and None not in shape:
                _check_lengths(table, name, shape)
    if count != rows or not count:
        raise UserError(f"petastorm read {rows:,} rows and wrote {count:,}; look at the data set")
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"a column changes its type within the data set: {first}") from None


def _check_lengths(table: pa.Table, name: str, shape: list[int]) -> None:
    size = 1
    for each in shape:
        size *= each
    lengths = pa.compute.unique(pa.compute.list_value_length(table.column(name))).to_pylist()
    if not set(lengths) <= {size, None}:
        raise UserError(
            f"column '{name}': its field has shape {tuple(shape)}, but arrays of "
            f"{sorted(set(lengths) - {size, None})} values are there; leave it out by --schema"
        )


def schema_of(
    arrow: pa.Schema, given: DataSchema | None, facts: Mapping[str, Any], url: str
) -> DataSchema:
    """The schema of the result: as it is given, else by the types.

    Raises:
        UserError: a column that is given is not there.
    """
    if given is not None:
        for name in given.columns:
            if name not in arrow.names:
                left = facts.get(name, {}).get("left_out")
                why = f"is left out: it is {left}" if left else nearest(name, arrow.names)
                raise UserError(f"--schema: column '{name}' is not in the data set; {why}")
        return given
    columns = {}
    for field in arrow:
        shape = facts.get(field.name, {}).get("shape")
        words = f"of shape {tuple(shape)}, row by row" if shape and len(shape) > 1 else ""
        columns[field.name] = Column(kind=kind_of(field.type), description=words)
    return DataSchema(name="petastorm", columns=columns, source=f"petastorm: {url}")


def kind_of(type_: pa.DataType) -> Kind:
    """What a column of a type is taken for: integers are ids, booleans are labels.

    >>> kind_of(pa.int32()), kind_of(pa.list_(pa.float64())), kind_of(pa.string())
    ('id', 'numbers', 'other')
    """
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    inner = type_.value_type if is_list else type_
    if pa.types.is_integer(inner):
        return "ids" if is_list else "id"
    if pa.types.is_floating(inner):
        return "numbers" if is_list else "number"
    return "label" if pa.types.is_boolean(type_) else "other"


def _tables(parts: Path, arrow: pa.Schema, columns: list[str]) -> Iterator[pa.Table]:
    wanted = pa.schema([arrow.field(name) for name in columns])
    for path in sorted(parts.glob("*.parquet")):
        yield pq.read_table(path, columns=columns).select(columns).cast(wanted)
