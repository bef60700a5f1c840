"""Small models of experts, gates and towers, by name, with inputs for them and their gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from prismrec.config.models.interactions import CrossV2Kind, FMKind, IPNNKind
from prismrec.config.models.multitask import (
    AME,
    CGC,
    PLE,
    STEM,
    STEMAL,
    Crocodile,
    DMoE,
    Expert,
    HeteroME,
    MMoE,
    MoE,
    SharedBottom,
)
from prismrec.models import Fields, Inputs, build_model

SMALL = {"hidden": (6, 5), "tower": (4,)}
GATES = {"gate_hidden": (7,)}


def fields(dims: tuple[int, ...], num_tasks: int = 2, num_dense: int = 2) -> Fields:
    return Fields(
        num_sparse=3,
        num_dense=num_dense,
        set_dims=dims,
        num_tasks=num_tasks,
        set_fields=(3,) * len(dims),
        sets=tuple("abcdef"[: len(dims)]),
        tasks=tuple(f"t{t}" for t in range(num_tasks)),
    )


ONE, TWO, THREE = fields((4,)), fields((4, 4)), fields((4, 4, 4))
CASES: dict[str, tuple[object, Fields]] = {
    "shared_bottom": (SharedBottom(name="shared_bottom", **SMALL), ONE),
    "moe": (MoE(name="moe", num_experts=3, **SMALL), ONE),
    "mmoe": (MMoE(name="mmoe", num_experts=3, **SMALL), ONE),
    "mmoe gates with layers": (MMoE(name="mmoe", num_experts=3, **SMALL, **GATES), ONE),
    "mmoe crossed": (
        MMoE(name="mmoe", num_experts=3, interaction=CrossV2Kind(num_layers=2), **SMALL),
        ONE,
    ),
    "mmoe of products": (MMoE(name="mmoe", num_experts=3, interaction=FMKind(), **SMALL), ONE),
    "mmoe of one task": (MMoE(name="mmoe", num_experts=3, **SMALL), fields((4,), 1)),
    "cgc": (CGC(name="cgc", shared_experts=2, specific_experts=1, **SMALL), ONE),
    "cgc of equal numbers": (CGC(name="cgc", shared_experts=2, specific_experts=2, **SMALL), ONE),
    "cgc of shared only": (CGC(name="cgc", shared_experts=2, specific_experts=0, **SMALL), ONE),
    "cgc of own only": (CGC(name="cgc", shared_experts=0, specific_experts=2, **SMALL), ONE),
    "ple": (PLE(name="ple", shared_experts=2, specific_experts=1, **SMALL), ONE),
    "ple of own only": (PLE(name="ple", shared_experts=0, specific_experts=1, **SMALL), ONE),
    "ple of 3 layers": (
        PLE(
            name="ple",
            shared_experts=1,
            specific_experts=2,
            num_layers=3,
            shared_gate_scope="shared",
            **SMALL,
            **GATES,
        ),
        fields((4,), 3),
    ),
    "stem": (STEM(name="stem", shared_experts=2, **SMALL), THREE),
    "stem of 2 layers": (STEM(name="stem", shared_experts=2, num_layers=2, **SMALL), THREE),
    "stem of 3 layers": (
        STEM(name="stem", shared_experts=1, specific_experts=2, num_layers=3, **SMALL),
        THREE,
    ),
    "stem released": (
        STEM(name="stem", shared_experts=2, num_layers=2, strict_aftb=False, **SMALL),
        THREE,
    ),
    "stem that sees its own": (
        STEM(name="stem", num_layers=2, gate_visibility="own_and_shared", **SMALL),
        THREE,
    ),
    "stem without stops": (
        STEM(name="stem", shared_experts=2, num_layers=2, stop_gradient=False, **SMALL),
        THREE,
    ),
    "stem on any widths": (
        STEM(name="stem", num_layers=2, shared_experts=2, gate_input="projected", **SMALL),
        fields((4, 8, 12)),
    ),
    "stem of several interactions": (
        STEM(
            name="stem",
            shared_experts=2,
            gate_input="projected",
            interactions={"b": IPNNKind(), "c": CrossV2Kind(num_layers=2)},
            **SMALL,
        ),
        fields((4, 8, 12)),
    ),
    "stem of groups": (
        STEM(
            name="stem",
            num_layers=2,
            shared_experts=2,
            owners={"t0": "b", "t1": "a", "t2": "b"},
            **SMALL,
        ),
        fields((4, 4, 4), 3),
    ),
    "stem of levels": (
        STEM(name="stem", shared_experts=2, num_layers=2, **SMALL),
        replace(fields((4, 4, 4), 3), tasks=("t0", "t1", "t0")),
    ),
    "ple of levels": (
        PLE(name="ple", shared_experts=1, specific_experts=1, **SMALL),
        replace(fields((4,), 3), tasks=("t0", "t1", "t0")),
    ),
    "stem_al": (STEMAL(name="stem_al", **SMALL), fields((4, 4), 3)),
    "stem_al of the second": (
        STEMAL(name="stem_al", main_task="t1", experts_per_set=2, aux_reads_main=False, **SMALL),
        fields((4, 4), 3),
    ),
    "stem_al on any widths": (
        STEMAL(name="stem_al", gate_input="projected", **SMALL),
        fields((4, 8), 3),
    ),
    "ame": (AME(name="ame", **SMALL), fields((4, 8, 12))),
    "ame of pairs": (AME(name="ame", experts_per_set=2, **SMALL, **GATES), fields((4, 8, 4))),
    "ame of several interactions": (
        AME(name="ame", experts_per_set=2, interactions={"a": FMKind()}, **SMALL),
        fields((4, 8, 4)),
    ),
    "ame of sets as they are": (
        AME(name="ame", gate_input="concat", **SMALL, **GATES),
        fields((4, 8, 4)),
    ),
    "ame static": (AME(name="ame", routing="static", **SMALL), fields((4, 8, 12))),
    "ame prior": (
        AME(name="ame", routing="prior", task_sizes={"t0": 1e3, "t1": 1e6}, **SMALL),
        fields((4, 8, 12)),
    ),
    "crocodile": (Crocodile(name="crocodile", prior_set="c", **SMALL), THREE),
    "crocodile with layers": (
        Crocodile(name="crocodile", prior_set="a", **SMALL, **GATES),
        fields((8, 4, 4, 12)),
    ),
    "hetero_me": (HeteroME(name="hetero_me", **SMALL), fields((4, 8))),
    "hetero_me of sets as they are": (
        HeteroME(name="hetero_me", gate_input="concat", **SMALL),
        fields((4, 8)),
    ),
    "hetero_me listed": (
        HeteroME(
            name="hetero_me",
            experts=(
                Expert(set="a", interaction=FMKind()),
                Expert(set="b", interaction=IPNNKind(), count=2),
                Expert(set="b"),
                Expert(set="a", interaction=FMKind()),
            ),
            **SMALL,
        ),
        fields((4, 8)),
    ),
    **{
        f"hetero_me {gate}": (HeteroME(name="hetero_me", gate=gate, **SMALL), fields((4, 8)))
        for gate in ("static", "weights", "sum", "mean")
    },
    "dmoe": (DMoE(name="dmoe", **SMALL), fields((4, 8))),
}


def drawn(shapes: Fields, batch: int = 7) -> Inputs:
    torch.manual_seed(2)
    sets = [
        torch.randn(batch, count, dim, dtype=torch.float64).requires_grad_()
        for count, dim in zip(shapes.set_fields, shapes.set_dims, strict=True)
    ]
    return Inputs(sets, None, torch.randn(batch, shapes.num_dense, dtype=torch.float64))


def built(section, shapes: Fields) -> nn.Module:
    """The model in float64, every parameter off its start."""
    torch.manual_seed(1)
    model = build_model(section, shapes).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, 0, 0.5)
        else:
            nn.init.normal_(parameter, std=0.4)
    return model


def gradients(model: nn.Module, inputs: Inputs, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter and set by name; zeros where there is none."""
    named = {**dict(model.named_parameters())}
    named |= {f"set {m}": x for m, x in enumerate(inputs.sets)}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def stem(num_layers: int, **options) -> STEM:
    return STEM(name="stem", shared_experts=2, num_layers=num_layers, **SMALL, **options)
