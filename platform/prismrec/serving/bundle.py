"""The inference copy on disk: one directory, no pickle in it.

    bundle.json          what it is: recipe, columns, tables, tasks, SHA-256 of every other file
    head.safetensors     weights of the dense part
    tables/0000.safetensors ...   one file per table, one tensor of stored rows per set
    ids/0000.safetensors ...      ids that have the rows of a table of managed ids
    vocabulary-0000.parquet ...   ids of the tables that have a vocabulary
    statistics-0000.json what numbers are encoded by
    vectors-0000.parquet ...      what similarities are made of

The dense part is stored as named weights and rebuilt from the recipe's model section, because
`torch.export.load` unpickles parts of a .pt2 archive without restriction (torch 2.13,
torch/export/pt2_archive/_package.py: `weights_only=False` for weights, `pickle.loads` for objects).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prismrec
from prismrec.config import Recipe, UserError, dump, from_dict
from prismrec.config.redact import redacted
from prismrec.data.schema import DataSchema
from prismrec.data.write import staged
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.models.calibration import LogitMap
from prismrec.serving.tables import TableType, encode_table

FORMAT = 1

DenseType = Literal["fp32", "bf16"]
"""Stored types of the dense part."""
MANIFEST = "bundle.json"
"""What a copy says of itself."""
HEAD = "head.safetensors"
"""Weights of the dense part."""
_OWNERS = "ids"


@dataclass(frozen=True)
class BundleSource:
    """What an inference copy is made of.

    Args:
        recipe: the resolved recipe.
        schema: schema of the training data.
        spec: the sets and tables.
        tables: gives the (rows, d_m) weights for the names of a table and a set, in any float
            type; called once for each, table by table.
        head: the dense part with the weights to serve.
        origin: where it comes from, such as run, step and data fingerprint; kept as it stands.
        maps: calibration of each task's logits; empty where there is none.
        copies: copies of the recipe's files, in the places of `copied_files`.
        owners: gives, for the name of a table of managed ids, the (rows,) id that has each row,
            `NULL_ID` where none has; needed where there is such a table.
    """

    recipe: Recipe
    schema: DataSchema
    spec: EmbeddingSpec
    tables: Callable[[str, str], Tensor]
    head: nn.Module
    origin: dict[str, Any] = field(default_factory=dict)
    copies: tuple[Path, ...] = ()
    owners: Callable[[str], Tensor] | None = None
    maps: tuple[LogitMap, ...] = ()


class Manifest(BaseModel):
    """`bundle.json`.

    Args:
        format: version of the layout.
        prismrec: version of the package that wrote it.
        table_type: stored type of the tables.
        dense_type: stored type of the dense part's matrices, and what its matrix products are
            computed in.
        recipe: the resolved recipe, without credentials.
        data_schema: the columns that the model reads, with their meaning.
        table_rows: rows of every table, the row of unknown ids included.
        set_dims: width of every set.
        tasks: names of the tasks in the order of the logits.
        logit_offsets: added to the head's logits, which undoes negative down-sampling.
        calibration: map of each task's logits behind that, see `LogitMap`; empty where there is none.
        origin: where it comes from.
        sha256: of every other file, by path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    prismrec: str
    table_type: TableType
    dense_type: DenseType = "fp32"
    recipe: dict[str, Any]
    data_schema: DataSchema
    table_rows: dict[str, int]
    set_dims: dict[str, int]
    tasks: list[str]
    logit_offsets: list[float]
    calibration: list[dict[str, Any]] = []
    origin: dict[str, Any]
    sha256: dict[str, str]

    def typed_recipe(self) -> Recipe:
        """The recipe, validated."""
        return from_dict(self.recipe, source=MANIFEST)


def logit_offsets(recipe: Recipe) -> list[float]:
    """What to add to each task's logit; see `Task.logit_offset`."""
    return [task.logit_offset for task in recipe.tasks]


