"""An inference copy as an MLflow model: signature, input example, requirements, no pickle."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array

from prismrec.data.schema import Kind
from prismrec.serving.bundle import Manifest, read_manifest

_REQUIREMENTS = ("prismrec", "mlflow", "torch", "pyarrow", "numpy", "pandas", "safetensors",
                 "pydantic")  # fmt: skip
_LOOKUP = ("fbgemm-gpu-cpu", "fbgemm-gpu")


def pyfunc_arguments(bundle: Path) -> dict[str, Any]:
    """Arguments of `mlflow.pyfunc.save_model` that make a served model of an inference copy.

    Args:
        bundle: the directory.

    Raises:
        UserError: it is not an inference copy.
    """
    manifest = read_manifest(bundle)
    return {
        # Named by path: importing it here would make this process load MLflow's model context.
        "python_model": str(Path(__file__).with_name("pyfunc.py")),
        "artifacts": {"bundle": str(bundle)},
        "signature": signature(manifest),
        "input_example": input_example(manifest),
        "pip_requirements": requirements(),
        "metadata": {
            "table_type": manifest.table_type,
            "columns": {name: column.kind for name, column in _columns(manifest).items()},
        },
    }


def signature(manifest: Manifest) -> ModelSignature:
    """The raw columns in, one probability per task out.

    Ids and numbers are of any type to MLflow, whose integers admit no missing value and whose
    floats no 64-bit integer; the model checks them itself and names the wrong column.
    """
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(_type(column.kind), name) for name, column in _columns(manifest).items()
    ]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.float, task) for task in manifest.tasks]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _type(kind: Kind) -> AnyType | Array:
    return Array(AnyType()) if kind in ("ids", "numbers") else AnyType()


def _columns(manifest: Manifest) -> dict[str, Any]:
    columns = manifest.data_schema.columns
    return {name: columns[name] for name in manifest.typed_recipe().raw_columns}


def input_example(manifest: Manifest) -> pd.DataFrame:
    """Two rows of made-up values that the model takes: no user's data go to the registry."""
    values: dict[Kind, list[Any]] = {
        "id": [0, 1],
        "ids": [[0, 1], [1]],
        "numbers": [[1.0, 0.5], [1.0]],
    }
    return pd.DataFrame(
        {name: values.get(column.kind, [0.0, 1.0]) for name, column in _columns(manifest).items()}
    )


def requirements() -> list[str]:
    """Packages that serving imports, pinned to the versions of this environment.

    TorchRec is not among them. `prismrec` itself must be installed where the model is served.
    """
    lookup = next(name for name in _LOOKUP if _is_installed(name))
    return [f"{name}=={_public(metadata.version(name))}" for name in (*_REQUIREMENTS, lookup)]


def _public(version: str) -> str:
    """A version without its local part (`2.13.0+cpu`), which no index knows."""
    return version.partition("+")[0]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
