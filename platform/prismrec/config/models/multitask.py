"""Recipe sections of the models whose tasks weigh the experts by gates and have towers of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from prismrec.config.errors import nearest
from prismrec.config.models.base import Common, DomainTowers
from prismrec.config.models.decorrelation import Correlation, Covariance, DecorrelationKind
from prismrec.config.models.interactions import CrossV2Kind, FlatKind, InteractionKind
from prismrec.config.section import Section

if TYPE_CHECKING:
    from prismrec.config.recipe import Recipe

Width = Annotated[int, Field(ge=1)]


class Towered(DomainTowers):
    """What every model with a tower for each task has."""

    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (512, 512, 512)
    """Widths of the layers of an expert."""
    tower: tuple[Width, ...] = (128, 64)
    """Widths of the hidden layers of each task's tower."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that an output of a hidden layer of experts and towers is zeroed in training."""
    norm: Literal["layer", "batch", "none"] = "none"
    """Normalisation after each hidden linear layer of experts and towers; batch moments are over the
    global batch."""

    def set_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        """Why the model cannot have these embedding sets and tasks, from the key on; None if it can.

        Args:
            sets: names of the embedding sets.
            tasks: names of the tasks, each once.
        """
        raise NotImplementedError

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """Why the model does not go with the rest of the recipe, a sentence each, from the key on."""
        sets = [each.name for each in self.expert_sets(recipe.embedding)]
        problem = self.set_problem(sets, recipe.task_names)
        if problem is not None:
            yield problem


class Alike(Towered):
    """A model whose experts have the same interaction, or one by the set that they read."""

    interaction: InteractionKind = FlatKind()
    """What each expert does with the vectors of its set, before its layers."""
    interactions: dict[str, InteractionKind] = Field(default_factory=dict)
    """What the experts on some sets do instead, by the name of the set."""

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """Why the model does not go with the rest of the recipe, a sentence each, from the key on."""
        yield from super().problems(recipe)
        sets = [each.name for each in self.expert_sets(recipe.embedding)]
        for name in self.interactions:
            if name not in sets:
                yield f"model.interactions.{name}: no set is called that; {nearest(name, sets)}"


class OneSet(Alike):
    """A model that reads one embedding set."""

    def set_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        """Why the model cannot have these embedding sets; see `Towered`."""
        if len(sets) == 1:
            return None
        return (
            f"embedding.num_sets: model.name = '{getattr(self, 'name', '')}' reads one embedding "
            f"set, and there are {len(sets)}; use 1, or 'ame', 'hetero_me' or 'stem' for several"
        )


class Gated(Towered):
    """A model with gates over several experts."""

    gate_hidden: tuple[Width, ...] = ()
    """Widths of the hidden layers of each gate."""
    decorrelation: DecorrelationKind = "none"
    """A loss that keeps the experts of the lowest layer apart."""


class SharedBottom(OneSet):
    """One expert that all tasks share, and a tower for each task."""

    name: Literal["shared_bottom"]
    tower: tuple[Width, ...] = (128, 128)
    """Widths of the hidden layers of each task's tower."""


class MoE(OneSet, Gated):
    """Experts weighed by one gate that all tasks share, and a tower for each task."""

    name: Literal["moe"]
    num_experts: int = Field(default=8, ge=1)


class MMoE(OneSet, Gated):
    """Experts weighed by a gate for each task."""

    name: Literal["mmoe"]
    num_experts: int = Field(default=8, ge=1)


class Owned(Gated):
    """A model with experts of each task and experts of all."""

    shared_experts: int = Field(default=8, ge=0)
    """Experts that all tasks share, in each layer."""
    specific_experts: int = Field(default=1, ge=0)
    """Experts of each task, in each layer."""


class CGC(OneSet, Owned):
    """Experts of each task beside shared ones; a task's gate sees its own and the shared ones."""

    name: Literal["cgc"]


class PLE(OneSet, Owned):
    """Several layers of CGC; below the last one a shared stream has a gate over the experts too."""

    name: Literal["ple"]
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (256,)
    """Widths of the layers of an expert, in each layer of extraction."""
    tower: tuple[Width, ...] = (256, 128, 64)
    """Widths of the hidden layers of each task's tower."""
    num_layers: int = Field(default=2, ge=1)
    """Layers of extraction."""
    shared_gate_scope: Literal["all", "shared"] = "all"
    """Which experts the shared stream sees: all of the layer, or only the shared ones."""


