"""Layers of experts behind gates, one expert, reader and task at a time, by plain products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prismrec.models import Fields, Inputs
from prismrec.models.experts import ExpertGroup, ExpertSpec
from prismrec.models.extraction import Layer, LayerSpec
from prismrec.models.mixture import MixtureSpec, RankingModel
from prismrec.models.routing import everything
from prismrec.models.towers import TaskTowers


def looped_logits(model: RankingModel, spec: MixtureSpec, fields: Fields, inputs: Inputs) -> Tensor:
    """The logits (B, T) of a model of one branch, from its own weights."""
    branch = model.branches[0]
    sources = []
    for m, vectors in enumerate(inputs.sets):
        if str(m) in model.numeric:
            own = inputs.dense[:, :, None] * model.numeric[str(m)].weight
            vectors = torch.cat([vectors, own], 1)
        sources.append(vectors)
    for layer, of_layer in zip(spec.layers, branch.extraction.layers, strict=True):
        sources = looped_layer(layer, of_layer, sources, fields.num_tasks)
    logits = [_tower(branch.tower, spec, sources[t][:, 0], t) for t in range(fields.num_tasks)]
    return torch.stack(logits, 1) + model.first_order.bias


def looped_layer(
    spec: LayerSpec, layer: Layer, sources: list[Tensor], num_tasks: int
) -> list[Tensor]:
    """The mixes of the readers, (B, 1, H) each."""
    num_readers, num_experts = num_tasks + spec.has_shared_stream, len(spec.experts)
    use = spec.routing.use or everything(num_readers, num_experts)
    keep = spec.routing.keep or everything(num_readers, num_experts)
    E = looped_experts(spec.experts, layer, sources)
    mixes = []
    for reader in range(num_readers):
        gates = _gates(spec, layer, sources, reader, use[reader])
        total = 0
        for m in range(num_experts):
            vector = E[m] if keep[reader][m] else E[m].detach()
            total = total + gates[m] * vector
        mixes.append(total.unsqueeze(1))
    return mixes


def looped_experts(
    specs: tuple[ExpertSpec, ...], layer: Layer, sources: list[Tensor]
) -> list[Tensor]:
    """The output (B, H) of each expert, in the order of the specs."""
    outputs: dict[int, Tensor] = {}
    for plan, group in zip(layer.experts.plans, layer.experts.groups, strict=True):
        for row, m in enumerate(plan.experts):
            X = sources[specs[m].set_index]
            single = ExpertGroup(specs[m], tuple(X.shape[1:]), None).double()
            weights = {
                name: p if plan.copies is None else p[row] for name, p in group.named_parameters()
            }
            outputs[m] = functional_call(single, weights, (X,))
    return [outputs[m] for m in range(len(specs))]


def _gates(
    spec: LayerSpec, layer: Layer, sources: list[Tensor], reader: int, seen: tuple[bool, ...]
) -> list[Tensor]:
    """For each expert, in the order of the specs, (B, 1), (1,) or (B, H)."""
    order, num_experts = layer.experts.order, len(spec.experts)
    gate, row = layer.gate, 0 if spec.gate.is_common else reader
    if spec.gate.kind in ("sum", "mean", "weights"):
        share = 1 / sum(seen) if spec.gate.kind == "mean" else 1
        numbers = [
            gate.bias[row, order.index(m)] if spec.gate.kind == "weights" else share
            for m in range(num_experts)
        ]
        return [float(seen[m]) * torch.ones(1).double() * numbers[m] for m in range(num_experts)]
    if spec.gate.kind == "static":
        scores = [gate.bias[row, order.index(m)].view(1, 1) for m in range(num_experts)]
    else:
        scores = _scores(spec, layer, sources, reader)
    exps = [scores[m].exp() if seen[m] else None for m in range(num_experts)]
    total = sum(each for each in exps if each is not None)
    return [torch.zeros(1).double() if each is None else each / total for each in exps]


def _scores(spec: LayerSpec, layer: Layer, sources: list[Tensor], reader: int) -> list[Tensor]:
    gate, order = layer.gate, layer.experts.order
    row = 0 if spec.gate.is_common else reader
    x = _context(spec, layer, sources, reader)
    weight, bias = gate.scores.weight, gate.scores.bias
    if weight.dim() == 3:
        if not isinstance(gate.body, nn.Identity):
            for linear in gate.body.linears:
                x = F.relu(x @ linear.weight[row].T + linear.bias[row])
        weight, bias = weight[row], None if bias is None else bias[row]
    else:
        each = gate.num_experts * (gate.elements or 1)
        mine = slice(row * each, (row + 1) * each)
        weight, bias = weight[mine], None if bias is None else bias[mine]
    scores = x @ weight.T + (0 if bias is None else bias)
    pieces = scores.split(gate.elements or 1, 1)
    return [pieces[order.index(m)] for m in range(len(order))]


def _context(spec: LayerSpec, layer: Layer, sources: list[Tensor], reader: int) -> Tensor:
    context, module = spec.gate.context, layer.gate.context
    flat = [x.flatten(1) for x in sources]
    read = context.sources or tuple(sorted({each.set_index for each in spec.experts}))
    if context.kind == "concat":
        shapes = [tuple(sources[s].shape[1:]) for s in read]
        first = {shape: read[shapes.index(shape)] for shape in shapes}
        ordered = sorted(read, key=lambda s: (first[tuple(sources[s].shape[1:])], s))
        return torch.cat([flat[s] for s in ordered], 1)
    if context.kind == "projected":
        projected = _projected(module, flat)
        return torch.cat([projected[s] for group in module.groups for s in group], 1)
    own, shared = context.sources[reader], context.shared
    if context.kind == "own":
        return flat[own] if shared in (None, own) else flat[own] + flat[shared]
    projected = _projected(module.projected, flat)
    return torch.cat([projected[own], *([] if shared is None else [projected[shared]])], 1)


def _projected(module: nn.Module, flat: list[Tensor]) -> dict[int, Tensor]:
    found = {}
    for group, (linear, norm) in zip(module.groups, module.projections, strict=True):
        for row, s in enumerate(group):
            own = (lambda p, row=row: p[row]) if len(group) > 1 else (lambda p: p)
            x = flat[s] @ own(linear.weight).T
            found[s] = F.layer_norm(x, x.shape[-1:]) * own(norm.weight) + own(norm.bias)
    return found


def _tower(towers: TaskTowers, spec: MixtureSpec, h: Tensor, task: int) -> Tensor:
    single = TaskTowers(h.shape[1], spec.tower, 1).double()
    weights = {
        name: p if towers.copies is None else p[task] for name, p in towers.named_parameters()
    }
    empty = Inputs([], None, h.new_zeros(len(h), 0))
    return functional_call(single, weights, (h.unsqueeze(1), empty))[:, 0]
