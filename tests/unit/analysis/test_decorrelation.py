"""Correlation of experts and shares of gates, against NumPy, loops and numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prismrec.analysis import decorrelation
from prismrec.analysis.decorrelation import (
    ExpertMoments,
    expert_moments,
    gate_shares,
    look_at_experts,
    summed_over_pairs,
)
from prismrec.config.models.multitask import MMoE
from prismrec.config.models.single import DCNv2
from prismrec.models import Composition, RankingModel
from prismrec.models.experts import ExpertGroup, ExpertSpec
from prismrec.models.interactions import FlatSpec
from prismrec.models.mixture import BranchSpec
from tests.unit.models.multitask_cases import CASES, built, drawn, fields


def outputs(seed: int = 0, rows: int = 50, widths: tuple[int, ...] = (3, 2, 4)) -> list[Tensor]:
    """Experts that share a part of what they say."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, 1, generator=generator)
    return [torch.randn(rows, width, generator=generator) + common for width in widths]


def test_moments_by_hand() -> None:
    one = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    other = torch.tensor([[2.0, 5.0], [1.0, 5.0], [0.0, 5.0], [-3.0, 5.0]])
    found = expert_moments([one, other])
    assert found.mean.tolist() == [3, 0, 5]
    # Deviations -2, -1, 0, 3 and their negatives; the last column does not vary.
    torch.testing.assert_close(
        found.scatter, torch.tensor([[14.0, -14, 0], [-14, 14, 0], [0, 0, 0]]).double()
    )
    assert found.correlation().tolist() == [[1, 0.5], [0.5, 0.25]]
    assert found.covariance_norms().tolist() == [[3.5, 3.5], [3.5, 3.5]]
    assert found.alignment().tolist() == [[1, 1], [1, 1]]
    assert found.flat_columns() == [0, 1]
    assert summed_over_pairs(found.correlation()) == 0.5


def test_correlation_against_numpy_and_loops() -> None:
    each = outputs()
    found, arrays = expert_moments(each), [one.double().numpy() for one in each]
    R, norms, aligned = found.correlation(), found.covariance_norms(), found.alignment()
    for p, q in itertools.product(range(3), repeat=2):
        first, second = arrays[p], arrays[q]
        values = [
            abs(np.corrcoef(first[:, i], second[:, j])[0, 1])
            for i in range(first.shape[1])
            for j in range(second.shape[1])
        ]
        assert float(R[p, q]) == pytest.approx(np.mean(values), abs=1e-12)
        first, second = first - first.mean(0), second - second.mean(0)
        product = first.T @ second
        assert float(norms[p, q]) == pytest.approx(np.linalg.norm(product) / 50, abs=1e-12)
        own = np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)
        assert float(aligned[p, q]) == pytest.approx(np.linalg.norm(product) ** 2 / own)
    assert summed_over_pairs(R) == pytest.approx(float(R[0, 1] + R[0, 2] + R[1, 2]))


def test_moments_of_parts_add_up() -> None:
    each = outputs(rows=64)
    each[0] += 1e6  # large means must not cost digits
    whole = expert_moments(each)
    parts = [expert_moments([one[rows] for one in each]) for rows in (slice(7), slice(7, 64))]
    added = parts[0] + parts[1]
    assert added.rows == 64
    torch.testing.assert_close(added.mean, whole.mean, rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(added.scatter, whole.scatter, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(added.correlation(), whole.correlation(), rtol=0, atol=1e-9)
    reversed_order = parts[1] + parts[0]
    torch.testing.assert_close(reversed_order.scatter, added.scatter, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match=r"widths \(3, 2, 4\) and \(3, 2\) do not add up"):
        whole + expert_moments(each[:2])


def test_columns_that_do_not_vary_correlate_with_nothing() -> None:
    each = outputs(rows=1000)
    each[1] = torch.full_like(each[1], 0.1)  # whose mean is not 0.1 to the last bit
    found = expert_moments(each) + expert_moments(each)
    assert found.flat_columns() == [0, 2, 0]
    assert found.correlation()[1].tolist() == [0, 0, 0]
    assert float(found.alignment()[0, 1]) < 1e-9
    assert float(found.correlation()[0, 2]) > 0.3


def test_alignment_ignores_turns_and_scales_and_correlation_does_not() -> None:
    one = outputs(widths=(4,))[0]
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    found = expert_moments([one, 7 * one @ turn + 3])
    assert float(found.alignment()[0, 1]) == pytest.approx(1, abs=1e-5)
    assert float(found.correlation()[0, 1]) < 1
    independent = expert_moments(
        [torch.tensor([[1.0], [1], [-1], [-1]]), torch.tensor([[1.0], [-1], [1], [-1]])]
    )
    assert float(independent.correlation()[0, 1]) == 0
    assert float(independent.alignment()[0, 1]) == 0


def test_gates_by_hand() -> None:
    gates = torch.tensor([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]]])
    found = gate_shares(gates, 2) + gate_shares(gates[:1], 1)
    assert found.shares.tolist()[0] == pytest.approx([2 / 3, 1 / 3, 0])
    assert found.entropy.tolist() == pytest.approx([2 / 3 * math.log(2)])
    fixed = gate_shares(torch.tensor([[0.25, 0.75], [1.0, 0.0]]), 5)
    assert fixed.shares.tolist() == [[0.25, 0.75], [1, 0]]
    assert fixed.entropy.tolist() == pytest.approx(
        [-0.25 * math.log(0.25) - 0.75 * math.log(0.75), 0]
    )
    elements = torch.tensor([[[[1.0, 0.5], [0.0, 0.5]]]])  # one row, one reader, 2 experts, 2 wide
    found = gate_shares(elements, 1)
    assert found.shares.tolist() == [[0.75, 0.25]]
    assert found.entropy.tolist() == pytest.approx([math.log(2) / 2])


