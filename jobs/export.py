"""`prismrec models export` with other number types: written, held against fp32, timed."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import torch
from torch import Tensor

from prismrec.checkpoint.directory import find_checkpoint
from prismrec.config import Recipe, UserError
from prismrec.config.train import ExportSection
from prismrec.data.source import open_data
from prismrec.data.values import one_array
from prismrec.data.write import staged
from prismrec.jobs.evaluate import check_not_empty, labelled, split_tables
from prismrec.jobs.publish import bundle_of_checkpoint
from prismrec.serving.bundle import DenseType
from prismrec.serving.inference import InferenceModel
from prismrec.serving.latency import Predictor, measure_latency
from prismrec.serving.parity import Bounds, HeldOutLabels, compare_compressed, first_excess
from prismrec.serving.program import (
    FILES,
    ProgramFormat,
    ProgramModel,
    describe_program,
    write_program,
)
from prismrec.serving.recode import folder_bytes, recode_bundle
from prismrec.serving.tables import TableType
from prismrec.tracking.registry import Registry

REPORT = "export.json"
"""The report, beside the files of the copy."""

_DENSE_CHANGE = 5e-4
"""What a bf16 dense part may cost in AUC and LogLoss, on top of the tables."""
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to make, and what it may cost.

    Args:
        tables: type of the stored tables.
        dense: type of the dense part.
        program: format of a program to write beside the copy, None writes none.
        data: a data set with the model's columns and labels; None takes that of the training.
        split: rows of it to compare on.
        rows: most of them.
        max_auc_change: largest loss of AUC; None takes the usual one of the types.
        max_logloss_change: largest change of LogLoss; None takes the usual one.
    """

    tables: str = "fp32"
    dense: str = "fp32"
    program: str | None = None
    data: str | None = None
    split: str = "test"
    rows: int = 20_000
    max_auc_change: float | None = None
    max_logloss_change: float | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    bounds: Bounds
    program: ProgramFormat | None


@dataclass(frozen=True, slots=True)
class _Sample:
    columns: dict[str, pa.Array]
    labels: HeldOutLabels


def export_recoded(model: str, out: Path, uri: str, options: ExportOptions) -> dict[str, Any]:
    """Write an inference copy of other number types, held against the fp32 copy on sample rows.

    Args:
        model: as for `Registry.resolve`; fp32 in the registry, or the directory of a run or
            checkpoint.
        out: the directory to make, which appears when the copy is found good; nothing stays of one
            that costs too much.
        uri: tracking URI of the registry.
        options: what to make.

    Returns:
        The document of `export --json`, which is also written to `export.json` in `out`: `model`,
        `tables`, `dense`, `rows`, `parity` (by task and metric, see `compare_compressed`),
        `latency` (by copy and batch size, see `measure_latency`), `threads`, and bytes on disk and
        of the tables in memory, `fp32` and `exported`; with a program, `program` with its `format`,
        `file` and `max_logit_difference` to the copy.

    Raises:
        UserError: there is no such model, it is not fp32, there are no rows to compare on, or the
            copy costs more than is allowed.
    """
    tables, dense = _types(options)
    asked = _Asked(_bounds(options, tables), _program_format(options))
    if out.exists():
        raise UserError(f"{out}: already there; choose another directory")
    with _exact_copy(model, uri) as (path, data), staged(out) as stage:
        exact = InferenceModel.load(path)
        sample = _sample(exact.recipe, options.data or data, list(exact.columns), options)
        recode_bundle(path, stage, tables, dense)
        report = {"model": model, "tables": tables, "dense": dense}
        report |= _compared(exact, path, stage, sample, asked)
        (stage / REPORT).write_text(json.dumps(_without_nan(report), indent=1) + "\n")
    return report


def _compared(
    exact: InferenceModel, path: Path, out: Path, sample: _Sample, asked: _Asked
) -> dict[str, Any]:
    """What the report says of a copy in `out` that was made of the one at `path`."""
    made = InferenceModel.load(out)
    parity = compare_compressed(
        _logits(made, sample), _logits(exact, sample), sample.labels, exact.tasks
    )
    excess = first_excess(parity, asked.bounds)
    if excess is not None:
        raise UserError(
            f"{made.table_type} tables with a {made.manifest.dense_type} dense part change "
            f"{excess}, so nothing is written; use wider types, or allow more with "
            "--max-auc-change and --max-logloss-change"
        )
    copies: dict[str, Predictor] = {"fp32": exact, "exported": made}
    program: dict[str, Any] = {}
    disk = {"fp32": folder_bytes(path), "exported": folder_bytes(out)}
    if asked.program is not None:
        copies["program"], program = _write_program(made, out, asked.program, sample)
    return {
        "rows": len(sample.labels.labels),
        "parity": parity,
        "latency": measure_latency(copies, sample.columns),
        "threads": torch.get_num_threads(),
        "disk_bytes": disk,
        "table_bytes": {"fp32": exact.table_bytes, "exported": made.table_bytes},
        **program,
    }


