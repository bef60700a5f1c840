"""Layers of any experts, sources, gates and routing: batched is looped, in value and gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prismrec.models import Inputs
from prismrec.models.contexts import ContextSpec
from prismrec.models.experts import ExpertSpec
from prismrec.models.extraction import Layer, LayerSpec
from prismrec.models.gates import GateSpec
from prismrec.models.interactions import CrossV2Spec, FlatSpec, FMSpec
from prismrec.models.layers import MLPSpec
from prismrec.models.routing import Routing
from prismrec.models.sources import SourcePlan, plan_sources
from tests.unit.models.looped import looped_layer

SHAPES = ((2, 4), (2, 4), (3, 4), (2, 4), (3, 4))
BATCH = 5


@dataclass(frozen=True)
class Drawn:
    spec: LayerSpec
    num_tasks: int
    together: bool


@st.composite
def layers(draw: st.DrawFn) -> Drawn:
    num_tasks = draw(st.integers(1, 3))
    count = draw(st.integers(1, 6))
    source = st.integers(0, len(SHAPES) - 1)
    interaction = st.sampled_from([FlatSpec(), FMSpec(), CrossV2Spec(1)])
    experts = tuple(
        ExpertSpec(draw(source), (draw(interaction),), MLPSpec((3,))) for _ in range(count)
    )
    kind = draw(st.sampled_from(["softmax", "elements", "static", "weights", "sum", "mean"]))
    context = draw(
        st.sampled_from(
            [
                ContextSpec(width=4),
                ContextSpec("concat"),
                ContextSpec(
                    "own", tuple(draw(st.sampled_from([0, 1, 3])) for _ in range(num_tasks))
                ),
                ContextSpec("own", (1,) * num_tasks, shared=3),
                ContextSpec(
                    "own_projected", tuple(draw(source) for _ in range(num_tasks)), draw(source), 4
                ),
            ]
        )
    )
    hidden = MLPSpec(draw(st.sampled_from([(), (6,)])))
    row = st.tuples(*[st.booleans()] * count)
    use = tuple(draw(row.filter(any)) for _ in range(num_tasks))
    keep = tuple(draw(row) for _ in range(num_tasks))
    routing = Routing(draw(st.sampled_from([None, use])), draw(st.sampled_from([None, keep])))
    spec = LayerSpec(experts, GateSpec(kind, context, hidden), routing)
    return Drawn(spec, num_tasks, draw(st.booleans()))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(layers())
def test_any_layer_is_its_experts_and_readers_one_at_a_time(drawn: Drawn) -> None:
    torch.manual_seed(1)
    everything = range(len(SHAPES))
    together = drawn.spec.together(SourcePlan(SHAPES, ())) if drawn.together else ()
    plan = plan_sources(SHAPES, everything, together)
    layer = Layer(drawn.spec, plan, drawn.num_tasks).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.1, 0.5)
    sources = [torch.randn(BATCH, *shape, dtype=torch.float64).requires_grad_() for shape in SHAPES]
    stacks = [torch.stack([sources[m] for m in stack]) for stack in plan.stacks]
    ours, _ = layer(stacks, Inputs([], None, torch.zeros(BATCH, 0)))
    theirs = torch.cat(looped_layer(drawn.spec, layer, sources, drawn.num_tasks), 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for reader in range(drawn.num_tasks):
        for mine, other in zip(
            _gradients(ours[:, reader], layer, sources),
            _gradients(theirs[:, reader], layer, sources),
            strict=True,
        ):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-11)


def _gradients(mixes: Tensor, layer: Layer, sources: list[Tensor]) -> list[Tensor]:
    leaves = [*layer.parameters(), *sources]
    if not mixes.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    cotangent = torch.linspace(-1, 1, mixes.numel(), dtype=torch.float64).view_as(mixes)
    found = torch.autograd.grad(mixes, leaves, cotangent, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(leaf) if each is None else each
        for leaf, each in zip(leaves, found, strict=True)
    ]
