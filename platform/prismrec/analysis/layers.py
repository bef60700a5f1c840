"""What every layer of a model makes of a sample: field vectors, interactions, hidden layers, towers.

Modules are hooked while the model runs; nothing of it is changed, and nothing stays hooked. Layers
are read batch by batch, so that memory does not grow with the sample.

Notation: B rows of a batch, T tasks, M experts that run stacked, S sets of one shape, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prismrec.analysis.subject import Subject
from prismrec.models import fields_of
from prismrec.models.experts import Experts
from prismrec.models.extraction import Layer
from prismrec.models.heads.flat import FlatSets
from prismrec.models.inputs import Fields
from prismrec.models.interactions import DNN, Flat
from prismrec.models.mixture import MixtureBranch, RankingModel
from prismrec.models.objectives import build_decoder

Part = Literal["fields", "sequence", "interaction", "hidden", "mix", "tower", "logit"]


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """A place in a model where every row has a vector.

    Args:
        name: what plots call it, unique in its model: `wide: fields`, `expert 0 (wide): layer 1`.
        part: which part of the model it is: the field vectors of a set, what sequence modules make of
            it, an interaction's output, a hidden layer of an expert or another module, a task's mix of
            experts, a hidden layer of a tower, or a task's logit.
        width: W.
        task: whose it is alone; None where tasks share it.
    """

    name: str
    part: Part
    width: int
    task: str | None = None


@dataclass(frozen=True, slots=True)
class LayerRows:
    """What some layers make of a batch.

    Args:
        vectors: (B, W) float32 of each point, by its name.
        labels: (B, T), NaN where a task has no valid label.
    """

    vectors: Mapping[str, Tensor]
    labels: Tensor


def layer_points(subject: Subject) -> list[LayerPoint]:
    """Every place that can be read, in the order of the forward pass.

    A model from outside the package shows its direct parts that give one vector per row.
    """
    sample = next(subject.samples(), None)
    if sample is None:
        return []
    found = _read(subject.model, _taps(subject), sample.inputs)
    return [LayerPoint(each.name, each.part, each.vectors.shape[1], each.task) for each in found]


def layer_rows(subject: Subject, names: Sequence[str]) -> Iterator[LayerRows]:
    """What the named points make of the sample, a batch at a time and in its order.

    Raises:
        ValueError: there is no such point.
    """
    chosen = set(names)
    taps = _taps(subject)
    for sample in subject.samples():
        read = _read(subject.model, taps, sample.inputs, chosen)
        found = {each.name: each.vectors for each in read}
        if len(found) < len(chosen):
            raise ValueError(f"there is no {sorted(chosen - set(found))} in {subject.name}")
        yield LayerRows(found, sample.labels)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the leading axis of what a module gives: its name, and the task that it is of."""

    name: str
    task: str | None = None


