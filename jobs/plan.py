"""Where a recipe's tables would go on machines that need not exist yet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prismrec.config import Recipe, UserError
from prismrec.data.source import read_schema
from prismrec.embeddings.communication import check_communication
from prismrec.embeddings.optimizers import check_optimizers
from prismrec.embeddings.plan import (
    Placement,
    Plan,
    find_plan,
    layout_choices,
    misfit,
    remedies,
    shortage,
    with_layouts,
)
from prismrec.embeddings.plan.price import Progress
from prismrec.models import spec_of
from prismrec.train.sharding import bytes_per_row


@dataclass(frozen=True, slots=True)
class Machines:
    """What `prismrec plan` is told of the machines.

    Args:
        world_size: number of ranks.
        local_size: ranks of one machine.
        device: "cpu" or "cuda".
        memory: bytes of one rank's device; on CPU of its share of the machine.
        host_memory: bytes of one rank's share of its machine.
        intra: GB/s between two ranks of a machine, None for what TorchRec assumes.
        inter: GB/s between two ranks of different machines, None for what TorchRec assumes.
    """

    world_size: int
    local_size: int
    device: str
    memory: int
    host_memory: int
    intra: float | None = None
    inter: float | None = None


def plan_recipe(
    recipe: Recipe,
    machines: Machines,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The document of `prismrec plan --json`.

    Reads the recipe and the data set's `schema.json`, no rows, and needs none of the machines.

    Args:
        recipe: the resolved recipe.
        machines: ranks and what they have.
        batch_size: rows of one rank's batch, None for its share of the recipe's.
        progress: told now and then how much of the search is done.

    Returns:
        `fits`; `copies` of the tables, of which one is planned; `machines`, what its ranks have;
        `milliseconds`, what the tables take of a step on the busiest rank; `tables`, a line for
        each physical table; `layouts`, where the planner chose them; `ranks`, milliseconds and
        bytes of each; `worst`, the busiest and the fullest rank; where it does not fit also
        `shortage`, `remedies` and `error`, else None, [] and "".

    Raises:
        UserError: the recipe does not fit the schema or the device, or leaves a table no way.
    """
    spec = spec_of(recipe, read_schema(recipe.data.path))
    check_optimizers(spec, machines.device)
    copies = _copies(recipe, machines)
    placement = _placement(recipe, machines, batch_size)
    if placement.world_size > 1:
        check_communication(spec, placement.batch_size)
    layouts = layout_choices(spec, placement)
    spec = with_layouts(spec, layouts)
    plan = find_plan(spec, placement, progress)
    tried = [] if plan.fits else list(remedies(plan, spec, progress))
    return {
        "fits": plan.fits,
        "copies": copies,
        "machines": _machines(placement),
        "milliseconds": plan.step_ms,
        "tables": plan.lines(),
        "layouts": {
            table: {"layout": layout, "why": why} for table, (layout, why) in layouts.items()
        },
        "ranks": _ranks(plan),
        "worst": _worst(plan),
        "shortage": None if plan.fits else asdict(shortage(plan)),
        "remedies": [remedy.line() for remedy in tried],
        "error": "" if plan.fits else misfit(plan, spec, tried).message,
    }


def _copies(recipe: Recipe, machines: Machines) -> int:
    """How many groups of ranks hold the tables."""
    of_copy = recipe.embedding.ranks_per_copy or machines.world_size
    copies, rest = divmod(machines.world_size, of_copy)
    if rest or not copies:
        raise UserError(
            f"embedding.ranks_per_copy: {machines.world_size} ranks cannot be dealt out in groups "
            f"of {of_copy}; give a --world-size that is a multiple of it"
        )
    return copies


def _placement(recipe: Recipe, machines: Machines, batch_size: int | None) -> Placement:
    share = -(-recipe.data.global_batch_size // machines.world_size)
    return Placement(
        world_size=machines.world_size,
        local_world_size=machines.local_size,
        device=machines.device,
        memory=machines.memory,
        batch_size=batch_size or share,
        host_memory=machines.host_memory,
        reserved=recipe.embedding.reserved_memory,
        intra=machines.intra,
        inter=machines.inter,
        bytes_per_row=bytes_per_row(recipe),
    ).one_copy(recipe.embedding.ranks_per_copy)


def _machines(placement: Placement) -> dict[str, Any]:
    """What was planned for, with what TorchRec assumes where nothing was said."""
    bandwidths = placement.topology()
    return {
        "world_size": placement.world_size,
        "local_world_size": placement.local_world_size,
        "device": placement.device,
        "device_memory": placement.memory if placement.device == "cuda" else 0,
        "host_memory": placement.host_memory,
        "reserved": placement.reserved,
        "device_room": placement.device_room,
        "host_room": placement.host_room,
        "batch_size": placement.batch_size,
        "intra_gb_per_s": round(bandwidths.intra_host_bw / 1e6, 3),
        "inter_gb_per_s": round(bandwidths.inter_host_bw / 1e6, 3),
    }


def _ranks(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "milliseconds": float(plan.ms[rank]),
            "device_bytes": int(plan.device[rank]),
            "host_bytes": int(plan.host[rank]),
        }
        for rank in range(len(plan.ms))
    ]


def _worst(plan: Plan) -> dict[str, int]:
    """The rank that takes longest, and the one with the fullest memory."""
    fullest = plan.host / plan.placement.host_room
    if plan.placement.device_room:
        fullest = np.maximum(fullest, plan.device / plan.placement.device_room)
    return {"busiest": int(np.argmax(plan.ms)), "fullest": int(np.argmax(fullest))}
