"""The models of several tasks as one would write them first: a module per expert, gate and tower, in loops.

One source of fields per set, flat experts of linear layers and ReLU, softmax gates. The weights come
from our model, so that both compute the same numbers; a test compares them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prismrec.models.extraction import Layer, LayerSpec
from prismrec.models.mixture import MixtureSpec, RankingModel
from prismrec.models.routing import everything


class PlainLayer(nn.Module):
    """Experts and gates of one layer, one after another.

    Args:
        spec: which experts there are, and who sees and moves them.
        widths: length of every source's vector.
        num_tasks: number of tasks.
        layer: ours, whose weights these get.
    """

    def __init__(
        self, spec: LayerSpec, widths: Sequence[int], num_tasks: int, layer: Layer
    ) -> None:
        super().__init__()
        self.spec = spec
        self.readers = num_tasks + spec.has_shared_stream
        self.experts = nn.ModuleList(
            _network(widths[each.set_index], each.projection.hidden) for each in spec.experts
        )
        self.kind = spec.gate.kind
        self.order = layer.experts.order
        outputs = len(spec.experts) * (layer.out_dim if self.kind == "elements" else 1)
        count = 1 if spec.gate.is_common else self.readers
        self.gates = nn.ModuleList()
        self.projections = nn.ModuleDict()
        if self.kind in ("softmax", "elements"):
            context = layer.gate.context.out_dim
            for _ in range(count):
                gate = _network(context, spec.gate.hidden.hidden)
                gate.append(nn.Linear([context, *spec.gate.hidden.hidden][-1], outputs))
                self.gates.append(gate)
            if spec.gate.context.kind == "projected":
                for source in self._read():
                    self.projections[str(source)] = nn.Sequential(
                        nn.Linear(widths[source], spec.gate.context.width, bias=False),
                        nn.LayerNorm(spec.gate.context.width),
                    )
        self._copy(layer)

    def forward(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """The sources (B, width) to the mix (B, H) of every reader."""
        spec = self.spec
        experts = [
            net(sources[each.set_index])
            for net, each in zip(self.experts, spec.experts, strict=True)
        ]
        use = spec.routing.use or everything(self.readers, len(experts))
        keep = spec.routing.keep or everything(self.readers, len(experts))
        mixes = []
        for reader in range(self.readers):
            seen = [m for m in range(len(experts)) if use[reader][m]]
            vectors = [experts[m] if keep[reader][m] else experts[m].detach() for m in seen]
            stacked = torch.stack(vectors, 1)
            if self.kind == "mean":
                mixes.append(stacked.mean(1))
                continue
            gate = self.gates[0 if spec.gate.is_common else reader]
            scores = gate(self._context(sources, reader))
            scores = scores.view(len(scores), len(experts), -1)[:, seen]
            mixes.append((torch.softmax(scores, 1) * stacked).sum(1))
        return mixes

    def _read(self) -> list[int]:
        read = self.spec.gate.context.sources or {e.set_index for e in self.spec.experts}
        return sorted(read)

    def _context(self, sources: Sequence[Tensor], reader: int) -> Tensor:
        context = self.spec.gate.context
        if context.kind == "projected":
            return torch.cat([self.projections[str(s)](sources[s]) for s in self._read()], 1)
        if context.kind == "concat":
            return torch.cat([sources[s] for s in self._read()], 1)
        own = context.sources[reader]
        if context.shared is None or context.shared == own:
            return sources[own]
        return sources[own] + sources[context.shared]

    @torch.no_grad()
    def _copy(self, layer: Layer) -> None:
        for plan, group in zip(layer.experts.plans, layer.experts.groups, strict=True):
            for row, expert in enumerate(plan.experts):
                at = None if plan.copies is None else row
                _fill(self.experts[expert], group.projection.linears, at)
        if self.gates:
            self._copy_gates(layer.gate)

    def _copy_gates(self, gate: nn.Module) -> None:
        back = torch.tensor(self.order).argsort()
        for reader, network in enumerate(self.gates):
            if len(network) > 1:
                _fill(network[:-1], gate.body.linears, reader)
            weight, bias = gate.scores.weight, gate.scores.bias
            if weight.dim() == 2:
                weight = weight.unflatten(0, (len(self.gates), -1))
                bias = None if bias is None else bias.unflatten(0, (len(self.gates), -1))
            last = network[-1]
            rows = weight[reader].unflatten(0, (len(back), -1))[back]
            last.weight.copy_(rows.flatten(0, 1))
            last.bias.zero_()
            if bias is not None:
                last.bias.copy_(bias[reader][back])
        if self.projections:
            self._copy_projections(gate.context)

    def _copy_projections(self, context: nn.Module) -> None:
        for group, (linear, norm) in zip(context.groups, context.projections, strict=True):
            for row, source in enumerate(group):
                ours = (linear.weight, norm.weight, norm.bias)
                if len(group) > 1:
                    ours = tuple(each[row] for each in ours)
                mine = self.projections[str(source)].parameters()
                for p, value in zip(mine, ours, strict=True):
                    p.copy_(value)


class PlainMixture(nn.Module):
    """A model of several tasks in loops, with the weights of ours.

    Args:
        model: ours, of one branch.
        spec: what that is.
        widths: length of every set's flattened field vectors.
        num_tasks: number of tasks.
    """

    def __init__(
        self, model: RankingModel, spec: MixtureSpec, widths: Sequence[int], num_tasks: int
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        branch = model.branches[0]
        layers = []
        for each, ours in zip(spec.layers, branch.extraction.layers, strict=True):
            layers.append(PlainLayer(each, widths, num_tasks, ours))
            widths = [ours.out_dim] * layers[-1].readers
        self.layers = nn.ModuleList(layers)
        self.towers = nn.ModuleList()
        towers = branch.tower
        for task in range(num_tasks):
            tower = _network(widths[0], spec.tower.hidden)
            tower.append(nn.Linear([widths[0], *spec.tower.hidden][-1], 1, bias=False))
            at = None if num_tasks == 1 else task
            with torch.no_grad():
                _fill(tower[:-1], towers.body.linears, at)
                head = towers.head.weight
                tower[-1].weight.copy_(head if at is None else head[at])
            self.towers.append(tower)

    def forward(self, sets: Sequence[Tensor]) -> Tensor:
        """The sets (B, N, K) to logits (B, T)."""
        sources: list[Tensor] = [each.flatten(1) for each in sets]
        for layer in self.layers:
            sources = layer(sources)
        return torch.cat([self.towers[t](sources[t]) for t in range(self.num_tasks)], 1)


def _network(width: int, hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([width, *hidden]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def _fill(network: nn.Module, linears: Sequence[nn.Module], row: int | None) -> None:
    """Copy row `row` of stacked linear layers, or single ones, into a network of plain ones."""
    own = [each for each in network.children() if isinstance(each, nn.Linear)]
    for mine, ours in zip(own, linears, strict=True):
        weight, bias = ours.weight, ours.bias
        mine.weight.copy_(weight if row is None else weight[row])
        mine.bias.copy_(bias if row is None else bias[row])
