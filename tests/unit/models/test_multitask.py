"""Models of experts, gates and towers: batched against looped, exported, in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prismrec.models import MODELS, Inputs, build_model
from tests.helpers.losses import global_mean_bce
from tests.unit.models.looped import looped_logits
from tests.unit.models.multitask_cases import (
    CASES,
    built,
    drawn,
    gradients,
)
from tests.unit.models.vectors import assert_close, axes


@pytest.mark.parametrize("case", CASES)
def test_batched_is_looped_in_value_and_gradient(case: str) -> None:
    section, shapes = CASES[case]
    model, inputs = built(section, shapes), drawn(shapes)
    spec = MODELS[section.name](section, shapes).branches[0]
    logits = model.eval()(inputs)[0]
    expected = looped_logits(model, spec, shapes, inputs)
    assert_close(logits, expected)
    assert logits.std() > 0.01
    torch.manual_seed(3)
    cotangent = torch.randn_like(logits)
    for t in range(shapes.num_tasks):
        ours = gradients(model, inputs, logits[:, t] @ cotangent[:, t])
        theirs = gradients(model, inputs, expected[:, t] @ cotangent[:, t])
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_gradient_though_a_task_has_no_row(case: str) -> None:
    section, shapes = CASES[case]
    torch.manual_seed(1)
    model, inputs = build_model(section, shapes).double(), drawn(shapes)
    logits, auxiliary = model(inputs)
    assert set(auxiliary) == (
        {"decorrelation"} if getattr(section, "decorrelation", "none") != "none" else set()
    )
    ones = torch.ones(7, shapes.num_tasks)
    valid = ones.clone()
    valid[:, 1:] = 0
    total, _ = global_mean_bce(logits, 0 * ones, valid, ones, torch.ones(shapes.num_tasks))
    (total + sum(auxiliary.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "case",
    [
        "shared_bottom",
        "ple of 3 layers",
        "stem of groups",
        "stem on any widths",
        "stem_al",
        "ame of pairs",
        "crocodile",
        "hetero_me listed",
        "hetero_me weights",
    ],
)
def test_export_with_a_dynamic_batch_gives_the_eager_logits(case: str) -> None:
    section, shapes = CASES[case]
    model = built(section, shapes).eval()

    def example(batch: int) -> Inputs:
        inputs = drawn(shapes, batch)
        return replace(inputs, sets=[x.detach() for x in inputs.sets])

    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    shaped = {"inputs": axes(example(7), {0: batch})}
    program = torch.export.export(model, (example(7),), dynamic_shapes=shaped)
    for rows in (1, 33):
        assert_close(program.module()(example(rows))[0], model(example(rows))[0])


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast_stays_near_float32(case: str) -> None:
    section, shapes = CASES[case]
    torch.manual_seed(1)
    model = build_model(section, shapes)
    inputs = drawn(shapes, 64)
    inputs = replace(
        inputs, sets=[x.detach().float() for x in inputs.sets], dense=inputs.dense.float()
    )
    exact, losses = model(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, rounded_losses = model(inputs)
        (rounded.sum() + sum(rounded_losses.values())).backward()
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()
    for name, loss in losses.items():
        assert rounded_losses[name].dtype == torch.float32
        torch.testing.assert_close(rounded_losses[name], loss, rtol=0.05, atol=1e-3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
