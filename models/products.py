"""Affine maps of the dense layers, by the fastest kernel there is for them.

PyTorch hands float32 products on CPU to MKL, which on other makers' processors than its own runs
at about half the speed of oneDNN's kernels (`benchmarks/results/train_step_notes.md`). Intel's own
processors, bfloat16 products and CUDA take PyTorch's way. Both sum in float32; only the order of the
sums differs.

Notation: B batch, M copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_MIN_PRODUCTS = 1 << 22
"""Multiplications from which on the kernel's gain is larger than what calling it costs."""


def is_intel(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor is one of those that MKL is made for; False where nothing says so."""
    try:
        return "GenuineIntel" in cpuinfo.read_text()
    except OSError:
        return False


_IS_INTEL = is_intel()


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W^T + b`.

    Args:
        x: (B, in), or (M, B, in) for M independent maps.
        weight: ([M,] out, in).
        bias: ([M,] out), or None.

    Returns:
        ([M,] B, out).
    """
    if _takes_onednn(x, weight):
        result: Tensor = _Affine.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.bmm(x, weight.mT)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return bool(
        not _IS_INTEL
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == weight.dim()
        and x.shape[-2] * weight.numel() >= _MIN_PRODUCTS
        and min(weight.shape[-2:]) > 1
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class _Affine(torch.autograd.Function):
    """An affine map and its gradients as oneDNN products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.mT, None) if needs_x else None,
            _product(grad.mT, x.mT, None) if needs_weight else None,
            grad.sum(-2) if needs_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W^T + b` of two or three dimensions."""
    if x.dim() == 2:
        return torch.ops.mkldnn._linear_pointwise(x, _dense(weight), bias, "none", [], "")  # type: ignore[no-any-return]
    biases = [None] * len(x) if bias is None else bias.unbind()
    return torch.stack(
        [_product(*each) for each in zip(x.unbind(), weight.unbind(), biases, strict=True)]
    )


def _dense(weight: Tensor) -> Tensor:
    """The same matrix without gaps between its rows or columns.

    oneDNN multiplies by one that has gaps, such as the vectors of one set in a row of all sets, with a
    loop that is hundreds of times slower than its kernels.
    """
    out_features, in_features = weight.shape
    if weight.stride() in ((in_features, 1), (1, out_features)):
        return weight
    return weight.contiguous()
