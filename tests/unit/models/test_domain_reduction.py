"""Losses in which domains count by themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prismrec.config import UserError, dump, from_dict
from prismrec.models.objectives import Objective, Targets, TaskLoss, build_objective, global_mean
from prismrec.models.objectives.reduction import DomainMeans
from tests.unit.models.vectors import assert_close

LOSSES = torch.tensor([[1.0, 4.0], [3.0, 2.0], [5.0, 6.0], [7.0, 8.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([[1.0, 1.0], [1.0, 0.0], [2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
DOMAIN = torch.tensor([0, 0, 2, 1])


def test_every_domain_adds_its_own_mean():
    # Task 0: (1 + 3) / 2 + 10 / 2; task 1: 4 + 6. Domain 1 has no row that counts.
    assert_close(DomainMeans(4)(LOSSES, WEIGHTS, DOMAIN), [7.0, 10.0])
    assert_close(global_mean(LOSSES, WEIGHTS), [14 / 4, 5.0])


def test_a_temperature_stands_between_the_mean_and_equal_domains():
    def tempered(temperature: float) -> torch.Tensor:
        return DomainMeans(4, temperature)(LOSSES, WEIGHTS, DOMAIN)

    assert_close(tempered(1.0), global_mean(LOSSES, WEIGHTS))
    assert_close(tempered(0.0), [3.5, 5.0])
    uneven = torch.tensor([[1.0, 1], [3.0, 1], [4.0, 1], [0, 0]], dtype=torch.float64)
    # Domain 0 weighs 4 and has the mean 10 / 4, domain 2 weighs 4 and has 5.
    assert_close(DomainMeans(3, 0.5)(LOSSES, uneven, DOMAIN)[0], 3.75)
    uneven[2, 0] = 1
    assert_close(DomainMeans(3, 0.5)(LOSSES, uneven, DOMAIN)[0], (2 * 2.5 + 1 * 5) / 3)


def test_no_row_that_counts_is_no_loss():
    losses = LOSSES.clone().requires_grad_()
    for means in (DomainMeans(3), DomainMeans(3, 0.0), DomainMeans(3, 0.5)):
        found = means(losses, 0 * WEIGHTS, DOMAIN)
        assert found.tolist() == [0, 0]
        found.sum().backward()
        assert not losses.grad.any()


@given(st.integers(1, 5), st.floats(0, 1), st.integers(0, 1000))
def test_one_domain_is_the_mean_and_equal_losses_are_their_value(domains, temperature, seed):
    torch.manual_seed(seed)
    losses, weights = torch.rand(2, 9, 2, dtype=torch.float64)
    domain = torch.randint(0, domains, (9,))
    one = torch.zeros_like(domain)
    for means in (DomainMeans(1), DomainMeans(1, temperature)):
        assert_close(means(losses, weights, one), global_mean(losses, weights))
    tempered = DomainMeans(domains, temperature)
    assert_close(tempered(0 * losses + 3, weights, domain), [3.0, 3.0], 1e-9)
    present = len(domain.unique())
    assert_close(DomainMeans(domains)(0 * losses + 3, weights, domain), [3.0 * present] * 2, 1e-9)


def test_a_rows_gradient_is_its_share_of_its_domain():
    losses = LOSSES.clone().requires_grad_()
    DomainMeans(4)(losses, WEIGHTS, DOMAIN).sum().backward()
    assert_close(losses.grad, [[0.5, 1.0], [0.5, 0.0], [1.0, 1.0], [0.0, 0.0]])


def recipe(**train):
    tree = {
        "name": "r",
        "data": {"path": "x"},
        "features": {"sparse": ["user"], "domain": "tab"},
        "model": {"name": "dnn"},
        "tasks": [{"name": "click", "label": "click"}],
        "train": train,
    }
    return from_dict(tree)


def test_a_recipe_chooses_how_domains_count():
    logits = torch.tensor([[0.0], [0.0], [2.0]])
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    ones, domain = torch.ones(3, 1), torch.tensor([0, 0, 1])
    targets = Targets(labels, ones, ones, domain=domain)
    rows = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    for train, expected in (
        ({}, rows.mean()),
        ({"domain_reduction": "per_domain_mean"}, rows[:2].mean() + rows[2]),
        (
            {"domain_reduction": "tempered", "domain_temperature": 0.0},
            (rows[:2].mean() + rows[2]) / 2,
        ),
    ):
        total, _ = build_objective(recipe(**train), 2)(logits, targets)
        torch.testing.assert_close(total, expected.reshape(()))
    with pytest.raises(ValueError, match="targets.domain is None"):
        Objective([TaskLoss()], [1.0], DomainMeans(2))(logits, Targets(labels, ones, ones))


def test_domains_that_count_have_to_be_known():
    chosen = recipe(domain_reduction="per_domain_mean")
    assert chosen.needs_domain
    assert not chosen.reads_domain
    assert chosen.raw_columns == ["user"]
    for wrong in ({"domain_temperature": 0.3}, {"domain_reduction": "tempered"}):
        with pytest.raises(UserError, match="train.domain_temperature: .* 'tempered' needs one"):
            recipe(**wrong)
    assert from_dict(dump(chosen)) == chosen
