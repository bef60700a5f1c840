"""Why a table is placed as it is, in a few words."""

from __future__ import annotations

from collections.abc import Sequence

from prismrec.embeddings.collection import PhysicalTable
from prismrec.embeddings.plan.deal import memory_share
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.price import Option
from prismrec.embeddings.plan.rules import UVM_KERNELS


def reason(
    physical: PhysicalTable, chosen: Option, options: Sequence[Option], placement: Placement
) -> str:
    """Why one of a table's ways was chosen.

    Args:
        physical: the table.
        chosen: that way.
        options: all that it could have taken.
        placement: the machines.
    """
    words = _of_kind(physical, chosen, options, placement)
    kernel = chosen.cut.kernel
    if kernel in UVM_KERNELS:
        words += (
            "; the recipe wants it in host memory"
            if physical.table.kernel == kernel
            else "; in host memory because not all tables fit the devices"
        )
    return words


def _of_kind(
    physical: PhysicalTable, chosen: Option, options: Sequence[Option], placement: Placement
) -> str:
    kind, cuts = chosen.cut.kind, len(chosen.cut.widths)
    if physical.table.is_managed:
        return "rows given to ids as they come are cut by rows"
    if physical.table.sharding == kind:
        return "the recipe says so"
    if placement.world_size == 1:
        return "one rank"
    if physical.table.layout == "spread" and cuts > 1:
        return "layout = 'spread' cuts it between its sets"
    others = [each for each in options if each.cut.kind != kind]
    if not others:
        return "the only kind that leaves its numbers as they are"
    whole = [each for each in options if each.cut.kind == "table_wise"]
    if whole and all(_share(each, placement) > 1 for each in whole):
        return "too large for one rank"
    rival = min(others, key=lambda each: each.work)
    if chosen.work <= rival.work:
        return f"least work: {_ms(chosen.work)} over all ranks, {rival.cut.kind} {_ms(rival.work)}"
    if chosen.slowest < rival.slowest:
        return f"shorter on a rank: {_ms(chosen.slowest)}, {rival.cut.kind} {_ms(rival.slowest)}"
    if _share(chosen, placement) < _share(rival, placement):
        return f"less memory on a rank than {rival.cut.kind}"
    return f"evens out the ranks better than {rival.cut.kind}"


def _share(option: Option, placement: Placement) -> float:
    return max(memory_share(piece, placement) for piece in option.pieces)


def _ms(time: float) -> str:
    return f"{time:.3g} ms"
