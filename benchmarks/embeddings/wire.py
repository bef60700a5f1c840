"""How many ids a step hands to the exchange between ranks: counted, because loopback hides its cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torchrec.distributed.dist_data import KJTAllToAll


@dataclass(slots=True)
class Counted:
    """Ids that this rank handed over.

    Args:
        ids: all of them, those for itself included.
    """

    ids: int = 0


@contextmanager
def ids_sent() -> Iterator[Counted]:
    """Count the ids that this rank's lookups hand to the all-to-all of ids, as often as they do."""
    counted = Counted()

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, KJTAllToAll):
            counted.ids += inputs[0].values().numel()

    hook = register_module_forward_pre_hook(count)
    try:
        yield counted
    finally:
        hook.remove()
