"""Field vectors with hand-computed results, and drawing them."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from prismrec.models import Fields, Inputs


def drawn(shape: tuple[int, ...], a: int, b: int) -> Tensor:
    """`(((a t + b) mod 11) - 5) / 10` for t = 0, 1, ... in row-major order, float64."""
    count = torch.Size(shape).numel()
    return (((a * torch.arange(count) + b) % 11 - 5).double() / 10).reshape(shape)


E1 = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]]], dtype=torch.float64)
X2 = drawn((2, 4, 3), 3, 1)


def covering_all(
    num_sparse: int, num_dense: int, set_dims: tuple[int, ...], num_tasks: int
) -> Fields:
    """Shapes of sets that each cover every sparse field, `f0`, `f1`, .., numbers `n0`, `n1`, .."""
    names = [f"f{n}" for n in range(num_sparse)] + [f"n{n}" for n in range(num_dense)]
    counts = (num_sparse,) * len(set_dims)
    return Fields(
        num_sparse, num_dense, set_dims, num_tasks, counts, (tuple(names),) * len(set_dims)
    )


def copy_of(stacked: nn.Module, single: nn.Module, m: int) -> nn.Module:
    """`single` with the weights and buffers of copy m of `stacked`."""
    single.load_state_dict({name: value[m] for name, value in stacked.state_dict().items()})
    return single


def assert_close(actual: Tensor, expected: Tensor | list, tolerance: float = 1e-12) -> None:
    """Equal to an absolute tolerance, whatever the type."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def axes(inputs: Inputs, axis: dict[int, Any]) -> list[Any]:
    """`axis` for every tensor of a model's inputs, as `torch.export` wants the dynamic shapes."""
    values = (getattr(inputs, field.name) for field in dataclasses.fields(inputs))
    parts = [
        value for value in values if value is not None
    ]  # those that are None count for nothing
    return [[axis] * len(value) if isinstance(value, list) else axis for value in parts]