def test_numbers_that_are_no_distribution_have_no_entropy() -> None:
    found = gate_shares(torch.tensor([[1.0, 1.0]]), 3)
    assert found.shares.tolist() == [[1, 1]]
    assert math.isnan(float(found.entropy[0]))
    assert not (found + gate_shares(torch.tensor([[0.5, 0.5]]), 3)).is_distribution


def references(model: nn.Module, batches: list) -> dict[str, list[Tensor]]:
    """Outputs (rows, H) of every group's experts, taken further down than the analysis does."""
    taken: dict[str, list[list[Tensor]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, ExpertGroup):
            layer = name.rpartition(".experts.groups")[0]
            width = 2 if module.copies is None else 3

            def take(_: nn.Module, __: object, out: Tensor, layer=layer, width=width) -> None:
                stacked = out if width == 3 else out.unsqueeze(0)
                taken.setdefault(layer, []).append(list(stacked.unbind(0)))

            module.register_forward_hook(take)
    for inputs in batches:
        model(inputs)
    found = {}
    for layer, calls in taken.items():
        per_batch = len(calls) // len(batches)
        rows = [
            [one for call in calls[at : at + per_batch] for one in call]
            for at in range(0, len(calls), per_batch)
        ]
        found[layer] = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    return found


@pytest.mark.parametrize(
    "name", ["mmoe", "ple", "stem of several interactions", "hetero_me listed", "ame of pairs"]
)
def test_experts_of_a_model(name: str) -> None:
    section, shapes = CASES[name]
    model = built(section, shapes).eval()
    batches = [drawn(shapes, 30), drawn(shapes, 21)]
    found = look_at_experts(model, batches, shapes.sets, ("t0", "t1", "shared"))
    hooked = [module for module in model.modules() if module._forward_hooks]
    assert hooked == []
    expected = references(model, batches)
    assert {f"{key}": len(each.experts) for key, each in found.items()} == {
        key: len(each) for key, each in expected.items()
    }
    for key, layer in found.items():
        assert isinstance(layer.moments, ExpertMoments)
        assert layer.moments.rows == 51
        whole = expert_moments(expected[key])
        torch.testing.assert_close(
            layer.moments.correlation(), whole.correlation(), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("merge", ["mean", "gate"])
def test_experts_that_meet_without_a_task(merge: str) -> None:
    """Cross networks beside DNNs, an expert for each of two sets."""
    section = DCNv2(name="dcnv2", structure="parallel", hidden=(6, 5), merge=merge)
    model = built(section, fields((4, 8))).eval()
    batch = drawn(fields((4, 8)), 25)
    found = look_at_experts(model, [batch], ("a", "b"), ())
    expected = references(model, [batch])
    assert len(expected) == 1
    assert list(found) == list(expected)
    for key, layer in found.items():
        assert layer.experts == ("a", "b")
        assert (layer.gates is None) == (merge == "mean")
        whole = expert_moments(expected[key])
        assert layer.moments is not None
        torch.testing.assert_close(layer.moments.scatter, whole.scatter)


def test_experts_side_by_side_may_differ_in_width() -> None:
    flat = BranchSpec((ExpertSpec(0, (FlatSpec(),)), ExpertSpec(1, (FlatSpec(),))), "concat")
    shapes = fields((4, 8), num_dense=0)
    model = RankingModel(Composition((flat,)), shapes).double().eval()
    batch = drawn(shapes, 25)
    (layer,) = look_at_experts(model, [batch], ("a", "b"), ()).values()
    assert layer.moments is not None
    assert layer.moments.widths == (12, 24)
    whole = expert_moments([each.flatten(1) for each in batch.sets])
    torch.testing.assert_close(layer.moments.correlation(), whole.correlation())


def test_what_experts_read() -> None:
    def experts_of(name: str) -> list[tuple[str, ...]]:
        section, shapes = CASES[name]
        model = built(section, shapes).eval()
        names = look_at_experts(model, [drawn(shapes)], shapes.sets, ("t0", "t1", "shared"))
        return [each.experts for each in names.values()]

    assert experts_of("mmoe") == [("a 1", "a 2", "a 3")]
    assert experts_of("ame of pairs") == [("a 1", "a 2", "c 1", "c 2", "b 1", "b 2")]
    upper = ("t0", "t1", "shared 1", "shared 2")
    assert experts_of("stem of 2 layers") == [("a", "b", "c 1", "c 2"), upper]
    assert experts_of("shared_bottom") == []


def test_gates_of_a_model() -> None:
    """A gate whose weights are 0 is the softmax of its bias, which is planted."""
    section = MMoE(name="mmoe", num_experts=3, hidden=(6, 5), tower=(4,))
    shapes = fields((4,))
    model = built(section, shapes).eval()
    scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, -50.0]])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gate.scores" in name:
                parameter.copy_(scores.flatten() if name.endswith("bias") else 0 * parameter)
    (layer,) = look_at_experts(
        model, [drawn(shapes, 4), drawn(shapes, 3)], shapes.sets, ()
    ).values()
    assert layer.gates is not None
    assert layer.gates.rows == 7
    expected = torch.softmax(scores.double(), 1)
    torch.testing.assert_close(layer.gates.shares, expected, rtol=0, atol=1e-7)
    entropy = -(expected * expected.log()).sum(1)
    torch.testing.assert_close(layer.gates.entropy, entropy, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["crocodile", "hetero_me weights", "ame static", "moe"])
