from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks
from tests.unit.data import small


def _read(data: str, order: str, start: tuple[int, ...], steps: int) -> tuple[Any, ...]:
    """Real keys of every step, gathered from all ranks, and the state after the last one."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    reader = small.reader(data, rank, world_size, order=order)
    seen: list[list[int]] = []
    after = start
    for batch, state in reader.epoch(1, start):
        keys = torch.where(batch.weights[:, 0] > 0, batch.group, -1)
        parts = [torch.empty_like(keys) for _ in range(world_size)]
        dist.all_gather(parts, keys)  # fails if the ranks disagree about B or the number of steps
        seen.append([key for key in torch.cat(parts).tolist() if key >= 0])
        after = state.offsets
        if len(seen) == steps:
            break
    return seen, after


def test_two_ranks_read_an_epoch_that_four_finish(tmp_path: Path) -> None:
    data = small.write(tmp_path / "data", [40, 33, 30], group_rows=9)
    alone = [sum(step, []) for step in small.keys_by_step(data, order="shuffle", epoch=1)]
    first, again = run_ranks(_read, 2, str(data), "shuffle", (0, 0, 0, 0), 3)
    assert first == again
    begun, offsets = first
    rest, _ = run_ranks(_read, 4, str(data), "shuffle", offsets, 100)[3]
    assert begun + rest == alone
    assert sorted(sum(alone, [])) == list(range(103))