class STEM(Alike, Owned):
    """A set of each task and a shared one: every task reads all, and moves its own and the shared."""

    name: Literal["stem"]
    shared_experts: int = Field(default=8, ge=1)
    """Experts on the shared set, in each layer."""
    specific_experts: int = Field(default=1, ge=1)
    """Experts on the set of each task, in each layer."""
    gate_hidden: tuple[Width, ...] = (128, 64)
    """Widths of the hidden layers of each gate."""
    num_layers: int = Field(default=1, ge=1)
    """Layers of extraction."""
    owners: dict[str, str] = Field(default_factory=dict)
    """The set of each task, by the task's name; several tasks may share one. If not given, the first
    sets are the tasks' in their order. The last set is the shared one."""
    strict_aftb: bool = True
    """Whether the shared stream between layers moves shared experts only. Without it, as in the code that
    was released, other tasks move a task's tables from the second layer on."""
    gate_visibility: Literal["all", "own_and_shared"] = "all"
    """Which experts a task's gate sees."""
    stop_gradient: bool = True
    """Whether a task's loss stops at the experts of the others."""
    gate_input: Literal["sum", "projected"] = "sum"
    """What a task's gate reads: the sum of its own and the shared set's vectors, which then need one shape;
    or both projected and side by side, for sets of any shape."""

    def set_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        """Why the model cannot have these embedding sets; see `Towered`."""
        if self.owners:
            return self._owner_problem(sets, tasks)
        needed = len(tasks) + 1
        if len(sets) == needed:
            return None
        return (
            f"embedding.sets: 'stem' needs {needed} embedding sets, one for each of {len(tasks)} tasks "
            f"in their order and a shared one at the end, and there are {len(sets)}; set "
            f"embedding.num_sets = {needed}, or name the set of each task in model.owners"
        )

    def _owner_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        own = sets[:-1]
        for task in tasks:
            if task not in self.owners:
                return f"model.owners: task '{task}' has no set; name one of {', '.join(own)}"
        for task, name in self.owners.items():
            if task not in tasks:
                return f"model.owners.{task}: there is no such task; {nearest(task, tasks)}"
            if name not in own:
                return (
                    f"model.owners.{task}: '{name}' is no set that a task can own, which are all but "
                    f"the last; {nearest(name, own)}"
                )
        idle = [name for name in own if name not in self.owners.values()]
        if idle:
            return (
                f"model.owners: no task owns the set '{idle[0]}'; give it one or leave the set out"
            )
        return None

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """Why the model does not go with the rest of the recipe, a sentence each, from the key on."""
        yield from super().problems(recipe)
        yield from _sum_problems(self, recipe)


class STEMAL(Alike, Gated):
    """A main task with a set of its own beside a shared one; auxiliary tasks move the shared one only."""

    name: Literal["stem_al"]
    gate_hidden: tuple[Width, ...] = (128, 64)
    """Widths of the hidden layers of each gate."""
    experts_per_set: int = Field(default=1, ge=1)
    main_task: str | None = None
    """Name of the main task; the first one if not given."""
    aux_reads_main: bool = True
    """Whether auxiliary tasks read the main experts, which they do not move; else the shared ones only."""
    gate_input: Literal["sum", "projected"] = "sum"
    """What the main task's gate reads: the sum of both sets' vectors, which then need one shape; or both
    projected and side by side."""

    def set_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        """Why the model cannot have these embedding sets; see `Towered`."""
        if self.main_task is not None and self.main_task not in tasks:
            return f"model.main_task: there is no such task; {nearest(self.main_task, tasks)}"
        if len(sets) == 2:
            return None
        return (
            "embedding.sets: 'stem_al' needs 2 embedding sets, that of the main task and then the shared "
            f"one, and there are {len(sets)}; set embedding.num_sets = 2"
        )

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """Why the model does not go with the rest of the recipe, a sentence each, from the key on."""
        yield from super().problems(recipe)
        yield from _sum_problems(self, recipe)


class AME(Alike, Gated):
    """Shared sets of different width, an expert on each, weighed by a gate for each task."""

    name: Literal["ame"]
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (512, 256, 128)
    """Widths of the layers of an expert."""
    norm: Literal["layer", "batch", "none"] = "layer"
    """Normalisation after each hidden linear layer of experts and towers: without it wide sets speak
    loudest."""
    experts_per_set: int = Field(default=1, ge=1)
    gate_input: Literal["projected", "concat"] = "projected"
    """What gates read: each set projected and normalised, so that none speaks louder for its width, or
    all sets' vectors side by side."""
    routing: Literal["soft", "static", "prior"] = "soft"
    """`soft`: a gate that reads the row; `static`: learned numbers for each task; `prior`: the same, starting
    with large tasks on wide sets."""
    task_sizes: dict[str, float] = Field(default_factory=dict)
    """Rows or positives of each task, by its name, for `prior`."""

    def set_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        """Why the model cannot have these embedding sets; see `Towered`."""
        if len(sets) < 2:
            return (
                "embedding.sets: 'ame' needs 2 embedding sets or more, best of different widths, and "
                "there is 1; name them in embedding.sets, or use 'mmoe'"
            )
        given = set(self.task_sizes)
        if self.routing == "prior" and given != set(tasks):
            return (
                "model.task_sizes: routing = 'prior' needs a size for each task, "
                f"{', '.join(tasks)}, got {', '.join(sorted(given)) or 'none'}"
            )
        if self.routing != "prior" and given:
            return "model.task_sizes: only routing = 'prior' reads them; leave them out"
        if self.routing != "soft" and self.gate_hidden:
            return (
                f"model.gate_hidden: routing = '{self.routing}' has numbers for gates and no layers; "
                "leave it out, or use 'soft'"
            )
        return None


