"""Models whose tasks weigh the experts by gates and have towers of their own.

Notation: T tasks (columns of the logits), M experts, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prismrec.config import UserError
from prismrec.config.models.decorrelation import Correlation, Covariance
from prismrec.config.models.multitask import (
    AME,
    CGC,
    PLE,
    STEM,
    STEMAL,
    Alike,
    Crocodile,
    Gated,
    Heterogeneous,
    MMoE,
    MoE,
    Owned,
    SharedBottom,
    Towered,
)
from prismrec.models.contexts import ContextSpec
from prismrec.models.decorrelation import (
    CorrelationSpec,
    CovarianceSpec,
    DecorrelationSpec,
    RowsSpec,
)
from prismrec.models.experts import ExpertSpec
from prismrec.models.extraction import LayerSpec
from prismrec.models.gates import GateSpec
from prismrec.models.inputs import Fields
from prismrec.models.interactions import FlatSpec
from prismrec.models.layers import MLPSpec
from prismrec.models.mixture import Composition, MixtureSpec
from prismrec.models.routing import Routing, Table, everything, own_and_shared
from prismrec.models.zoo.interactions import interaction_spec
from prismrec.models.zoo.single import Builder


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns experts, and what they read in the lowest layer.

    Args:
        sources: the set of each owner's experts.
        shared: the set of the experts of all.
        readers: the owner of each task; as many as there are owners for a task without experts of its
            own.
    """

    sources: tuple[int, ...]
    shared: int
    readers: tuple[int, ...]

    @property
    def nobody(self) -> int:
        """The owner of shared experts."""
        return len(self.sources)

    def source(self, owner: int) -> int:
        """The set that an owner's experts read."""
        return self.shared if owner == self.nobody else self.sources[owner]

    def stream(self, owner: int) -> int:
        """The stream that an owner's experts read above the lowest layer: that of its first task."""
        return len(self.readers) if owner == self.nobody else self.readers.index(owner)


def _shared_bottom(section: SharedBottom, fields: Fields) -> Composition:
    """`tower_t(MLP(x))`."""
    _check_sets(section, fields)
    layer = LayerSpec(_experts(section, fields, [0]), GateSpec("mean", is_common=True))
    return _composition(section, fields, (layer,))


def _moe(section: MoE, fields: Fields) -> Composition:
    """`tower_t(sum_m g_m E_m)`, `g = softmax(W x + b)` for all tasks."""
    _check_sets(section, fields)
    gate = replace(_gate(section, ContextSpec("concat")), is_common=True)
    experts = _experts(section, fields, [0] * section.num_experts)
    return _gated(section, fields, (LayerSpec(experts, gate),))


def _mmoe(section: MMoE, fields: Fields) -> Composition:
    """`tower_t(sum_m g_tm E_m)`, `g_t = softmax(W_t x + b_t)`."""
    _check_sets(section, fields)
    experts = _experts(section, fields, [0] * section.num_experts)
    return _gated(section, fields, (LayerSpec(experts, _gate(section, ContextSpec("concat"))),))


def _ple(section: CGC | PLE, fields: Fields) -> Composition:
    """CGC, and PLE, which is several of it: each task sees its own experts and the shared ones."""
    _check_sets(section, fields)
    if section.specific_experts + section.shared_experts == 0:
        raise UserError(
            "model.specific_experts: there is no expert at all; set it or model.shared_experts to 1"
        )
    tasks = _tasks(fields)
    own = Ownership((0,) * (max(tasks) + 1), 0, tasks)
    num_layers = section.num_layers if isinstance(section, PLE) else 1
    sees_all = isinstance(section, PLE) and section.shared_gate_scope == "all"
    layers = []
    for depth in range(num_layers):
        owners = _owners(section, own)
        has_stream = depth < num_layers - 1 and section.shared_experts > 0
        use = own_and_shared(owners, own.readers, own.nobody)
        if has_stream:
            row = everything(1, len(owners)) if sees_all else _of_nobody(owners, own)
            use = (*use, *row)
        context = ContextSpec("own", tuple(range(len(use)))) if depth else ContextSpec("concat")
        experts = _owned_experts(section, fields, own, owners, depth)
        layers.append(LayerSpec(experts, _gate(section, context), Routing(use=use), has_stream))
    return _gated(section, fields, tuple(layers))


