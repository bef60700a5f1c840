"""One plan on every rank: rank 0 makes it, the others are told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import ShardingPlan

from prismrec.config import UserError
from prismrec.embeddings.plan.expand import sharding_plan
from prismrec.embeddings.plan.find import find_plan
from prismrec.embeddings.plan.lines import Line, place_of
from prismrec.embeddings.plan.misfit import misfit
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.sets import EmbeddingSpec


def agreed_placement(placement: Placement, group: dist.ProcessGroup) -> Placement:
    """The machines as all ranks together see them: with the least memory that any of them has.

    Collective: every rank calls it.

    Args:
        placement: as this rank sees them.
        group: the process group of all ranks.
    """
    host = placement.memory if placement.host_memory is None else placement.host_memory
    local = placement.local_world_size
    least = torch.tensor([placement.memory, host, local, -local])
    if group.size() > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN, group=group)
    memory, host, fewest, most = (int(number) for number in least)
    return replace(
        placement,
        memory=memory,
        host_memory=host,
        local_world_size=-most,
        is_even=fewest == -most,
    )


def agreed_plan(spec: EmbeddingSpec, placement: Placement, group: dist.ProcessGroup) -> list[Line]:
    """Place every table; all ranks get the plan that rank 0 made.

    Collective: every rank calls it.

    Args:
        spec: what the tables are, every layout chosen.
        placement: ranks, memory and batch; see `agreed_placement`.
        group: the process group of all ranks.

    Raises:
        UserError: on every rank: a recipe's placement would change the numbers, or the tables do not
            fit.
    """
    answer: dict[str, Any] = {}
    if group.rank() == 0:
        try:
            plan = find_plan(spec, placement)
            answer = {"lines": plan.lines()} if plan.fits else {"error": misfit(plan, spec).message}
        except UserError as error:
            answer = {"error": error.message}
    answer = _told(answer, group)
    if "error" in answer:
        raise UserError(answer["error"])
    lines: list[Line] = answer["lines"]
    return lines


def plan_tables(
    model: nn.Module, spec: EmbeddingSpec, placement: Placement, group: dist.ProcessGroup
) -> ShardingPlan:
    """The agreed plan as TorchRec takes it.

    Collective: every rank calls it.

    Args:
        model: module that holds the unsharded collections, on the meta device.
        spec: see `agreed_plan`.
        placement: ranks, memory and batch as this rank sees them.
        group: see `agreed_plan`.

    Raises:
        UserError: see `agreed_plan`.
    """
    lines = agreed_plan(spec, agreed_placement(placement, group), group)
    places = [place_of(line) for line in lines]
    return sharding_plan(model, places, placement.device, placement.local_world_size)


def _told(answer: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Rank 0's answer, on every rank, as JSON and not as a pickle."""
    if group.size() == 1:
        return answer
    text = json.dumps(answer).encode()
    length = torch.tensor([len(text)])
    dist.broadcast(length, group=group, group_src=0)
    letters = torch.zeros(int(length), dtype=torch.uint8)
    if group.rank() == 0:
        letters.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(letters, group=group, group_src=0)
    told: dict[str, Any] = json.loads(bytes(letters.tolist()))
    return told