def _types(options: ExportOptions) -> tuple[TableType, DenseType]:
    tables = next((each for each in get_args(TableType) if each == options.tables), None)
    dense = next((each for each in get_args(DenseType) if each == options.dense), None)
    if tables is None or dense is None:
        raise UserError(
            f"--tables is one of {', '.join(get_args(TableType))}, --dense one of "
            f"{', '.join(get_args(DenseType))}; got '{options.tables}' and '{options.dense}'"
        )
    return tables, dense


def _program_format(options: ExportOptions) -> ProgramFormat | None:
    if options.program is None:
        return None
    for kind in FILES:
        if kind == options.program:
            return kind
    raise UserError(f"--format is one of {', '.join(FILES)}; got '{options.program}'")


def _write_program(
    made: InferenceModel, out: Path, kind: ProgramFormat, sample: _Sample
) -> tuple[ProgramModel, dict[str, Any]]:
    """The program, and what the report says of it."""
    path = out / FILES[kind]
    difference = write_program(made, path, kind, sample.columns)
    (out / "program.json").write_text(json.dumps(describe_program(made), indent=1) + "\n")
    facts = {"format": kind, "file": path.name, "max_logit_difference": difference}
    return ProgramModel(made, path, kind), {"program": facts}


def _bounds(options: ExportOptions, tables: TableType) -> Bounds:
    chosen = options.max_auc_change, options.max_logloss_change
    if tables == "int4" and None in chosen:
        raise UserError(
            "int4 tables cost accuracy that only you can judge; give --max-auc-change and "
            "--max-logloss-change"
        )
    section = ExportSection(
        table_type=tables, max_auc_change=chosen[0], max_logloss_change=chosen[1]
    )
    extra = _DENSE_CHANGE if options.dense == "bf16" else 0.0
    auc, logloss = section.bounds
    return Bounds(
        auc + (extra if chosen[0] is None else 0.0), logloss + (extra if chosen[1] is None else 0.0)
    )


@contextmanager
def _exact_copy(model: str, uri: str) -> Iterator[tuple[Path, str | None]]:
    """An fp32 inference copy, and where the data of its training were."""
    with Registry(uri).resolve(model) as found, tempfile.TemporaryDirectory() as scratch:
        if found.is_bundle:
            yield found.path, found.version.data if found.version else None
        else:
            yield bundle_of_checkpoint(find_checkpoint(found.path), Path(scratch) / "model"), None


def _sample(recipe: Recipe, data: str | None, names: list[str], options: ExportOptions) -> _Sample:
    if not data:
        raise UserError("--data: give a data set with the model's columns and labels to compare on")
    source = open_data(data)
    tables, count = [], 0
    for table in split_tables(recipe, source, options.split, names):
        tables.append(table.slice(0, options.rows - count))
        count += len(tables[-1])
        if count >= options.rows:
            break
    check_not_empty(count, data, options.split)
    rows = pa.concat_tables(tables)
    columns = {name: one_array(rows.column(name)) for name in names}
    labels, valid = labelled(rows, recipe.tasks, data)
    return _Sample(columns, HeldOutLabels(labels, valid))


def _logits(model: InferenceModel, sample: _Sample) -> Tensor:
    """(B, T) before calibration, which may be steep and would hide or blow up what differs."""
    rows = len(sample.labels.labels)
    return torch.cat(
        [
            model.predict_logits(
                {name: array.slice(start, _AT_ONCE) for name, array in sample.columns.items()},
                calibrated=False,
            )
            for start in range(0, rows, _AT_ONCE)
        ]
    )


def _without_nan(report: dict[str, Any]) -> dict[str, Any]:
    parity = {
        name: None if math.isnan(value) else value for name, value in report["parity"].items()
    }
    return {**report, "parity": parity}
