"""A model as one program that torch runs by itself: `torch.export` (.pt2) or TorchScript (.ts).

It goes from rows of the tables to logits: tables, lookups and dense part, made of torch's own
operations only. What turns raw columns into rows is prismrec's.

Notation: B rows of a request, N fields, L_f ids of field f, D numeric columns, T tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.export import Dim

from prismrec.config import UserError
from prismrec.models import Inputs
from prismrec.models.calibration import mapped
from prismrec.models.objectives import build_decoder
from prismrec.serving.columns import to_arrow
from prismrec.serving.inference import InferenceModel
from prismrec.serving.sides import Sides
from prismrec.serving.tables import SCALE_BYTES, FeatureRows

ProgramFormat = Literal["torch.export", "torchscript"]
"""Formats of a program."""

FILES: dict[ProgramFormat, str] = {"torch.export": "program.pt2", "torchscript": "program.ts"}
"""Where a program lies in an exported directory."""

TOLERANCE = 1e-4
"""Largest difference of a logit between the program and the copy it was made of."""


class _Field(NamedTuple):
    """What a set reads of a field: its place among the fields, and whether its bags are averaged."""

    place: int
    table: str
    is_mean: bool


class RankingProgram(nn.Module):
    """Tables, lookups and dense part of a model.

    Args:
        model: a model without sequences whose probabilities need no raw column besides.
    """

    offsets: Tensor

    def __init__(self, model: InferenceModel) -> None:
        super().__init__()
        spec = model.spec
        self._type = model.table_type
        self._num_fields = len(spec.fields)
        self._sets: list[tuple[str, list[_Field]]] = []
        held: set[str] = set()
        for each in spec.sets:
            fields = []
            for name in spec.fields_of(each):
                table = spec.table_of(name)
                pooling = spec.form(table, each).pooling
                fields.append(_Field(spec.fields.index(name), table.name, pooling == "mean"))
                key = _buffer(table.name, each.name)
                if key not in held:
                    self._hold(key, model.stored_rows(table.name, each.name))
                    held.add(key)
            self._sets.append((each.name, fields))
        self._assembly = model.assembly
        self.head = model.head
        self._decoder = build_decoder(model.recipe)
        self.register_buffer("offsets", model.logit_offsets)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits (B, T), before any calibration.

        Args:
            tensors: for each field rows (L_f,) int64, the row of the request that each belongs to
                (L_f,) int64, and weights (L_f,) float32; then numbers (B, D) float32, then domains
                (B,) int64 where the model reads them.
        """
        fields = [tensors[3 * f : 3 * f + 3] for f in range(self._num_fields)]
        dense, *rest = tensors[3 * self._num_fields :]
        sets = [
            torch.stack([self._pooled(name, each, fields, dense) for each in of_set], 1)
            for name, of_set in self._sets
        ]
        inputs = Inputs(
            sets=self._assembly.sets(sets),
            linear=self._assembly.linear(sets),
            dense=dense,
            domain=rest[0] if rest else None,
        )
        given, _ = self.head(inputs)
        logits, _ = self._decoder(given.float())
        return self._decoder.served(logits) + self.offsets

    def _pooled(
        self, set_name: str, field: _Field, fields: Sequence[Sequence[Tensor]], dense: Tensor
    ) -> Tensor:
        """(B, d_m) the weighted sum or mean of the vectors of a field's bags."""
        rows, owners, weights = fields[field.place]
        vectors = self._vectors(_buffer(field.table, set_name), rows)
        if field.is_mean:
            sizes = dense.new_zeros(dense.shape[0]).index_add(0, owners, torch.ones_like(weights))
            weights = weights / sizes.index_select(0, owners)
        empty = vectors.new_zeros(dense.shape[0], vectors.shape[1])
        return empty.index_add(0, owners, vectors * weights.unsqueeze(1))

    def _hold(self, key: str, stored: Tensor) -> None:
        """Keep the rows of a table in a set: numbers, or bytes with a scale and an offset."""
        if self._type in ("int8", "int4"):
            self.register_buffer(key, stored[:, SCALE_BYTES:].clone())
            self.register_buffer(
                f"{key}_scale", stored[:, :SCALE_BYTES].clone().view(torch.float16)
            )
        else:
            kind = torch.float16 if self._type == "fp16" else torch.float32
            self.register_buffer(key, stored.clone().view(kind))

    def _vectors(self, key: str, rows: Tensor) -> Tensor:
        """(L, d_m) float32 vectors of rows, as `decode_rows` makes them."""
        values = self.get_buffer(key).index_select(0, rows)
        if self._type not in ("int8", "int4"):
            return values.float()
        scale = self.get_buffer(f"{key}_scale").index_select(0, rows).float()
        if self._type == "int4":
            values = torch.stack([values & 15, values >> 4], -1).flatten(1)
        return values.float() * scale[:, :1] + scale[:, 1:]


def _buffer(table: str, set_name: str) -> str:
    return f"table_{table}_{set_name}".replace(".", "_")


def program_inputs(model: InferenceModel, columns: Mapping[str, pa.Array]) -> tuple[Tensor, ...]:
    """The tensors that a program takes for raw columns, see `RankingProgram.forward`."""
    sides = Sides.checked(columns, {})
    tensors = [tensor for each in model.features(sides) for tensor in _of_field(each)]
    tensors.append(model.dense(sides))
    domain = model.domain(sides)
    return tuple(tensors if domain is None else [*tensors, domain])


def _of_field(feature: FeatureRows) -> tuple[Tensor, Tensor, Tensor]:
    owners = torch.arange(len(feature.lengths)).repeat_interleave(feature.lengths)
    weights = feature.weights
    return feature.rows, owners, torch.ones(len(owners)) if weights is None else weights


