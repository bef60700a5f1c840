"""Towers and gates of domains in every model of experts, gates and towers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prismrec.models import Fields, Inputs
from tests.unit.models.multitask_cases import CASES, built, drawn, gradients
from tests.unit.models.vectors import assert_close, axes

DOMAIN = torch.tensor([1, 0, 2, 1, 1, 0, 2])


def model_of(case: str, **changes):
    section, shapes = CASES[case]
    assert isinstance(shapes, Fields)
    shapes = replace(shapes, num_domains=3)
    inputs = replace(drawn(shapes), domain=DOMAIN)
    return built(section.model_copy(update=changes), shapes), inputs


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_domain_train_its_towers_alone(case: str) -> None:
    model, inputs = model_of(case, domain_towers=True)
    logits, _ = model(inputs)
    found = gradients(model, inputs, logits[DOMAIN == 1].square().sum())
    towers = [name for name in found if ".tower." in name]
    assert len(towers) >= 3
    for name in towers:
        assert found[name][1].any(), name
        assert not found[name][[0, 2]].any(), name
    for name in (name for name in found if name.startswith("set ")):
        assert not found[name][DOMAIN != 1].any(), name


@pytest.mark.parametrize("case", CASES)
def test_a_domain_is_the_model_that_has_its_towers(case: str) -> None:
    model, inputs = model_of(case, domain_towers=True)
    single, _ = model_of(case)
    together, _ = model(inputs)
    for s in range(3):
        state = {
            name.replace(".scale.", "."): value[s] if ".tower." in name else value
            for name, value in model.state_dict().items()
        }
        wanted = single.state_dict().keys()
        single.load_state_dict({name: value for name, value in state.items() if name in wanted})
        bias = state["branches.0.tower.head.bias"].flatten()
        assert_close(together[s == DOMAIN], single(inputs)[0][s == DOMAIN] + bias, 1e-10)


@pytest.mark.parametrize("case", ["crocodile", "crocodile with layers"])
def test_rows_of_a_domain_train_its_gates_alone(case: str) -> None:
    model, inputs = model_of(case, domain_gates=True)
    logits, _ = model(inputs)
    found = gradients(model, inputs, logits[DOMAIN == 2].square().sum())
    gates = [name for name in found if "gate" in name and "scores" in name]
    assert gates
    for name in gates:
        assert found[name][2].any(), name
        assert not found[name][:2].any(), name


@pytest.mark.parametrize("case", ["crocodile", "crocodile with layers"])
def test_gates_of_domains_that_are_alike_are_one_gate(case: str) -> None:
    model, inputs = model_of(case, domain_gates=True)
    single, _ = model_of(case)
    state = model.state_dict()
    gates = [name for name in state if "gate" in name and "scores" in name]
    for name in gates:
        state[name][:] = state[name][:1]
    single.load_state_dict({n: v[0] if n in gates else v for n, v in state.items()})
    model.load_state_dict(state)
    assert_close(model(inputs)[0], single(inputs)[0])
    other = Inputs(inputs.sets, None, inputs.dense, torch.flip(DOMAIN, [0]))
    assert_close(model(other)[0], single(inputs)[0])


EVERYTHING = {"domain_towers": True, "domain_gates": True}


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_export_with_a_dynamic_batch_gives_the_eager_logits(norm: str) -> None:
    model, inputs = model_of("crocodile", norm=norm, **EVERYTHING)
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    example = Inputs([each.detach() for each in inputs.sets], None, inputs.dense, DOMAIN)
    program = torch.export.export(
        model, (example,), dynamic_shapes={"inputs": axes(example, {0: batch})}
    )
    for rows in (1, 7):
        part = Inputs(
            [each[:rows] for each in example.sets], None, inputs.dense[:rows], DOMAIN[:rows]
        )
        assert_close(program.module()(part)[0], model(part)[0])


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_bfloat16_autocast_stays_near_float32(norm: str) -> None:
    model, inputs = model_of("crocodile", norm=norm, **EVERYTHING)
    model.float().eval()
    example = Inputs([each.float() for each in inputs.sets], None, inputs.dense.float(), DOMAIN)
    exact, _ = model(example)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(example)
        rounded.sum().backward()
    assert rounded.dtype == torch.float32
    assert (rounded != rounded.bfloat16().float()).any()
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.2)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("case", ["mmoe", "crocodile"])
def test_a_domain_without_rows_gets_gradients_of_zero(case: str) -> None:
    model, inputs = model_of(
        case, **(EVERYTHING if case == "crocodile" else {"domain_towers": True})
    )
    logits, losses = model(Inputs(inputs.sets, None, inputs.dense, DOMAIN * 0))
    (logits[:, 0].sum() + sum(losses.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if ".tower." in name:
            assert not parameter.grad[1:].any(), name
