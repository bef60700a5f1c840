"""Experts that read sequences through their set: in every composition, with weights that all learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prismrec.config import UserError
from prismrec.config.models import BUILT_IN
from prismrec.models import Fields, Inputs, RankingModel, SequenceInputs, SequenceShape, build_model
from prismrec.models.sequence.sources import SequenceVectors
from prismrec.models.zoo.sequences import sequence_spec
from tests.unit.models.sequence.fixture import order
from tests.unit.models.vectors import assert_close

LENGTHS = [2, 0, 3, 1]
COLUMNS = 2
"""Columns of behaviours: item and category."""


def fields(dims: tuple[int, ...], attention: int | None = None) -> Fields:
    shape = SequenceShape(
        widths=tuple(COLUMNS * dim for dim in dims), attention=attention, positions=3, intervals=5
    )
    names = tuple(f"s{m}" for m in range(len(dims)))
    return Fields(3, 2, dims, 2, (3,) * len(dims), sets=names, sequences=(shape,))


def inputs(of: Fields, *, is_wide: bool, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()

    rows, total = len(LENGTHS), sum(LENGTHS)
    where = order(LENGTHS, torch.randint(0, 5, (total,), generator=generator))
    shape = of.sequences[0]
    sequence = SequenceInputs(
        behaviours=[draw(total, width) for width in shape.widths],
        targets=[draw(rows, width) for width in shape.widths],
        attention=None if shape.attention is None else [draw(total, 2), draw(rows, 2)],
        offsets=where.offsets,
        positions=where.positions,
        intervals=where.intervals,
    )
    return Inputs(
        sets=[draw(rows, 3, dim) for dim in of.set_dims],
        linear=draw(rows, 3, 2) if is_wide else None,
        dense=draw(rows, 2).detach(),
        sequences=[sequence],
    )


def model(of: Fields, **section: Any) -> RankingModel:
    asked = BUILT_IN[section["name"]].model_validate(section)
    torch.manual_seed(1)
    built = build_model(asked, of).double()
    assert isinstance(built, RankingModel)
    return built


MODULES: dict[str, Any] = {
    "tim": {"kind": "tim", "encoding": "both"},
    "din": {"kind": "din", "hidden": [4]},
    "dare": {"kind": "dare", "attention": "att", "encoding": "both", "time_dim": 4},
}
MODELS: dict[str, dict[str, Any]] = {
    "dnn": {"hidden": [6, 4]},
    "deepfm": {"hidden": [6, 4]},
    "dcnv2": {"hidden": [6, 4], "num_cross_layers": 1},
}


@pytest.mark.parametrize("merge", ["mean", "gate"])
@pytest.mark.parametrize("dims", [(4,), (4, 4), (4, 8, 4)])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("module", MODULES)
def test_every_weight_and_every_behaviour_learns(
    module: str, name: str, dims: tuple[int, ...], merge: str
) -> None:
    of = fields(dims, attention=2 if module == "dare" else None)
    built = model(of, name=name, merge=merge, sequence=MODULES[module], **MODELS[name])
    given = inputs(of, is_wide=name == "deepfm")
    logits, losses = built(given)
    assert logits.shape == (4, 2)
    assert not losses
    logits.square().sum().backward()
    for key, parameter in built.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    (sequence,) = given.sequences
    for of_set in sequence.behaviours:
        assert of_set.grad is not None
        assert of_set.grad.any(1).all()
    if sequence.attention is not None:
        assert sequence.attention[0].grad.any()


def test_no_behaviour_in_the_batch_leaves_every_weight_a_gradient() -> None:
    of = fields((4, 8))
    built = model(of, name="dcnv2", sequence="tim", hidden=[6])
    given = inputs(of, is_wide=False)
    (sequence,) = given.sequences
    none = replace(
        sequence,
        behaviours=[each[:0] for each in sequence.behaviours],
        offsets=torch.zeros(5, dtype=torch.int64),
        positions=sequence.positions[:0],
        intervals=sequence.intervals[:0],
    )
    logits, _ = built(replace(given, sequences=[none]))
    logits.sum().backward()
    for key, parameter in built.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_a_behaviour_of_one_row_moves_that_row_alone() -> None:
    of = fields((4, 8))
    built = model(of, name="deepfm", sequence="tim", hidden=[6]).eval()
    given = inputs(of, is_wide=True)
    before, _ = built(given)
    (sequence,) = given.sequences
    with torch.no_grad():
        sequence.behaviours[1][2] += 1.0  # the first of the third row, in the second set
    after, _ = built(given)
    changed = (before - after).abs().sum(1)
    assert changed[2] > 1e-6
    assert_close(changed[[0, 1, 3]], [0.0, 0, 0])


def test_sets_of_equal_width_run_as_one_and_are_modules_of_their_own() -> None:
    of = fields((4, 8, 4))
    spec = sequence_spec(
        BUILT_IN["dnn"].model_validate({"name": "dnn", "sequence": "din"}).sequence
    )
    readers = SequenceVectors(spec, of, {0, 1, 2}).double()
    assert len(readers.readers) == 2
    given = inputs(of, is_wide=False).sequences
    found = readers(given)
    for index, m in enumerate((0, 2)):
        alone = SequenceVectors(spec, of, {m}).double()
        state = readers.readers[0].state_dict()
        alone.readers[0].load_state_dict({k: v[index] for k, v in state.items()})
        assert_close(alone(given)[m], found[m])


def test_the_expert_of_one_set_alone_reads_what_dare_sums() -> None:
    of = fields((4, 4), attention=2)
    asked = MODULES["dare"] | {"representation": "s1"}
    built = model(of, name="dnn", sequence=asked, hidden=[6])
    assert built.sequences is not None
    assert list(built.sequences.widths) == [1]
    given = inputs(of, is_wide=False)
    built(given)[0].sum().backward()
    assert given.sequences[0].behaviours[0].grad is None
    assert given.sequences[0].behaviours[1].grad.any()


def test_sets_that_cover_no_target_have_experts_that_read_no_sequence() -> None:
    of = fields((4, 4))
    of = replace(of, sequences=(replace(of.sequences[0], widths=(0, 8)),))
    built = model(of, name="dnn", sequence="tim", hidden=[6])
    given = inputs(of, is_wide=False)
    built(given)[0].sum().backward()
    assert given.sequences[0].behaviours[1].grad.any()


def test_two_sequences_stand_side_by_side() -> None:
    of = fields((4,))
    of = replace(of, sequences=of.sequences * 2)
    built = model(of, name="dnn", sequence="tim", hidden=[6])
    assert built.sequences is not None
    assert built.sequences.widths == {0: 2 * 16}
    given = inputs(of, is_wide=False)
    given = replace(
        given, sequences=[*given.sequences, *inputs(of, is_wide=False, seed=1).sequences]
    )
    built(given)[0].sum().backward()
    for each in given.sequences:
        assert each.behaviours[0].grad.any()


MULTITASK: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "shared_bottom": ((4,), {}),
    "mmoe": ((4,), {"num_experts": 2}),
    "ple": ((4,), {}),
    "stem": ((4, 4, 4), {}),
    "ame": ((4, 8), {}),
    "crocodile": ((4, 4, 4), {"prior_set": "s2"}),
}


@pytest.mark.parametrize("name", MULTITASK)
def test_experts_of_models_of_several_tasks_read_sequences(name: str) -> None:
    dims, section = MULTITASK[name]
    of = replace(fields(dims), tasks=("a", "b"))
    built = model(of, name=name, sequence="tim", **section)
    given = inputs(of, is_wide=False)
    logits, losses = built(given)
    (logits.square().sum() + sum(losses.values())).backward()
    for key, parameter in built.named_parameters():
        assert parameter.grad is not None, key
    for m, of_set in enumerate(given.sequences[0].behaviours):
        if name == "crocodile" and m == 2:  # only the gates read it
            assert of_set.grad is None
        else:
            assert of_set.grad is not None
            assert of_set.grad.any(1).all()


def test_behaviours_in_a_set_of_one_task_learn_nothing_from_the_other() -> None:
    """STEM: all forward, own task backward, through the sequence module too."""
    of = replace(fields((4, 4, 4)), tasks=("a", "b"))
    built = model(of, name="stem", sequence="tim")
    own = [0, 1]
    for task in own:
        given = inputs(of, is_wide=False)
        logits, _ = built(given)
        logits[:, task].sum().backward()
        grads = [each.grad for each in given.sequences[0].behaviours]
        moved = [grad is not None and bool(grad.any()) for grad in grads]
        assert sum(moved) == 2, moved  # the task's set and the shared one
        if task == 0:
            first = moved
    assert first != moved


@pytest.mark.parametrize("name", ["star", "esmm"])
def test_models_with_heads_of_their_own_read_no_sequence(name: str) -> None:
    section = BUILT_IN[name].model_validate({"name": name, "sequence": "tim"})
    with pytest.raises(UserError, match=f"model.sequence: '{name}' has no expert with layers"):
        build_model(section, replace(fields((4,)), num_domains=2))


def test_constants_of_a_sequence_have_its_values_and_no_gradient() -> None:
    of = fields((4,), attention=2)
    built = model(of, name="dnn", sequence=MODULES["dare"], hidden=[6])
    given = inputs(of, is_wide=False)
    constant = replace(given, sequences=[each.detached() for each in given.sequences])
    assert torch.equal(built(constant)[0], built(given)[0])
    built(constant)[0].sum().backward()
    (sequence,) = given.sequences
    for each in (*sequence.behaviours, *sequence.targets, *(sequence.attention or ())):
        assert each.grad is None


@pytest.mark.parametrize("copies", [None, 2])
@pytest.mark.parametrize("module", MODULES)
def test_a_learned_vector_for_rows_without_behaviours(module: str, copies: int | None) -> None:
    section = MODULES[module] | {"empty_token": True}
    dims = (4,) if copies is None else (4, 4)
    of = fields(dims, attention=2 if module == "dare" else None)
    spec = sequence_spec(
        BUILT_IN["dnn"].model_validate({"name": "dnn", "sequence": section}).sequence
    )
    plain = SequenceVectors(spec.reader, of, range(len(dims))).double()
    readers = SequenceVectors(spec, of, range(len(dims))).double()
    (reader,) = readers.readers
    reader.reader.load_state_dict(plain.readers[0].state_dict())
    with torch.no_grad():
        reader.token += torch.arange(reader.out_dim - 1)
    given = inputs(of, is_wide=False).sequences
    for m, found in readers(given).items():
        expected = plain(given)[m].clone()
        expected[1] += torch.arange(reader.out_dim - 1)  # the row without behaviours
        assert_close(found[:, :-1], expected)
        assert found[:, -1].tolist() == [1, 0, 1, 1]


def test_the_learned_vector_starts_at_nothing_and_learns() -> None:
    of = fields((4, 8))
    asked = {"kind": "tim", "empty_token": True}
    built = model(of, name="dnn", sequence=asked, hidden=[6])
    built(inputs(of, is_wide=False))[0].square().sum().backward()
    for reader in built.sequences.readers:
        assert not reader.token.any()
        assert reader.token.grad.any()