def write_bundle(out: Path, source: BundleSource, table_type: TableType) -> Path:
    """Write an inference copy table by table; nothing is left behind when it fails.

    Args:
        out: the directory to make; it must not exist.
        source: what to write.
        table_type: type of the stored tables.

    Returns:
        `out`.

    Raises:
        UserError: `out` exists, or a table does not fit the stored type.
    """
    if out.exists():
        raise UserError(f"{out}: already there; choose another place for the inference copy")
    with staged(out) as draft:
        _write_tables(draft, source, table_type)
        save_file(_plain(source.head), draft / HEAD)
        for file in source.copies:
            shutil.copyfile(file, draft / file.name)
        manifest = _manifest(draft, source, table_type)
        (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return out


def _write_tables(draft: Path, source: BundleSource, table_type: TableType) -> None:
    (draft / "tables").mkdir()
    for index, table in enumerate(source.spec.tables):
        blobs = {}
        for each in source.spec.sets_of(table):
            name, weight = f"{table.name}/{each.name}", source.tables(table.name, each.name)
            if tuple(weight.shape) != (table.rows, each.dim):
                raise UserError(
                    f"table '{name}': {tuple(weight.shape)} weights were given for the inference "
                    f"copy, but the recipe and schema make it {(table.rows, each.dim)}; export "
                    "with the recipe and data schema of the run"
                )
            blobs[each.name] = encode_table(weight, table_type, name)
        save_file(blobs, draft / table_file(index))
        if table.is_managed:
            assert source.owners is not None
            (draft / "ids").mkdir(exist_ok=True)
            save_file({_OWNERS: source.owners(table.name)}, draft / _owners_file(index))


def table_file(index: int) -> str:
    """Where the rows of a table lie, by its place among the tables."""
    return f"tables/{index:04d}.safetensors"


def _owners_file(index: int) -> str:
    return f"ids/{index:04d}.safetensors"


def _plain(head: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu").contiguous().clone()
        for name, tensor in head.state_dict().items()
    }


def _manifest(draft: Path, source: BundleSource, table_type: TableType) -> Manifest:
    recipe, spec = source.recipe, source.spec
    names = list(recipe.raw_columns)
    if recipe.needs_domain and recipe.features.domain is not None:
        names.append(recipe.features.domain)  # its number of domains, whoever asks for that
    columns = {name: source.schema.columns[name] for name in dict.fromkeys(names)}
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    return Manifest(
        format=FORMAT,
        prismrec=prismrec.__version__,
        table_type=table_type,
        recipe=redacted(dump(recipe)),
        data_schema=source.schema.model_copy(update={"columns": columns}),
        table_rows={table.name: table.rows for table in spec.tables},
        set_dims={each.name: each.dim for each in spec.sets},
        tasks=list(recipe.task_names),
        logit_offsets=logit_offsets(recipe),
        calibration=[each.to_json() for each in source.maps],
        origin=redacted(source.origin),
        sha256={path.relative_to(draft).as_posix(): sha256(path) for path in files},
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_bundle(path: Path) -> bool:
    """Whether a directory is an inference copy."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path) -> Manifest:
    """What an inference copy says of itself.

    Raises:
        UserError: it is not an inference copy, or one of a later format.
    """
    file = path / MANIFEST
    try:
        text = file.read_text()
        version = json.loads(text).get("format")
    except FileNotFoundError:
        raise UserError(f"{path}: not an inference copy, it has no {MANIFEST}") from None
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        raise UserError(f"{file}: not readable as JSON; export the model again") from None
    if version != FORMAT:
        raise UserError(
            f"{file}: format {version}, but prismrec {prismrec.__version__} reads format {FORMAT}; "
            "install the version that wrote it or export the model again"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{file}: {place} is damaged; export the model again") from None


def check_files(path: Path, manifest: Manifest) -> None:
    """Compare every file with its SHA-256.

    Raises:
        UserError: a file is missing or differs.
    """
    for name, expected in manifest.sha256.items():
        file = path / name
        if not file.is_file() or sha256(file) != expected:
            state = "differs from its SHA-256" if file.is_file() else "is missing"
            raise UserError(f"{file}: {state}; copy or export the inference copy again")


def table_reader(path: Path, spec: EmbeddingSpec) -> Callable[[TableSpec, EmbeddingSet], Tensor]:
    """Gives the stored rows of one table in one set.

    Raises:
        UserError: (when called) the file does not hold them.
    """
    files = {table.name: path / table_file(index) for index, table in enumerate(spec.tables)}

    def read(table: TableSpec, each: EmbeddingSet) -> Tensor:
        try:
            with safe_open(files[table.name], framework="pt") as file:
                return file.get_tensor(each.name)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{files[table.name]}: set '{each.name}' of table '{table.name}' cannot be read "
                f"({error}); copy or export the inference copy again"
            ) from None

    return read


def read_owners(path: Path, spec: EmbeddingSpec) -> Iterator[tuple[TableSpec, Tensor]]:
    """The tables of managed ids, each with the (rows,) ids that have its rows."""
    for index, table in enumerate(spec.tables):
        if table.is_managed:
            yield table, load_file(path / _owners_file(index))[_OWNERS]


def load_head(path: Path, head: nn.Module) -> None:
    """Fill the dense part with the stored weights.

    Raises:
        UserError: the weights are not those of this model.
    """
    weights = {name: _widened(tensor) for name, tensor in load_file(path / HEAD).items()}
    missing = sorted(set(head.state_dict()) ^ set(weights))
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    wrong = [name for name in weights if name in shapes and shapes[name] != weights[name].shape]
    if missing or wrong:
        raise UserError(
            f"{path / HEAD}: '{(missing or wrong)[0]}' does not fit the model that the recipe "
            "describes; install the prismrec (and, for a model of your own, the package) version "
            "that wrote it"
        )
    with torch.no_grad():
        head.load_state_dict(weights)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
