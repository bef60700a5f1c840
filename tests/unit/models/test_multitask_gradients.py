"""Whose loss reaches whom, to exact zero: task 0 is A, task 1 is B."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from prismrec.config.models.multitask import (
    CGC,
    PLE,
    STEMAL,
)
from prismrec.models import Inputs
from tests.unit.models.multitask_cases import (
    CASES,
    ONE,
    SMALL,
    THREE,
    built,
    drawn,
    fields,
    gradients,
    stem,
)
from tests.unit.models.vectors import assert_close


def reached(model: nn.Module, inputs: Inputs, task: int) -> dict[str, float]:
    """Sum of the absolute gradients of one task's logits, by parameter and by set."""
    logits = model.eval()(inputs)[0]
    return {
        name: gradient.abs().sum().item()
        for name, gradient in gradients(model, inputs, logits[:, task].sum()).items()
    }


def experts_reached(model: nn.Module, inputs: Inputs, task: int, depth: int = 0) -> list[float]:
    """The same of each expert of a layer, in the order of the spec."""
    logits = model.eval()(inputs)[0]
    found = gradients(model, inputs, logits[:, task].sum())
    experts = model.branches[0].extraction.layers[depth].experts
    totals: dict[int, float] = {}
    for g, plan in enumerate(experts.plans):
        prefix = f"branches.0.extraction.layers.{depth}.experts.groups.{g}."
        for row, m in enumerate(plan.experts):
            totals[m] = sum(
                (x if plan.copies is None else x[row]).abs().sum().item()
                for name, x in found.items()
                if name.startswith(prefix)
            )
    return [totals[m] for m in sorted(totals)]


def gates_reached(model: nn.Module, inputs: Inputs, task: int, depth: int = 0) -> list[float]:
    """The same of the scores of each reader's gate in a layer."""
    logits = model.eval()(inputs)[0]
    scores = model.branches[0].extraction.layers[depth].gate.scores.weight
    (gradient,) = torch.autograd.grad(logits[:, task].sum(), scores)
    readers = model.branches[0].extraction.layers[depth].gate.num_readers
    return gradient.reshape(readers, -1).abs().sum(1).tolist()


def towers_reached(model: nn.Module, inputs: Inputs, task: int) -> list[float]:
    logits = model.eval()(inputs)[0]
    (gradient,) = torch.autograd.grad(logits[:, task].sum(), model.branches[0].tower.head.weight)
    return gradient.flatten(1).abs().sum(1).tolist()


def zero(*values: float) -> bool:
    return all(value == 0 for value in values)


def moved(*values: float) -> bool:
    return all(value > 0 for value in values)


def test_all_tasks_move_the_experts_of_mmoe_and_their_own_gate_only():
    section, shapes = CASES["mmoe"]
    model, inputs = built(section, shapes), drawn(shapes)
    assert moved(*experts_reached(model, inputs, 0), reached(model, inputs, 0)["set 0"])
    own, other = gates_reached(model, inputs, 0)
    assert moved(own)
    assert zero(other)
    own, other = towers_reached(model, inputs, 0)
    assert moved(own)
    assert zero(other)


def test_a_task_moves_its_own_and_the_shared_experts_of_cgc():
    section = CGC(name="cgc", shared_experts=2, specific_experts=1, **SMALL)
    model, inputs = built(section, ONE), drawn(ONE)
    of_a, of_b, *shared = experts_reached(model, inputs, 0)
    assert moved(of_a, *shared, reached(model, inputs, 0)["set 0"])
    assert zero(of_b)
    own, other = gates_reached(model, inputs, 0)
    assert moved(own)
    assert zero(other)