def _stem(section: STEM, fields: Fields) -> Composition:
    """All tasks see all experts, and a task's loss moves its own and the shared ones."""
    _check_sets(section, fields)
    tasks, shared = _tasks(fields), len(fields.set_dims) - 1
    sources = tuple(range(shared))
    if section.owners:
        names = list(dict.fromkeys(fields.tasks))
        tasks = tuple(fields.sets.index(section.owners[names[task]]) for task in tasks)
    own = Ownership(sources, shared, tasks)
    layers = []
    for depth in range(section.num_layers):
        owners = _owners(section, own)
        has_stream = depth < section.num_layers - 1
        table = own_and_shared(owners, own.readers, own.nobody)
        stream = _of_nobody(owners, own) if has_stream else ()
        every = everything(1, len(owners)) if has_stream else ()
        sees_all = section.gate_visibility == "all"
        routing = Routing(
            use=None if sees_all else (*table, *every),
            keep=(*table, *(stream if section.strict_aftb else every))
            if section.stop_gradient
            else None,
        )
        context = _stem_context(section, own, depth, has_stream)
        experts = _owned_experts(section, fields, own, owners, depth)
        layers.append(LayerSpec(experts, _gate(section, context), routing, has_stream))
    return _gated(section, fields, tuple(layers))


def _stem_al(section: STEMAL, fields: Fields) -> Composition:
    """STEM with one task that owns a set; the other tasks have none."""
    _check_sets(section, fields)
    tasks = _tasks(fields)
    names = list(dict.fromkeys(fields.tasks))
    main = 0 if section.main_task is None else names.index(section.main_task)
    own = Ownership((0,), 1, tuple(0 if task == main else 1 for task in tasks))
    owners = [0] * section.experts_per_set + [1] * section.experts_per_set
    table = own_and_shared(owners, own.readers, own.nobody)
    routing = Routing(use=None if section.aux_reads_main else table, keep=table)
    context = _stem_context(section, own, 0, has_stream=False)
    experts = _owned_experts(section, fields, own, owners, 0)
    return _gated(section, fields, (LayerSpec(experts, _gate(section, context), routing),))


def _ame(section: AME, fields: Fields) -> Composition:
    """Experts on sets of different width, weighed by a gate for each task."""
    _check_sets(section, fields)
    sets = [m for m in range(len(fields.set_dims)) for _ in range(section.experts_per_set)]
    gate = _gate(section, ContextSpec(section.gate_input))
    if section.routing != "soft":
        gate = GateSpec("static", scores=_prior_scores(section, fields, sets))
    return _gated(section, fields, (LayerSpec(_experts(section, fields, sets), gate),))


def _crocodile(section: Crocodile, fields: Fields) -> Composition:
    """Experts on shared sets, weighed element by element by gates that read the prior set."""
    _check_sets(section, fields)
    prior = fields.sets.index(section.prior_set)
    sets = [m for m in range(len(fields.set_dims)) if m != prior]
    gate = replace(
        _gate(section, ContextSpec("concat", (prior,))),
        kind="elements",
        num_domains=fields.num_domains if section.domain_gates else 0,
    )
    return _gated(section, fields, (LayerSpec(_experts(section, fields, sets), gate),))


def _hetero_me(section: Heterogeneous, fields: Fields) -> Composition:
    """Experts of different interactions on shared sets; D-MoE adds the loss on their correlation."""
    _check_sets(section, fields)
    names = _set_names(fields)
    experts = []
    for each in section.listed(names):
        index = names.index(each.set)
        interaction = interaction_spec(each.interaction, fields, index)
        experts += [ExpertSpec(index, (interaction,), _mlp(section, section.hidden))] * each.count
    gate = replace(_gate(section, ContextSpec(section.gate_input)), kind=section.gate)
    return _gated(section, fields, (LayerSpec(tuple(experts), gate),))


MULTITASK: dict[str, Builder] = {
    "shared_bottom": _shared_bottom,
    "moe": _moe,
    "mmoe": _mmoe,
    "cgc": _ple,
    "ple": _ple,
    "stem": _stem,
    "stem_al": _stem_al,
    "ame": _ame,
    "crocodile": _crocodile,
    "hetero_me": _hetero_me,
    "dmoe": _hetero_me,
}
"""The composition of each model of this module, by its recipe name."""


def _set_names(fields: Fields) -> list[str]:
    return list(fields.sets) or [f"set{m}" for m in range(len(fields.set_dims))]


def _tasks(fields: Fields) -> tuple[int, ...]:
    """The task of each logit: two for a task that has a level."""
    names = fields.tasks or tuple(str(t) for t in range(fields.num_tasks))
    order = list(dict.fromkeys(names))
    return tuple(order.index(name) for name in names)


