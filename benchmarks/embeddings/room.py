"""Memory that the tables of all peers of a comparison share: they take turns, and never read each other's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_OF_SIZE = (_aten.empty.memory_format, _aten.zeros.default, _aten.full.default)
_LIKE = (_aten.full_like.default, _aten.zeros_like.default, _aten.empty_like.default)
_FILLS = (_aten.uniform_.default, _aten.normal_.default, _aten.zero_.default, _aten.fill_.Scalar)


class Room(TorchDispatchMode):
    """While it is entered, large float32 tensors are parts of one buffer, and filling them does nothing.

    What does not fit is allocated as usual. The buffer holds ones at first, which do as weights and
    as sums of squares; learning rates of the peers are too small to change that.

    Args:
        numbers: size of the buffer.
        device: where it is.
        least: numbers of the smallest tensor that comes from it.
    """

    def __init__(self, numbers: int, device: torch.device, least: int = 1 << 14) -> None:
        super().__init__()
        self.buffer = torch.ones(numbers, device=device)
        self._start = self.buffer.untyped_storage().data_ptr()
        self._least = least
        self.used = 0

    def __enter__(self) -> Room:
        """Begin at the start of the buffer."""
        self.used = 0
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Hand out parts of the buffer and leave their contents alone."""
        kwargs = kwargs or {}
        size = None
        if func in _OF_SIZE and kwargs.get("dtype") in (None, torch.float32):
            size, device = args[0], torch.device(kwargs.get("device") or "cpu")
        elif func in _LIKE and args[0].dtype == torch.float32:
            size, device = args[0].shape, args[0].device
        if size is not None and device.type == self.buffer.device.type:
            part = self._part(size)
            if part is not None:
                return part
        if func in _FILLS and args[0].untyped_storage().data_ptr() == self._start:
            return args[0]
        return func(*args, **kwargs)

    def _part(self, size: Any) -> Tensor | None:
        numbers = math.prod(size)
        if numbers < self._least or self.used + numbers > self.buffer.numel():
            return None
        part = self.buffer[self.used : self.used + numbers].view(list(size))
        self.used += -(-numbers // 16) * 16  # whole cache lines
        return part