def test_gates_of_every_kind(name: str) -> None:
    section, shapes = CASES[name]
    model = built(section, shapes).eval()
    (layer,) = look_at_experts(model, [drawn(shapes)], shapes.sets, ()).values()
    gates = layer.gates
    assert gates is not None
    assert gates.shares.shape == (1 if name == "moe" else 2, len(layer.experts))
    if name == "hetero_me weights":
        assert torch.isnan(gates.entropy).all()
    else:
        torch.testing.assert_close(gates.shares.sum(1), torch.ones(len(gates.shares)).double())
        assert ((gates.entropy > 0) & (gates.entropy <= math.log(len(layer.experts)))).all()


def test_wide_experts_are_looked_at_by_evenly_spaced_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decorrelation, "MOST_COLUMNS", 6)
    section, shapes = CASES["mmoe"]
    model = built(section, shapes).eval()
    batch = drawn(shapes, 40)
    (layer,) = look_at_experts(model, [batch], shapes.sets, ()).values()
    assert layer.columns == ((2, 5),) * 3
    (expected,) = references(model, [batch]).values()
    whole = expert_moments([each[:, [0, 2]] for each in expected])
    assert layer.moments is not None
    torch.testing.assert_close(layer.moments.scatter, whole.scatter)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10), cut=st.integers(1, 39))
def test_invariances(seed: int, scale: float, cut: int) -> None:
    """Correlation knows no scale, shift, order of rows or sign; covariance grows with the scale."""
    each = [one.double() for one in outputs(seed, rows=40)]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(40, generator=generator)
    shift = torch.randn(4, generator=generator).double()
    found = expert_moments(each)
    changed = expert_moments([each[0], -each[1], each[2] * scale + shift])
    torch.testing.assert_close(changed.correlation(), found.correlation())
    norms = found.covariance_norms() * torch.tensor([1, 1, scale]).double()
    norms = norms * torch.tensor([[1], [1], [scale]]).double()
    torch.testing.assert_close(changed.covariance_norms(), norms)
    torch.testing.assert_close(changed.alignment(), found.alignment())
    shuffled = [one[rows] for one in each]
    parts = [expert_moments([one[part] for one in shuffled]) for part in (rows < cut, rows >= cut)]
    torch.testing.assert_close((parts[0] + parts[1]).correlation(), found.correlation())
    R = found.correlation()
    assert ((R >= 0) & (R <= 1 + 1e-12)).all()
    turned = expert_moments([each[2], each[0], each[1]])
    assert summed_over_pairs(turned.correlation()) == pytest.approx(summed_over_pairs(R))