def _check_sets(section: Towered, fields: Fields) -> None:
    tasks = fields.tasks or tuple(str(t) for t in range(fields.num_tasks))
    problem = section.set_problem(_set_names(fields), list(dict.fromkeys(tasks)))
    if problem is not None:
        raise UserError(problem)


def _mlp(section: Towered, widths: Sequence[int]) -> MLPSpec:
    return MLPSpec(tuple(widths), section.dropout, section.norm)


def _experts(section: Alike, fields: Fields, sets: Sequence[int]) -> tuple[ExpertSpec, ...]:
    """An expert on each of some sets, which may come several times."""
    mlp, names = _mlp(section, section.hidden), _set_names(fields)
    kinds = [section.interactions.get(name, section.interaction) for name in names]
    return tuple(ExpertSpec(m, (interaction_spec(kinds[m], fields, m),), mlp) for m in sets)


def _owners(section: Owned, own: Ownership) -> list[int]:
    """The owner of each expert of a layer."""
    specific = [owner for owner in range(own.nobody) for _ in range(section.specific_experts)]
    return specific + [own.nobody] * section.shared_experts


def _of_nobody(owners: Sequence[int], own: Ownership) -> Table:
    """The row of a reader that has the shared experts only."""
    return own_and_shared(owners, [own.nobody], own.nobody)


def _owned_experts(
    section: Alike, fields: Fields, own: Ownership, owners: Sequence[int], depth: int
) -> tuple[ExpertSpec, ...]:
    """The experts of a layer, on the owners' sets or, above the lowest one, on their streams."""
    if depth == 0:
        return _experts(section, fields, [own.source(owner) for owner in owners])
    mlp = _mlp(section, section.hidden)
    return tuple(ExpertSpec(own.stream(owner), (FlatSpec(),), mlp) for owner in owners)


def _stem_context(
    section: STEM | STEMAL, own: Ownership, depth: int, has_stream: bool
) -> ContextSpec:
    """The own and the shared source of each task, and of the shared stream the shared one."""
    is_sum = section.gate_input == "sum"
    if depth:
        sources = tuple(range(len(own.readers) + has_stream))
        return ContextSpec("own" if is_sum else "own_projected", sources, len(own.readers))
    sources = tuple(own.source(owner) for owner in own.readers)
    if has_stream:
        sources = (*sources, own.shared)
    return ContextSpec("own" if is_sum else "own_projected", sources, own.shared)


def _gate(section: Gated, context: ContextSpec) -> GateSpec:
    return GateSpec("softmax", context, MLPSpec(section.gate_hidden))


def _prior_scores(
    section: AME, fields: Fields, sets: Sequence[int]
) -> tuple[tuple[float, ...], ...] | None:
    """`-|rank of the task's size - rank of the set's width|`, both from 0 to the number of sets - 1."""
    if section.routing != "prior":
        return None
    tasks = list(dict.fromkeys(fields.tasks))
    sizes = sorted(tasks, key=lambda task: section.task_sizes[task])
    widths = sorted(fields.set_dims)
    step = (len(widths) - 1) / max(1, len(tasks) - 1)
    return tuple(
        tuple(-abs(sizes.index(name) * step - widths.index(fields.set_dims[m])) for m in sets)
        for name in fields.tasks
    )


def _gated(section: Gated, fields: Fields, layers: tuple[LayerSpec, ...]) -> Composition:
    chosen = section.decorrelation
    if chosen == "none":
        return _composition(section, fields, layers)
    if len(layers[0].experts) < 2:
        raise UserError(
            "model.decorrelation: there is one expert, and nothing to keep it apart from; give the "
            "model several, or leave it out"
        )
    return _composition(section, fields, layers, _apart(chosen))


def _composition(
    section: Towered,
    fields: Fields,
    layers: tuple[LayerSpec, ...],
    apart: DecorrelationSpec | None = None,
) -> Composition:
    domains = fields.num_domains if section.domain_towers else 0
    return Composition((MixtureSpec(layers, _mlp(section, section.tower), apart, domains),))


def _apart(section: Covariance | Correlation) -> DecorrelationSpec:
    rows = None if section.rows == "all" else section.rows
    over = RowsSpec(rows, section.scope, section.normalize)
    if isinstance(section, Covariance):
        return CovarianceSpec(section.weight, section.pairs, section.include_variance, over)
    return CorrelationSpec(section.weight, section.norm, section.per_pair, section.eps, over)
