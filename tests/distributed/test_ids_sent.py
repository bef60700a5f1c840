"""Ids that cross the wire in a step, counted on two ranks: packed rows take one for all sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.ranks import run_ranks

COUNTS = (1, 2, 4)
KINDS = ("table_wise", "row_wise")
TABLES, BATCH, BAG = 3, 8, 5
IDS = TABLES * BATCH * BAG
"""Of a step on both ranks."""


class _Wire(TorchDispatchMode):
    """What this rank puts into all-to-alls, by the size of a number, without the splits.

    Splits are sent first, a row of int64 for each tensor that follows, and are the only messages
    that are cut evenly without saying how.
    """

    def __init__(self) -> None:
        super().__init__()
        self.int64 = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.c10d.alltoall_base_.default:
            given, splits = args[1], args[4]
            if splits and given.dtype == torch.int64:
                assert sum(splits) == given.numel()
                self.int64 += given.numel()
        return func(*args, **(kwargs or {}))


def _sent(k: int, kind: str, layout: str) -> tuple[int, int]:
    """Ids that this rank hands over in a step, as the benchmark counts them and on the wire."""
    import torch.distributed as dist

    from benchmarks.embeddings.cases import Sizes, draw
    from benchmarks.embeddings.peers import ours
    from benchmarks.embeddings.wire import ids_sent
    from prismrec.train.process_group import Ranks

    rank = dist.get_rank()
    case = Sizes("cpu", TABLES, 40, BATCH).case(k, 16, 1, "zipf", 2, kind)
    ranks = Ranks(rank, 2, rank, 2, torch.device("cpu"))
    peer = ours(case, ranks, layout)  # type: ignore[arg-type]
    ids = draw(case, BAG)  # as many draws of one id as a bag has
    batch = peer.batch(
        torch.cat(ids, 2)[:, rank * BATCH // 2 : (rank + 1) * BATCH // 2].contiguous()
    )
    peer.forward(batch)  # makes what the first step makes
    with _Wire() as wire, ids_sent() as counted:
        outputs = peer.forward(batch)
        torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])
    return counted.ids, wire.int64


def _all() -> dict[tuple[int, str, str], tuple[int, int]]:
    layouts = {1: ("packed",)}
    return {
        (k, kind, layout): _sent(k, kind, layout)
        for k in COUNTS
        for kind in KINDS
        for layout in layouts.get(k, ("packed", "separate"))
    }


@pytest.fixture(scope="module")
def sent() -> dict[tuple[int, str, str], int]:
    """Ids that both ranks hand over in a step."""
    one, other = run_ranks(_all, 2, timeout_s=240)
    for by_case in (one, other):
        assert all(counted == wire for counted, wire in by_case.values()), by_case
    return {case: one[case][0] + other[case][0] for case in one}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", COUNTS)
def test_packed_rows_are_asked_for_once_whatever_the_number_of_sets(
    sent: dict[tuple[int, str, str], int], k: int, kind: str
) -> None:
    assert sent[k, kind, "packed"] == IDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", COUNTS[1:])
def test_that_is_a_kth_of_what_separate_tables_send(
    sent: dict[tuple[int, str, str], int], k: int, kind: str
) -> None:
    assert sent[k, kind, "separate"] == k * sent[k, kind, "packed"]
