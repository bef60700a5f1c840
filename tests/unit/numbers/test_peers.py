"""Other encodings of numbers: worked values in the reader and in the model's modules."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prismrec.data.encode.encoders import TableRows
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.numbers.buckets import BucketForm, LogBuckets, QuantileBuckets, log_bucket
from prismrec.data.encode.numbers.encoders import NumberCodes, NumberEncoder
from prismrec.data.encode.numbers.quantise import Levels
from prismrec.data.encode.numbers.scale import Position, Share
from prismrec.data.encode.numbers.source import ColumnSource
from prismrec.data.encode.numbers.tables import NumberPart
from prismrec.models.numeric import (
    AutoDisFields,
    AutoDisSpec,
    NumericSpec,
    PeriodicFields,
    PeriodicSpec,
    PiecewiseFields,
    PiecewiseSpec,
    ValueFields,
    ValueSpec,
    numeric_fields,
)

SPECS: list[NumericSpec] = [
    ValueSpec(),
    ValueSpec(has_bias=True),
    AutoDisSpec(3, 0.5, 0.8),
    PiecewiseSpec(4, has_linear=False),
    PiecewiseSpec(4, has_linear=True),
    PeriodicSpec(5, 1.0),
]


def test_logarithmic_buckets() -> None:
    values = np.array([0, 1, 2, 3, 10, 100, 1000, 1e6])
    assert log_bucket(values).tolist() == [-2, -1, 0, 1, 5, 21, 47, 190]
    buckets = LogBuckets(100)
    assert buckets(values).tolist() == [1, 2, 3, 4, 8, 24, 50, 99]
    odd = np.array([-1e-9, -5.0, -math.inf, math.nan, math.inf, 0.5])
    assert buckets(odd).tolist() == [0, 0, 0, NULL_ID, 99, 1]


def test_quantile_buckets_count_the_boundaries_that_are_reached() -> None:
    buckets = QuantileBuckets(np.array([1.0, 3.0, 7.0]))
    values = np.array([-math.inf, 0.9, 1.0, 2.9, 7.0, math.inf, math.nan])
    assert buckets(values).tolist() == [0, 0, 1, 1, 3, 3, NULL_ID]


def test_a_bucket_is_a_row_and_a_missing_number_has_the_last() -> None:
    number = NumberCodes("x", ColumnSource("x"), LogBuckets(10))
    part = NumberPart("x", 4, BucketForm(10), 0.05)
    encoder = NumberEncoder(number, TableRows(20, 0), part)
    found, odd = encoder(np.array([[0, 9], [NULL_ID, 3]]))
    assert found.tolist() == [[4, 13], [14, 7]]
    assert odd is not None
    assert odd.tolist() == [[False, False], [True, False]]
    assert (part.start.first, part.start.stop, part.start.std) == (4, 14, 0.05)


def test_places_on_a_scale() -> None:
    share = Share(Levels("linear", 2, -1.0, 3.0))
    assert share(np.array([-9, -1, 0, 3, math.inf])).tolist() == [0, 0, 0.25, 1, 1]
    ranks = Share(Levels("cdf", 2, 0.0, 9.0, boundaries=np.array([1.0, 2.0, 3.0, 4.0])))
    assert ranks(np.array([0.5, 2.0, 100.0])).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (-1, (-1, 0, 0)),
        (0, (0, 0, 0)),
        (0.5, (0.5, 0, 0)),
        (2, (1, 0.5, 0)),
        (5, (1, 1, 0.5)),
        (7, (1, 1, 1)),
        (9, (1, 1, 1.5)),
    ],
)
def test_parts_of_bins(value: float, parts: tuple[float, ...]) -> None:
    """Edges 0, 1, 3, 7: the position among them, and its parts in the model."""
    position = Position(np.array([0.0, 1.0, 3.0, 7.0]), bins=3)(np.array([value]))
    fields = PiecewiseFields(1, 2, PiecewiseSpec(3, has_linear=False))
    found = fields.parts(torch.from_numpy(position).float()[:, None])
    assert found[0, 0].tolist() == pytest.approx(parts)


def test_numbers_go_one_bin_beyond_the_edges_at_most() -> None:
    edges = np.array([0.0, 1.0, 3.0, 7.0])
    values = np.array([-math.inf, -50, 12, 1e300, math.inf])
    assert Position(edges, bins=3)(values).tolist() == [-1, -1, 4, 4, 4]
    assert Position(edges, bins=5)(values).tolist() == [-1, -1, 3, 3, 3], "fewer bins than asked"


def test_a_single_bin_is_not_cut() -> None:
    fields = PiecewiseFields(1, 2, PiecewiseSpec(1, has_linear=False))
    values = torch.tensor([[-0.5], [0.5], [1.5]])
    assert fields.parts(values)[:, 0, 0].tolist() == [-0.5, 0.5, 1.5]


def test_a_piecewise_field_by_hand() -> None:
    fields = PiecewiseFields(1, 2, PiecewiseSpec(2, has_linear=True))
    assert not fields.weight.any(), "begins as the linear part alone"
    with torch.no_grad():
        fields.weight.copy_(torch.tensor([[[1.0, 0.0], [10.0, 1.0]]]))
        fields.bias.copy_(torch.tensor([[100.0, 0.0]]))
        assert fields.linear is not None
        fields.linear.copy_(torch.tensor([[0.0, 8.0]]))
    assert fields(torch.tensor([[1.5]]))[0, 0].tolist() == [1 + 5 + 100, 0.5 + 0.75 * 8]


def test_a_soft_choice_by_hand() -> None:
    fields = AutoDisFields(1, 2, AutoDisSpec(buckets=2, temperature=1.0, skip=0.5))
    with torch.no_grad():
        fields.first.copy_(torch.tensor([[1.0, -1.0]]))
        fields.second.copy_(0.5 * torch.eye(2)[None])
        fields.vectors.copy_(torch.eye(2)[None])
    found = fields(torch.tensor([[2.0]]))[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.882881, 0.117119]), rtol=0, atol=1e-6)


def test_waves_by_hand() -> None:
    fields = PeriodicFields(1, 1, PeriodicSpec(frequencies=2, sigma=1.0))
    with torch.no_grad():
        fields.frequencies.copy_(torch.tensor([[1.0, 0.5]]))
        fields.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None])
    waves = fields.waves(torch.tensor([[0.25]]))[0, 0]
    root = math.sqrt(0.5)
    torch.testing.assert_close(waves, torch.tensor([0.0, root, 1.0, root]), rtol=0, atol=1e-6)
    assert fields(torch.tensor([[0.25]])).item() == pytest.approx(2 * root + 3 + 4 * root)
    assert fields(torch.tensor([[-0.25]])).item() == 0, "a negative sum is cut"


def test_initial_frequencies_lie_within_three_deviations() -> None:
    torch.manual_seed(0)
    fields = PeriodicFields(40, 4, PeriodicSpec(frequencies=100, sigma=0.2))
    assert fields.frequencies.abs().max() <= 0.6
    assert fields.frequencies.std().item() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_columns_are_independent_and_every_weight_learns(spec: NumericSpec) -> None:
    """The columns of one product are what each column is by itself."""
    torch.manual_seed(1)
    module = numeric_fields([spec] * 3, 4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    values = torch.rand(6, 3) * (3 if isinstance(spec, PiecewiseSpec) else 1)
    together = module(values)
    for column in range(3):
        alone = numeric_fields([spec], 4)
        alone.load_state_dict({k: v[column : column + 1] for k, v in module.state_dict().items()})
        torch.testing.assert_close(alone(values[:, column : column + 1])[:, 0], together[:, column])
    (together * torch.randn(together.shape)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_mixed_columns_stay_in_order() -> None:
    torch.manual_seed(2)
    specs = [SPECS[0], SPECS[2], SPECS[0], SPECS[3], SPECS[2]]
    module, values = numeric_fields(specs, 4), torch.rand(5, 5)
    found = module(values)
    groups = list(module.groups)  # type: ignore[arg-type]
    assert [type(group) for group in groups] == [ValueFields, AutoDisFields, PiecewiseFields]
    torch.testing.assert_close(found[:, [0, 2]], groups[0](values[:, [0, 2]]))
    torch.testing.assert_close(found[:, [1, 4]], groups[1](values[:, [1, 4]]))
    torch.testing.assert_close(found[:, [3]], groups[2](values[:, [3]]))


def test_a_model_gives_each_numeric_column_its_encoding(tmp_path: Path) -> None:
    from prismrec.config.models import BUILT_IN
    from prismrec.models import Fields, Inputs, build_model

    fields = Fields(2, 3, (8, 8), 1, (2, 2), numeric=(SPECS[2], SPECS[4]))
    model = build_model(BUILT_IN["dcnv2"](name="dcnv2", hidden=(4,)), fields)
    kinds = {type(each) for each in model.modules() if type(each).__name__.endswith("Fields")}
    assert {ValueFields, AutoDisFields, PiecewiseFields} <= kinds
    assert isinstance(model, nn.Module)
    sets = [torch.randn(5, 2, 8) for _ in range(2)]
    logits, _ = model(Inputs(sets, None, torch.rand(5, 3)))
    logits.sum().backward()
    assert all(each.grad is not None for each in model.parameters())
