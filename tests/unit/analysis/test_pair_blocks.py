"""The matrices of pairs, held to what the interactions themselves compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prismrec.analysis.pair_blocks import PairBlocks, pair_blocks, pair_matrices
from prismrec.analysis.spectra import pair_abundance
from prismrec.analysis.subject import Subject
from prismrec.models.interactions import (
    CINSpec,
    CrossV1Spec,
    CrossV2Spec,
    DNNSpec,
    FFMSpec,
    FmFMSpec,
    FMSpec,
    FvFMSpec,
    FwFMSpec,
    GwPFMSpec,
    Interaction,
    InteractionSpec,
    LayeredSpec,
)
from prismrec.models.interactions.layered import Function, Pairs
from prismrec.models.layers import MLPSpec
from tests.unit.models.vectors import drawn
from tests.unit.serving.world import make_world

SYMMETRIC: dict[str, InteractionSpec] = {
    "fm": FMSpec(),
    "fwfm": FwFMSpec(),
    "low-rank fwfm": FwFMSpec(rank=2),
    "fvfm": FvFMSpec(),
    "fmfm": FmFMSpec(),
    "ffm": FFMSpec(),
    "gwpfm": GwPFMSpec(parts=(0, 0, 1, 1), groups=(0, 1, 2, 2)),
}
N, K = 4, 6


def _planted(spec: InteractionSpec, copies: int | None) -> Interaction:
    built = spec.build(N, K, copies).double()
    with torch.no_grad():
        for number, weight in enumerate(built.parameters()):
            weight.copy_(drawn(tuple(weight.shape), 3 + number, 7))
    return built


def _vectors(copies: int | None) -> Tensor:
    return drawn((5, N, K) if copies is None else (copies, 5, N, K), 5, 2)


@pytest.mark.parametrize("copies", [None, 3])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_half_the_ordered_pairs_are_the_output(name: str, copies: int | None) -> None:
    interaction, X = _planted(SYMMETRIC[name], copies), _vectors(copies)
    M = pair_matrices(interaction, N, K)
    assert M is not None
    pairs = torch.einsum("...bik,...ijkl,...bjl->...b", X, M.double(), X)
    torch.testing.assert_close(pairs / 2, interaction(X).sum(-1))
    torch.testing.assert_close(M, M.transpose(-3, -4).mT)
    assert not M.diagonal(dim1=-4, dim2=-3).any()


@pytest.mark.parametrize("copies", [None, 2])
@pytest.mark.parametrize("rank", [None, 5])
def test_the_first_layer_of_dcn_v2(rank: int | None, copies: int | None) -> None:
    interaction, X = _planted(CrossV2Spec(1, rank), copies), _vectors(copies)
    M = pair_matrices(interaction, N, K)
    assert M is not None
    last: Any = interaction.layers[0] if rank is None else interaction.layers[0][1]  # type: ignore[index,union-attr]
    met = torch.einsum("...bik,...ijkl->...bjl", X, M)
    bias = last.bias.unsqueeze(-2).unflatten(-1, (N, K))
    torch.testing.assert_close(interaction(X).unflatten(-1, (N, K)), X * (met + bias) + X)


@pytest.mark.parametrize("copies", [None, 2])
def test_the_first_layer_of_dcn(copies: int | None) -> None:
    interaction, X = _planted(CrossV1Spec(1), copies), _vectors(copies)
    M = pair_matrices(interaction, N, K)
    assert M is not None
    met = torch.einsum("...bik,...ijkl->...bjl", X, M)
    expected = X * met + interaction.bias.unflatten(-1, (N, K)) + X  # type: ignore[operator]
    torch.testing.assert_close(interaction(X).unflatten(-1, (N, K)), expected)
    assert torch.linalg.matrix_rank(M).max() == 1


@pytest.mark.parametrize("pairs", ["all", "offdiag", "upper"])
@pytest.mark.parametrize("function", ["naive", "weighted", "diagonal", "projected"])
def test_the_first_layer_of_pfl_and_its_family(function: Function, pairs: Pairs) -> None:
    interaction = _planted(LayeredSpec(function, "direct", 2, pairs), None)
    X = _vectors(None)
    M = pair_matrices(interaction, N, K)
    assert M is not None
    met = torch.einsum("bik,ijkl->bjl", X, M.double())
    torch.testing.assert_close(interaction(X).unflatten(-1, (N, K)), X * met + X)


@pytest.mark.parametrize("spec", [CINSpec((3,)), DNNSpec(MLPSpec((4,)))])
def test_no_matrices_where_pairs_have_none(spec: InteractionSpec) -> None:
    assert pair_matrices(spec.build(N, K, None), N, K) is None


def test_the_abundance_of_a_sub_embedding_of_dcn_v2() -> None:
    interaction = CrossV2Spec(2).build(4, 3, None)
    first: Any = interaction.layers[0]
    with torch.no_grad():
        first.weight.copy_(drawn((2, 12, 12), 2, 1)[0])
    M = pair_matrices(interaction, 4, 3)
    assert M is not None
    found = pair_abundance(
        {"a": drawn((6, 3), 3, 1), "b": torch.eye(3)}, {("a", "b"): M[0, 1], ("b", "a"): M[1, 0]}
    )
    assert float(found.values[0, 1]) == pytest.approx(1.990196, abs=1e-6)
    assert float(found.values[1, 0]) != pytest.approx(1.990196, abs=1e-3)


def _subject(**overrides: Any) -> Subject:
    world = make_world(**overrides)
    return Subject(
        name="planted",
        recipe=world.recipe,
        spec=world.spec,
        model=world.head,
        vectors=lambda table, name, rows: world.tables[table, name][rows],
        samples=lambda: iter(()),
        num_rows=0,
    )


def test_a_model_of_two_sets_names_them_and_their_fields() -> None:
    subject = _subject(
        model={"name": "fmfm"},
        embedding={
            "sets": [
                {"name": "all", "dim": 8},
                {"name": "some", "dim": 4, "features": ["user_id", "hist"]},
            ]
        },
    )
    found = pair_blocks(subject)
    assert [each.name for each in found] == [
        "set all, expert 0, FieldMatrixed",
        "set some, expert 1, FieldMatrixed",
    ]
    assert found[0].fields == ("user_id", "item", "hist", "tags", "age", "is_new")
    assert found[1].fields == ("user_id", "hist", "age", "is_new")
    head: Any = subject.model
    interaction = head.branches[0].experts.groups[1].interactions[0]
    named = found[1].by_names()
    assert len(named) == 12
    # pairs (0, 1), (0, 2), (0, 3), (1, 2), ..
    torch.testing.assert_close(named["hist", "age"], interaction.weight[3])
    torch.testing.assert_close(named["age", "hist"], interaction.weight[3].t())


def test_stacked_experts_keep_their_own_matrices_and_sets() -> None:
    subject = _subject(
        model={
            "name": "ame",
            "interaction": {"kind": "crossv2", "num_layers": 2},
            "experts_per_set": 2,
            "hidden": [5],
        },
        embedding={
            "sets": [
                {"name": "one", "dim": 4},
                {"name": "wide", "dim": 8},
                {"name": "two", "dim": 4},
            ]
        },
    )
    found = pair_blocks(subject)
    head: Any = subject.model
    experts = head.branches[0].extraction.layers[0].experts
    assert sorted(each.set_name for each in found) == ["one", "one", "two", "two", "wide", "wide"]
    of_expert = {each.expert: each for each in found}
    for plan, group in zip(experts.plans, experts.groups, strict=True):
        dim = plan.shape[1]
        for number, own in zip(plan.experts, group.interactions[0].layers[0].weight, strict=True):
            each = of_expert[str(number)]
            assert bool(each.meets.all())
            assert each.matrices.shape == (6, 6, dim, dim)
            # what field 2 is multiplied with: its rows, and field 1's columns
            block = own[2 * dim : 3 * dim, dim : 2 * dim]
            torch.testing.assert_close(each.by_names()["item", "hist"], block.t())


def test_branches_are_told_apart() -> None:
    found = pair_blocks(_subject(model={"name": "deepfm", "hidden": [4]}))
    assert [each.name for each in found] == [
        "set wide, expert 0.0, BiInteraction",
        "set narrow, expert 0.1, BiInteraction",
    ]
    assert found[0].norms().nansum() == pytest.approx(6 * 5)


def test_norms_are_one_for_an_fm() -> None:
    blocks = PairBlocks(
        "set",
        "0",
        "FM",
        ("a", "b"),
        torch.stack([torch.eye(3), 2 * torch.eye(3)] * 2).unflatten(0, (2, 2)),
        torch.tensor([[False, True], [True, False]]),
    )
    norms = blocks.norms()
    assert [float(norms[0, 1]), float(norms[1, 0])] == pytest.approx([2, 1])
    assert bool(norms.diagonal().isnan().all())


def test_models_without_pairs_have_none() -> None:
    assert pair_blocks(_subject(model={"name": "dnn", "hidden": [4]})) == []