class Crocodile(Alike, Gated):
    """Shared sets, an expert on each, kept apart by their covariance, and element-wise gates on a prior."""

    name: Literal["crocodile"]
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (512, 256, 128)
    """Widths of the layers of an expert."""
    prior_set: str
    """The set that only the gates read, such as one that covers the ids of user, item and domain."""
    decorrelation: DecorrelationKind = Covariance()
    """The loss that keeps the experts apart."""
    domain_gates: bool = False
    """Whether each domain has gate weights of its own; otherwise it enters through the prior set."""

    @property
    def reads_domain(self) -> bool:
        """With towers or gates of domains."""
        return self.domain_towers or self.domain_gates

    def set_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        """Why the model cannot have these embedding sets; see `Towered`."""
        if self.prior_set not in sets:
            return f"model.prior_set: no set is called that; {nearest(self.prior_set, sets)}"
        if len(sets) < 3:
            return (
                "embedding.sets: 'crocodile' needs 2 embedding sets or more for its experts and "
                f"'{self.prior_set}' for its gates, and there are {len(sets)}; name another one"
            )
        return None


def _bare_experts(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Expert(Section):
    """One expert, or several alike, on one set."""

    set: str
    """Name of the embedding set."""
    interaction: InteractionKind = FlatKind()
    """What it does with the vectors of its set, before its layers."""
    count: int = Field(default=1, ge=1)
    """How many such experts there are, each with weights of its own."""


class Heterogeneous(Gated):
    """Experts each with an interaction of its own."""

    experts: Annotated[tuple[Expert, ...], BeforeValidator(_bare_experts)] = ()
    """The experts one by one: `[{set = "wide", interaction = "ipnn"}]`. If not given, a `crossv2` and a
    `flat` one on each set."""
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (256,)
    """Widths of the layers of an expert, behind its interaction."""
    tower: tuple[Width, ...] = (256, 128)
    """Widths of the hidden layers of each task's tower."""
    norm: Literal["layer", "batch", "none"] = "layer"
    """Normalisation after each hidden linear layer of experts and towers."""
    gate_input: Literal["projected", "concat"] = "projected"
    """What gates read: each set projected and normalised, so that none speaks louder for its width, or
    all sets' vectors side by side."""
    gate: Literal["softmax", "static", "weights", "sum", "mean"] = "softmax"
    """How a task weighs the experts: a distribution that reads the row, or learned and the same for all
    rows; learned numbers that start at 1; or 1 or 1 / M, not learned."""

    def set_problem(self, sets: Sequence[str], tasks: Sequence[str]) -> str | None:
        """Why the model cannot have these embedding sets; see `Towered`."""
        for index, each in enumerate(self.experts):
            if each.set not in sets:
                return (
                    f"model.experts[{index}].set: no set is called that; {nearest(each.set, sets)}"
                )
        if self.gate != "softmax" and self.gate_hidden:
            return f"model.gate_hidden: gate = '{self.gate}' has no layers; leave it out, or use 'softmax'"
        read = {each.set for each in self.experts} or set(sets)
        idle = [name for name in sets if name not in read]
        if idle:
            return (
                f"model.experts: no expert reads the set '{idle[0]}'; add one or leave the set out"
            )
        return None

    def listed(self, sets: Sequence[str]) -> tuple[Expert, ...]:
        """The experts, whichever way they were written."""
        kinds: tuple[CrossV2Kind | FlatKind, ...] = (CrossV2Kind(), FlatKind())
        return self.experts or tuple(
            Expert(set=name, interaction=kind) for name in sets for kind in kinds
        )


class HeteroME(Heterogeneous):
    """Experts of different interactions on shared sets, weighed by a gate for each task."""

    name: Literal["hetero_me"]


class DMoE(Heterogeneous):
    """Hetero-ME whose experts are kept apart by a loss on their correlation."""

    name: Literal["dmoe"]
    decorrelation: DecorrelationKind = Correlation()
    """The loss that keeps the experts apart."""


def _sum_problems(section: STEM | STEMAL, recipe: Recipe) -> Iterator[str]:
    """Sets of unequal shape whose vectors a gate would add."""
    shapes = {(each.dim, each.features) for each in section.expert_sets(recipe.embedding)}
    if section.gate_input == "sum" and len(shapes) > 1:
        yield (
            "model.gate_input: 'sum' adds the vectors of a task's own and the shared set, which differ in "
            "width or features; give all sets the same, or use 'projected'"
        )


MULTITASK: dict[str, type[Common]] = {
    "shared_bottom": SharedBottom,
    "moe": MoE,
    "mmoe": MMoE,
    "cgc": CGC,
    "ple": PLE,
    "stem": STEM,
    "stem_al": STEMAL,
    "ame": AME,
    "crocodile": Crocodile,
    "hetero_me": HeteroME,
    "dmoe": DMoE,
}
"""The models of this module by their recipe names."""
