"""The ranks of a run: who they are, on which device, and how they find each other."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from prismrec.train.memory import reuse_freed_memory


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the processes of the run.

    Args:
        rank: 0..world_size-1.
        world_size: number of processes.
        local_rank: rank among the processes of this machine.
        local_world_size: number of processes on this machine.
        device: where tables and dense weights live.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what the ranks share."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over the ranks, on all of them.

        Collective: every rank calls it with the same shape and type.
        """
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of `values` over the ranks, on all of them.

        Collective: every rank calls it with the same shape and type.
        """
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def share_text(self, text: str) -> str:
        """Rank 0's text, on every rank.

        Collective: every rank calls it; what the others give is ignored.

        Args:
            text: any text.
        """
        if self.world_size == 1:
            return text
        encoded = text.encode() if self.is_first else b""
        size = torch.tensor([len(encoded)])
        dist.broadcast(size, 0)
        letters = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_first:
            letters = torch.tensor(list(encoded), dtype=torch.uint8)
        dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()

    def first_text(self, text: str) -> str:
        """The text of the lowest rank that gives one, on every rank; empty where none does.

        Collective: every rank calls it.

        Args:
            text: what goes beyond 4,096 bytes of UTF-8 is cut off.
        """
        given = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        given[self.rank] = bool(text)
        speakers = self.sum(given).nonzero()
        if not len(speakers):
            return ""
        letters = torch.zeros(4096, dtype=torch.int64, device=self.device)
        if self.rank == int(speakers[0]):
            encoded = text.encode()[: len(letters)]
            letters[: len(encoded)] = torch.tensor(list(encoded), device=self.device)
        return bytes(self.sum(letters).tolist()).rstrip(b"\0").decode(errors="ignore")

    def agree(self, flag: bool) -> bool:
        """Whether the flag is set on any rank.

        Collective: every rank calls it.
        """
        number = torch.tensor(int(flag), device=self.device)
        return bool(self.sum(number).item())


def resolve_device(wanted: str) -> str:
    """`cpu` or `cuda` for a recipe's `train.device`."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


@contextmanager
def process_group(device: str, timeout_s: float = 1800) -> Iterator[Ranks]:
    """The process group of the run, for as long as the context lasts.

    A group that is already there (Ray made it) is used and left. Under torchrun the environment
    says who the ranks are; a plain process is a world of one.

    Collective: every rank enters and leaves.

    Args:
        device: "cpu" or "cuda".
        timeout_s: how long a collective may wait for a rank.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    place = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    else:
        reuse_freed_memory()
    is_ours = not dist.is_initialized()
    with TemporaryDirectory() as directory:
        if is_ours:
            is_launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
            if not is_launched:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",
                init_method="env://" if is_launched else f"file://{directory}/rendezvous",
                rank=int(os.environ["RANK"]) if is_launched else 0,
                world_size=int(os.environ["WORLD_SIZE"]) if is_launched else 1,
                timeout=datetime.timedelta(seconds=timeout_s),
            )
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, local_world_size, place)
        finally:
            if is_ours:
                dist.destroy_process_group()