@dataclass(frozen=True, slots=True)
class _Tap:
    """A module to read.

    Args:
        module: it is hooked.
        part: of the model.
        rows: what it gives, by the number of its calls in a pass; its stacked vectors are as many.
        take: (rows, B, W) out of what it was given and what it gave; None to leave a call out.
    """

    module: nn.Module
    part: Part
    rows: Callable[[int, int], Sequence[_Row]]
    take: Callable[[tuple[Any, ...], Any], Tensor | None]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a row of a tap gave for a batch, vectors (B, W) float32."""

    name: str
    part: Part
    task: str | None
    vectors: Tensor


def _read(
    model: nn.Module, taps: Sequence[_Tap], inputs: Any, chosen: set[str] | None = None
) -> list[_Found]:
    """Everything that a batch goes through, or what is chosen of it, in the order of the taps."""
    found: list[list[_Found]] = [[] for _ in taps]
    calls = [0 for _ in taps]

    def hook(at: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(module: nn.Module, given: tuple[Any, ...], gave: Any) -> None:
            tap, stack = taps[at], taps[at].take(given, gave)
            if stack is None or stack.shape[1] != len(inputs.dense):
                return  # one vector for each behaviour, say, is not one for each row
            rows = tap.rows(calls[at], len(stack))
            calls[at] += 1
            for row, vectors in zip(rows, stack, strict=True):
                if chosen is None or row.name in chosen:
                    # a copy: the layers behind may work in place
                    kept = vectors.detach().float().clone()
                    found[at].append(_Found(row.name, tap.part, row.task, kept))

        return keep

    with ExitStack() as stack, torch.no_grad():
        for at, tap in enumerate(taps):
            stack.callback(tap.module.register_forward_hook(hook(at)).remove)
        model(inputs)
    return [each for of_tap in found for each in of_tap]


def _taps(subject: Subject) -> list[_Tap]:
    model = subject.model
    tasks = subject.recipe.task_names
    levels = [f"level of {each.name}" for each in subject.recipe.tasks if each.has_level]
    columns = [*(_Row(task, task) for task in tasks), *map(_Row, levels)]
    if isinstance(model, RankingModel):
        fields = fields_of(subject.recipe, subject.spec)
        taps = _of_ranking_model(model, fields, columns)
    elif any(isinstance(each, FlatSets) for each in model.modules()):
        taps = _of_head(model, columns)
    else:
        taps = _of_parts(model)
    decoder = build_decoder(subject.recipe)

    def logits(given: tuple[Any, ...], gave: Any) -> Tensor:
        decoded, _ = decoder(gave[0].float())
        return decoded.t().unsqueeze(-1)  # type: ignore[no-any-return]

    names = [_Row(f"logit of {task}", task) for task in tasks]
    return [*taps, _Tap(model, "logit", lambda call, count: names, logits)]


def _of_ranking_model(model: RankingModel, fields: Fields, columns: Sequence[_Row]) -> list[_Tap]:
    """Its parts; `columns` are the names of what towers give, tasks and their levels."""
    taps = []
    branches = list(model.branches)
    if branches:
        taps += [
            _of_stack(branches[0], at, stack, fields, model.plan.beside)
            for at, stack in enumerate(model.plan.stacks)
        ]
    for number, branch in enumerate(branches):
        lead = f"{number}." if len(branches) > 1 else ""
        suffix = f" {number}" if len(branches) > 1 else ""
        if isinstance(branch, MixtureBranch):
            layers = list(branch.extraction.layers)
            for level, layer in enumerate(layers):
                assert isinstance(layer, Layer)
                deeper = f"level {level + 1}, " if len(layers) > 1 else ""
                taps += _of_experts(layer.experts, lead, deeper, fields if not level else None)
                taps.append(_of_mix(layer, deeper, suffix, columns))
        else:
            experts: Any = branch.experts
            taps += _of_experts(experts, lead, "", fields)
        body = getattr(branch.tower, "body", None)
        if body is not None:
            taps.append(_of_layers(body.dropout, "tower", f"tower{suffix}", columns))
    return taps


def _of_stack(
    branch: nn.Module,
    at: int,
    stack: tuple[int, ...],
    fields: Fields,
    beside: Mapping[int, int],
) -> _Tap:
    """Field vectors of some sets, or what sequence modules make of them, side by side."""
    owners = {source: of_set for of_set, source in beside.items()}
    is_sequence = stack[0] in owners
    kind: Part = "sequence" if is_sequence else "fields"
    what = "sequences" if is_sequence else "fields"
    rows = [_Row(f"{fields.sets[owners.get(source, source)]}: {what}") for source in stack]
    return _Tap(branch, kind, lambda call, count: rows, lambda given, gave: given[0][at].flatten(2))


def _of_experts(experts: Experts, lead: str, deeper: str, fields: Fields | None) -> list[_Tap]:
    """The interactions of experts on sets, where `fields` names them, and the layers of all experts."""
    taps = []
    for plan, group in zip(experts.plans, experts.groups, strict=True):
        each = len(plan.experts) // len(plan.set_indices)
        names = []
        for row, expert in enumerate(plan.experts):
            source = plan.set_indices[row // each]
            of_set = f" ({fields.sets[source]})" if fields else ""
            names.append(f"{deeper}expert {lead}{expert}{of_set}")
        of_group: Any = group
        if fields:
            taps += _of_interactions(list(of_group.interactions), names)
        taps.append(_hidden(of_group.projection.dropout, names))
    return taps


def _of_interactions(interactions: Sequence[nn.Module], names: Sequence[str]) -> list[_Tap]:
    """What each interaction gives; field vectors that only stand side by side are there already."""
    taps, seen = [], Counter[str]()
    for interaction in interactions:
        kind = type(interaction).__name__
        seen[kind] += 1
        again = f" {seen[kind]}" if seen[kind] > 1 else ""
        if isinstance(interaction, DNN):
            taps.append(_hidden(interaction.mlp.dropout, names, f"DNN{again} "))
        elif not isinstance(interaction, Flat):
            rows = [_Row(f"{name}: {kind}{again}") for name in names]
            taps.append(_of_interaction(interaction, rows))
    return taps


def _of_interaction(interaction: nn.Module, rows: Sequence[_Row]) -> _Tap:
    def take(given: tuple[Any, ...], gave: Tensor) -> Tensor:
        # found once for all copies where there are no weights
        return gave if gave.dim() == 3 else gave.expand(len(rows), *gave.shape)

    return _Tap(interaction, "interaction", lambda call, count: rows, take)


def _hidden(dropout: nn.Module, names: Sequence[str], which: str = "") -> _Tap:
    """Layers of experts: behind the activation stands a dropout, in evaluation the identity."""
    return _Tap(
        dropout,
        "hidden",
        lambda call, count: [_Row(f"{name}: {which}layer {call + 1}") for name in names],
        lambda given, gave: _stacked(gave),
    )


def _of_mix(layer: Layer, deeper: str, suffix: str, columns: Sequence[_Row]) -> _Tap:
    def rows(call: int, count: int) -> list[_Row]:
        if count == 1 < len(columns):
            return [_Row(f"{deeper}mix{suffix}")]
        readers = [_Row(f"{deeper}mix{suffix} of {each.name}", each.task) for each in columns]
        return [*readers, _Row(f"{deeper}mix{suffix}, shared")][:count]

    return _Tap(layer, "mix", rows, lambda given, gave: gave[0].transpose(0, 1))


def _of_layers(dropout: nn.Module, part: Part, name: str, columns: Sequence[_Row]) -> _Tap:
    """Layers that tasks share, or that each task has of its own."""

    def rows(call: int, count: int) -> list[_Row]:
        if count == len(columns) > 1:
            return [_Row(f"{name} of {each.name}: layer {call + 1}", each.task) for each in columns]
        if count == 1:
            return [_Row(f"{name}: layer {call + 1}")]
        return [_Row(f"{name}, copy {copy}: layer {call + 1}") for copy in range(count)]

    return _Tap(
        dropout, part, lambda call, count: rows(call, count), lambda given, gave: _stacked(gave)
    )


def _of_head(model: nn.Module, columns: Sequence[_Row]) -> list[_Tap]:
    """Models of one network: the vectors that go in, and every activation by its module's name."""
    taps = []
    for path, module in model.named_modules():
        if isinstance(module, FlatSets):
            row = _Row("fields" if path == "flat" else f"{path}: fields")
            taps.append(
                _Tap(
                    module,
                    "fields",
                    lambda call, count, row=row: [row],  # type: ignore[misc]
                    lambda given, gave: gave.unsqueeze(0),
                )
            )
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            name = path.removesuffix("dropout").removesuffix(".").removesuffix(".body")
            part: Part = "tower" if name == "towers" else "hidden"
            taps.append(_of_layers(module, part, name or "network", columns))
    return taps


def _of_parts(model: nn.Module) -> list[_Tap]:
    """The direct parts of a module from outside that give a vector per row."""

    def take(given: tuple[Any, ...], gave: Any) -> Tensor | None:
        is_vectors = isinstance(gave, Tensor) and gave.dim() == 2 and gave.is_floating_point()
        return gave.unsqueeze(0) if is_vectors else None

    return [
        _Tap(
            module,
            "hidden",
            lambda call, count, name=name: [_Row(name if not call else f"{name}, call {call + 1}")],  # type: ignore[misc]
            take,
        )
        for name, module in model.named_children()
    ]


def _stacked(vectors: Tensor) -> Tensor:
    """(M, B, W) also of a single (B, W)."""
    return vectors if vectors.dim() == 3 else vectors.unsqueeze(0)