def write_program(
    model: InferenceModel, path: Path, kind: ProgramFormat, columns: Mapping[str, pa.Array]
) -> float:
    """Write a model as a program and hold it against the model on raw columns.

    Args:
        model: the model.
        path: the file to make.
        kind: its format.
        columns: raw columns of at least three rows, as `InferenceModel.inputs` takes them.

    Returns:
        The largest difference of a logit, over one row, some and all.

    Raises:
        UserError: the model cannot be such a program, which the sentence says why, or the program
            says something else than the model.
    """
    _check(model, kind)
    program = RankingProgram(model).eval()
    rows = len(next(iter(columns.values())))
    example = _example(model, columns)
    try:
        with torch.no_grad():
            if kind == "torchscript":
                with warnings.catch_warnings():  # of what the comparison below would find
                    warnings.simplefilter("ignore")
                    traced = torch.jit.trace(program, example, check_trace=False)
                traced.save(str(path))
            else:
                shapes = {"tensors": tuple({0: Dim.AUTO} for _ in example)}
                torch.export.save(
                    torch.export.export(program, example, dynamic_shapes=shapes, strict=False),
                    path,
                )
        return _largest_difference(model, path, kind, [_first(columns, n) for n in {1, 2, rows}])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--format {kind}: torch cannot make a program of the model '{model.recipe.name}' "
            f"({_first_line(error)}); export it without --format"
        ) from error


def _example(model: InferenceModel, columns: Mapping[str, pa.Array]) -> tuple[Tensor, ...]:
    """What a program is traced with: torch.export takes a length of 0 or 1 for one that never changes, so
    there are seven rows, and each field has two ids at least.
    """
    rows = len(next(iter(columns.values())))
    places = pa.array([place % rows for place in range(7)])
    tensors = program_inputs(model, {name: array.take(places) for name, array in columns.items()})
    fields = 3 * len(model.spec.fields)
    full = [
        torch.cat([each, each.new_full((2 - len(each),), of_added)]) if len(each) < 2 else each
        for each, of_added in zip(tensors, (0, 0, 1) * len(model.spec.fields), strict=False)
    ]
    return (*full, *tensors[fields:])


def _largest_difference(
    model: InferenceModel, path: Path, kind: ProgramFormat, requests: Sequence[dict[str, pa.Array]]
) -> float:
    run = load_program(path, kind)
    largest = 0.0
    for each in requests:
        with torch.no_grad():
            got = run(*program_inputs(model, each))
        expected = model.predict_logits(each, calibrated=False)
        largest = max(largest, float((got - expected).abs().max()))
        if got.shape != expected.shape or not largest <= TOLERANCE:
            raise UserError(
                f"--format {kind}: over {len(expected)} rows the program differs from the model "
                f"'{model.recipe.name}' by {largest:.2e} in a logit, more than {TOLERANCE:g}: "
                "the model does other things for other numbers of rows; export it without --format"
            )
    return largest


def load_program(path: Path, kind: ProgramFormat) -> Any:
    """A program that `write_program` wrote, as a function of its tensors.

    A .pt2 file may hold pickled parts: load only files of your own.
    """
    if kind == "torchscript":
        return torch.jit.load(str(path))
    return torch.export.load(path).module()


class ProgramModel:
    """A program behind prismrec's reading of raw columns.

    Args:
        model: the model that it was made of.
        path: the program.
        kind: its format.
    """

    def __init__(self, model: InferenceModel, path: Path, kind: ProgramFormat) -> None:
        self._model, self._run = model, load_program(path, kind)

    def probabilities(self, columns: Mapping[str, Any]) -> Tensor:
        """Probabilities (B, T) of raw columns, as the model's."""
        arrays = to_arrow(columns, self._model.columns)
        with torch.inference_mode():
            logits = self._run(*program_inputs(self._model, arrays))
            return torch.sigmoid(mapped(self._model.maps, logits))


def describe_program(model: InferenceModel) -> dict[str, Any]:
    """The tensors that a program takes, in order, and what it gives."""
    inputs: list[dict[str, Any]] = []
    for field in model.spec.fields:
        inputs += [
            {"name": f"{field}/rows", "type": "int64", "shape": ["L"]},
            {"name": f"{field}/owners", "type": "int64", "shape": ["L"]},
            {"name": f"{field}/weights", "type": "float32", "shape": ["L"]},
        ]
    width = len(model.recipe.features.numeric)
    inputs.append({"name": "numbers", "type": "float32", "shape": ["B", width]})
    if model.recipe.reads_domain:
        inputs.append({"name": "domain", "type": "int64", "shape": ["B"]})
    output = {"name": "logits", "type": "float32", "shape": ["B", len(model.tasks)]}
    return {"torch": torch.__version__, "inputs": inputs, "output": output, "tasks": model.tasks}


def _check(model: InferenceModel, kind: ProgramFormat) -> None:
    recipe = model.recipe
    why = None
    if model.spec.sequences:
        why = "it reads sequences, whose lengths prismrec's own kernels follow"
    elif any(task.propensity is not None and task.propensity.undo for task in recipe.tasks):
        why = "what its propensities take off the logits is read from raw columns"
    elif model.manifest.dense_type != "fp32":
        why = "programs compute in fp32; leave out --dense bf16"
    if why is not None:
        raise UserError(f"--format {kind}: the model '{recipe.name}' cannot be a program: {why}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _first(columns: Mapping[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    return {name: array.slice(0, rows) for name, array in columns.items()}
