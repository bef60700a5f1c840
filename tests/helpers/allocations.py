"""Counting the memory that operations ask for, whatever the allocator does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the bytes of every tensor that operations make while it is entered.

    Views and results written in place cost nothing. Nothing is freed meanwhile, so that the count
    is of all that was made, an upper bound of the peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._held: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it made."""
        for each in _storages((args, kwargs)):
            self._held.setdefault(each.data_ptr(), each)
        result = func(*args, **(kwargs or {}))
        for each in _storages(result):
            if each.data_ptr() not in self._held:
                self.bytes += each.nbytes()
                self._held[each.data_ptr()] = each
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [each.untyped_storage() for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]
