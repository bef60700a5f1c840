"""Interactions from outside the package, alone and one per embedding set."""

from __future__ import annotations

import pytest
import torch

from prismrec.config import UserError
from prismrec.config.models.single import Interaction
from prismrec.models import Fields, Inputs, build_model
from tests.unit.models.vectors import covering_all

CODE = """
import torch

class Products(torch.nn.Module):
    def __init__(self, num_fields, dim, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))
        self.out_dim = dim

    def forward(self, X):
        return self.scale * X.prod(dim=1)

def build(num_fields, dim, options):
    return Products(num_fields, dim, options["scale"])

def wrong(num_fields, dim, options):
    return torch.nn.Linear(num_fields, dim)
"""


@pytest.fixture
def team(tmp_path, monkeypatch):
    (tmp_path / "team_interactions.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return "team_interactions"


def section(team, name="build"):
    return Interaction(
        name="interaction",
        interaction=f"{team}:{name}",
        options={"scale": 2},
        hidden=(5,),
        norm="none",
    )


def test_one_set_by_hand(team):
    model = build_model(section(team), covering_all(2, 0, (3,), 1))
    X = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    weights = dict(model.named_parameters())
    first, second = (weights[name] for name in weights if name.endswith("weight"))
    hidden = torch.relu(2 * torch.tensor([[4.0, 10.0, 18.0]]) @ first.T)
    logits, _ = model(Inputs([X], None, torch.zeros(1, 0)))
    torch.testing.assert_close(logits.flatten(), (hidden @ second.flatten()).flatten())


def test_each_set_has_weights_of_its_own(team):
    model = build_model(section(team), covering_all(2, 0, (3, 3), 1))
    scales = [p for name, p in model.named_parameters() if name.endswith("scale")]
    assert len(scales) == 2
    sets = [torch.rand(4, 2, 3), torch.rand(4, 2, 3)]
    before, _ = model(Inputs(sets, None, torch.zeros(4, 0)))
    with torch.no_grad():
        scales[1] += 1
    after, _ = model(Inputs(sets, None, torch.zeros(4, 0)))
    assert not torch.allclose(before, after)
    after.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_function_hears_how_many_fields_a_set_covers(team):
    fields = Fields(3, 1, (3, 3), 1, set_fields=(3, 1))
    model = build_model(section(team), fields)
    sets, dense = [torch.rand(4, 3, 3), torch.rand(4, 1, 3)], torch.rand(4, 1)
    seen = []
    for module in model.modules():
        if type(module).__name__ == "Products":
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model(Inputs(sets, None, dense))[0].sum().backward()
    assert seen == [(4, 4, 3), (4, 2, 3)]
    assert all(p.grad is not None for p in model.parameters())


def test_what_is_no_interaction_is_refused(team):
    with pytest.raises(
        UserError, match="returned Linear; it must return a torch.nn.Module with `out_dim`"
    ):
        build_model(section(team, "wrong"), covering_all(2, 0, (3,), 1))
    with pytest.raises(UserError, match="has no function 'biuld'; did you mean 'build'"):
        build_model(section(team, "biuld"), covering_all(2, 0, (3,), 1))
