"""An inference copy of other number types, made of an fp32 one."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from prismrec.config import UserError
from prismrec.data.encode.copies import with_copies
from prismrec.data.write import staged
from prismrec.models import spec_of
from prismrec.serving.bundle import (
    HEAD,
    MANIFEST,
    DenseType,
    check_files,
    read_manifest,
    sha256,
    table_file,
    table_reader,
)
from prismrec.serving.tables import TableType, decode_rows, encode_table


def recode_bundle(source: Path, out: Path, table_type: TableType, dense_type: DenseType) -> Path:
    """Write an inference copy with other types of numbers, table by table.

    Args:
        source: an fp32 inference copy.
        out: the directory to make; it must not exist or be empty.
        table_type: type of the stored tables.
        dense_type: type of the stored weights of the dense part.

    Returns:
        `out`.

    Raises:
        UserError: `out` is taken, the source is damaged or is not fp32 throughout, or a table does
            not fit the type.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there; choose another directory")
    manifest = read_manifest(source)
    check_files(source, manifest)
    if (manifest.table_type, manifest.dense_type) != ("fp32", "fp32"):
        raise UserError(
            f"{source}: it has {manifest.table_type} tables and a {manifest.dense_type} dense part; "
            "other types are made of an fp32 copy: give the directory of the run or checkpoint"
        )
    with staged(out) as draft:
        for name in manifest.sha256:
            (draft / name).parent.mkdir(exist_ok=True)
            if not name.startswith("tables/"):
                shutil.copyfile(source / name, draft / name)
        _recode_tables(source, draft, table_type)
        if dense_type == "bf16":
            save_file(_rounded(load_file(source / HEAD)), draft / HEAD)
        changed = manifest.model_copy(
            update={
                "table_type": table_type,
                "dense_type": dense_type,
                "sha256": {name: sha256(draft / name) for name in manifest.sha256},
            }
        )
        (draft / MANIFEST).write_text(changed.model_dump_json(indent=1) + "\n")
    return out


def _recode_tables(source: Path, draft: Path, table_type: TableType) -> None:
    manifest = read_manifest(source)
    spec = spec_of(with_copies(manifest.typed_recipe(), source), manifest.data_schema)
    read = table_reader(source, spec)
    for index, table in enumerate(spec.tables):
        blobs = {
            each.name: encode_table(
                decode_rows(read(table, each), "fp32"), table_type, f"{table.name}/{each.name}"
            )
            for each in spec.sets_of(table)
        }
        save_file(blobs, draft / table_file(index))


def _rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in bfloat16; vectors, among them moments and biases, are few and stay as they are."""
    return {
        name: tensor.bfloat16() if tensor.is_floating_point() and tensor.dim() > 1 else tensor
        for name, tensor in weights.items()
    }


def folder_bytes(path: Path) -> int:
    """Bytes of the files in a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