@pytest.mark.parametrize("scope", ["all", "shared"])
def test_ple_lets_others_into_its_lower_layer_through_the_shared_stream(scope):
    section = PLE(
        name="ple", shared_experts=2, specific_experts=1, shared_gate_scope=scope, **SMALL
    )
    model, inputs = built(section, ONE), drawn(ONE)
    of_a, of_b, *shared = experts_reached(model, inputs, 0)
    assert moved(of_a, *shared)
    assert moved(of_b) if scope == "all" else zero(of_b)
    of_a, of_b, *shared = experts_reached(model, inputs, 0, depth=1)
    assert moved(of_a, *shared)
    assert zero(of_b)
    own, other, stream = gates_reached(model, inputs, 0)
    assert moved(own, stream)
    assert zero(other)
    assert gates_reached(model, inputs, 0, depth=1)[1] == 0


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("gate_input", ["sum", "projected"])
def test_stem_isolates_tables_and_experts_at_any_depth(num_layers, gate_input):
    model, inputs = built(stem(num_layers, gate_input=gate_input), THREE), drawn(THREE)
    for task, other in ((0, 1), (1, 0)):
        found = reached(model, inputs, task)
        assert moved(found[f"set {task}"], found["set 2"])
        assert zero(found[f"set {other}"], found[f"numeric.{other}.weight"])
        for depth in range(num_layers):
            *own, first, second = experts_reached(model, inputs, task, depth)
            assert moved(own[task], first, second)
            assert zero(own[other])
            assert gates_reached(model, inputs, task, depth)[other] == 0


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_stem_sees_the_tables_that_it_does_not_move(num_layers):
    model, inputs = built(stem(num_layers), THREE).eval(), drawn(THREE)
    before = model(inputs)[0]
    sets = [x.detach().clone() for x in inputs.sets]
    sets[1] += 0.1
    after = model(replace(inputs, sets=sets))[0]
    assert (after[:, 0] - before[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("num_layers", [2, 3])
def test_stem_as_released_leaks_from_the_second_layer_on(num_layers):
    """The shared stream between layers moves everybody's experts and tables."""
    model, inputs = built(stem(num_layers, strict_aftb=False), THREE), drawn(THREE)
    assert moved(reached(model, inputs, 0)["set 1"], experts_reached(model, inputs, 0)[1])
    assert zero(experts_reached(model, inputs, 0, num_layers - 1)[1])


def test_stem_as_released_is_strict_with_one_layer():
    model, inputs = built(stem(1, strict_aftb=False), THREE), drawn(THREE)
    assert zero(reached(model, inputs, 0)["set 1"])


def test_stops_change_no_value():
    torch.manual_seed(1)
    strict, free = built(stem(3), THREE), built(stem(3, stop_gradient=False), THREE)
    inputs = drawn(THREE)
    assert_close(strict(inputs)[0], free(inputs)[0])
    assert moved(reached(free, inputs, 0)["set 1"])


def test_tasks_of_a_group_share_a_set():
    section, shapes = CASES["stem of groups"]
    model, inputs = built(section, shapes), drawn(shapes)
    for task, own, other in ((0, 1, 0), (2, 1, 0), (1, 0, 1)):
        found = reached(model, inputs, task)
        assert moved(found[f"set {own}"], found["set 2"])
        assert zero(found[f"set {other}"])


def test_the_level_of_a_task_reads_and_moves_what_the_task_does():
    """A task with two logits, as under JRC, has one set and one group of experts."""
    section, shapes = CASES["stem of levels"]
    model, inputs = built(section, shapes), drawn(shapes)
    for logit, own, other in ((0, 0, 1), (2, 0, 1), (1, 1, 0)):
        found = reached(model, inputs, logit)
        assert moved(found[f"set {own}"], found["set 2"])
        assert zero(found[f"set {other}"])
    section, shapes = CASES["ple of levels"]
    model, inputs = built(section, shapes), drawn(shapes)
    for logit, own, other in ((0, 0, 1), (2, 0, 1), (1, 1, 0)):
        experts = experts_reached(model, inputs, logit, depth=1)
        assert moved(experts[own], experts[2])
        assert zero(experts[other])


@pytest.mark.parametrize("gate_input", ["sum", "projected"])
@pytest.mark.parametrize("reads_main", [True, False])
def test_auxiliary_tasks_never_move_the_main_table(gate_input, reads_main):
    section = STEMAL(name="stem_al", gate_input=gate_input, aux_reads_main=reads_main, **SMALL)
    shapes = fields((4, 4), 3)
    model, inputs = built(section, shapes), drawn(shapes)
    main = reached(model, inputs, 0)
    assert moved(main["set 0"], main["set 1"], *experts_reached(model, inputs, 0))
    for task in (1, 2):
        found = reached(model, inputs, task)
        assert zero(found["set 0"])
        assert moved(found["set 1"])
        of_main, shared = experts_reached(model, inputs, task)
        assert zero(of_main)
        assert moved(shared)
    sets = [x.detach().clone() for x in inputs.sets]
    sets[0] += 0.1
    change = model(replace(inputs, sets=sets))[0] - model(inputs)[0]
    assert (change[:, 1:].abs().max() > 1e-6) == reads_main


@pytest.mark.parametrize("case", ["ame", "crocodile", "hetero_me", "dmoe"])
def test_all_tasks_move_shared_sets_and_their_own_gate(case):
    section, shapes = CASES[case]
    model, inputs = built(section, shapes), drawn(shapes)
    found = reached(model, inputs, 0)
    assert moved(*(found[f"set {m}"] for m in range(len(shapes.set_dims))))
    assert moved(*experts_reached(model, inputs, 0))
    own, other = gates_reached(model, inputs, 0)
    assert moved(own)
    assert zero(other)


@pytest.mark.parametrize("case", ["crocodile", "dmoe"])
def test_the_loss_between_experts_reaches_no_gate_tower_or_prior(case):
    section, shapes = CASES[case]
    model, inputs = built(section, shapes), drawn(shapes)
    loss = model.train()(inputs)[1]["decorrelation"]
    found = gradients(model, inputs, loss)
    for name, gradient in found.items():
        is_expert = ".experts." in name or name.startswith(("set ", "numeric."))
        is_prior = case == "crocodile" and name in ("set 2", "numeric.2.weight")
        assert (gradient.abs().max() > 0) == (is_expert and not is_prior), name


def test_stem_isolates_tables_whatever_the_interactions():
    section, shapes = CASES["stem of several interactions"]
    model, inputs = built(section, shapes), drawn(shapes)
    for task, other in ((0, 1), (1, 0)):
        found = reached(model, inputs, task)
        assert moved(found[f"set {task}"], found["set 2"])
        assert zero(found[f"set {other}"], found[f"numeric.{other}.weight"])
