"""The machines that tables are placed on, and what memory of theirs the tables may take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.constants import CROSS_NODE_BANDWIDTH, INTRA_NODE_BANDWIDTH

from prismrec.config.embedding import RESERVED_MEMORY
from prismrec.config.machine import memory

_BYTES_PER_MS = 1e6
"""In one GB/s."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The machines that the tables are placed on.

    Args:
        world_size: number of ranks.
        local_world_size: ranks per machine.
        device: "cpu" or "cuda".
        memory: bytes that one rank has on its device.
        batch_size: rows of one rank's batch.
        host_memory: bytes that one rank has on its machine; `memory` if not given.
        reserved: share of both that is left to everything but tables, 0 to 1.
        intra: GB/s between two ranks of one machine; what TorchRec assumes if not given.
        inter: GB/s between two ranks of different machines; what TorchRec assumes if not given.
        is_even: every machine has `local_world_size` ranks.
        bytes_per_row: what a row of a shard takes besides weights and optimizer state.
    """

    world_size: int
    local_world_size: int
    device: str
    memory: int
    batch_size: int
    host_memory: int | None = None
    reserved: float = RESERVED_MEMORY
    intra: float | None = None
    inter: float | None = None
    is_even: bool = True
    bytes_per_row: int = 0

    @property
    def has_hosts(self) -> bool:
        """Whether the ranks fill machines evenly, as the kinds need that go by machine."""
        return self.is_even and self.world_size % self.local_world_size == 0

    @property
    def num_hosts(self) -> int:
        """Machines; 1 where the ranks do not fill them evenly."""
        return self.world_size // self.local_world_size if self.has_hosts else 1

    @property
    def device_room(self) -> int:
        """Bytes on a rank's device for tables; 0 on CPU, where there is host memory only."""
        return int(self.memory * (1 - self.reserved)) if self.device == "cuda" else 0

    @property
    def host_room(self) -> int:
        """Bytes of host memory for a rank's tables and the copy that a checkpoint takes."""
        given = self.memory if self.host_memory is None else self.host_memory
        return int(given * (1 - self.reserved))

    def one_copy(self, ranks_per_copy: int | None) -> Placement:
        """The machines of the first copy of the tables, where several groups of ranks hold one each.

        Args:
            ranks_per_copy: neighbouring ranks of one copy; None where all ranks share one.
        """
        if ranks_per_copy is None:
            return self
        local = self.local_world_size
        return replace(
            self,
            world_size=ranks_per_copy,
            local_world_size=min(ranks_per_copy, local),
            is_even=self.is_even and (ranks_per_copy % local == 0 or local % ranks_per_copy == 0),
        )

    def topology(self) -> Topology:
        """The same as TorchRec's estimators take it."""
        return Topology(
            world_size=self.world_size,
            local_world_size=self.local_world_size,
            compute_device=self.device,
            hbm_cap=self.device_room,
            ddr_cap=self.host_room,
            intra_host_bw=self.intra * _BYTES_PER_MS if self.intra else INTRA_NODE_BANDWIDTH,
            inter_host_bw=self.inter * _BYTES_PER_MS if self.inter else CROSS_NODE_BANDWIDTH,
        )


def host_memory_per_rank(local_world_size: int, root: Path = Path("/")) -> int:
    """Bytes of this machine's free memory, within its container's limit, for one of its ranks.

    Args:
        local_world_size: ranks on this machine.
        root: where `proc` and `sys` are mounted.
    """
    return memory(root)[1] // max(1, local_world_size)


def device_memory(device: torch.device, local_world_size: int) -> int:
    """Bytes that one rank has on its device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_memory_per_rank(local_world_size)
