"""What a checkpoint holds of the map of a managed table's shard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prismrec.data.encode.codes import id_codes, raw_ids
from prismrec.data.encode.ids import NULL_ID
from prismrec.embeddings.managed.id_map import IdMap, MapPart
from prismrec.embeddings.managed.newcomers import EMPTY, Seen

ROW_TENSORS = ("ids", "counts", "last_seen")
"""Names of the tensors that have a number for each row, and for each id without a row."""


@dataclass
class MapShard:
    """Which id has which row, for a range of a table's rows, in host memory.

    Args:
        table: name of the logical table.
        num_rows: rows of the whole table.
        buckets: buckets of the whole table.
        row: first row of the range.
        rows: by `ROW_TENSORS`, a (R,) int64 tensor: the owner of each row, `NULL_ID` where it has
            none; how often it was seen; the step at which it was last seen.
        newcomers: the same of n ids without a row that were seen since the last admission, (n,).
    """

    table: str
    num_rows: int
    buckets: int
    row: int
    rows: dict[str, Tensor]
    newcomers: dict[str, Tensor]


def take_state(id_map: IdMap, table: str) -> MapShard:
    """A copy of a map in host memory."""
    rows = Seen(id_map.codes.view(-1), id_map.counts.view(-1), id_map.last_seen.view(-1))
    state = _shard(id_map.part, table)
    state.rows, state.newcomers = _as_ids(rows), _as_ids(id_map.newcomers.seen())
    return state


def blank_state(id_map: IdMap, table: str) -> MapShard:
    """A state of a map's rows, still to be filled."""
    state = _shard(id_map.part, table)
    size = id_map.part.rows
    state.rows = {name: torch.empty(size, dtype=torch.int64) for name in ROW_TENSORS}
    return state


def give_state(id_map: IdMap, state: MapShard) -> None:
    """Make a map what `state` says; both have the same rows. Ids of other buckets are left out."""
    part, device = id_map.part, id_map.codes.device
    rows, newcomers = (_as_codes(each, part.buckets) for each in (state.rows, state.newcomers))
    shape = id_map.codes.shape
    id_map.codes.copy_(rows.codes.view(shape))
    id_map.counts.copy_(rows.counts.view(shape))
    id_map.last_seen.copy_(rows.last_seen.view(shape))
    id_map.reindex()
    id_map.newcomers.clear()
    id_map.newcomers.merge(newcomers.where(id_map.is_ours(newcomers.codes)).to(device))


def _shard(part: MapPart, table: str) -> MapShard:
    rows = part.buckets * part.bucket_rows
    return MapShard(table, rows, part.buckets, part.first * part.bucket_rows, {}, {})


def _as_ids(seen: Seen) -> dict[str, Tensor]:
    codes = seen.codes.cpu()
    ids = torch.from_numpy(raw_ids(codes.numpy()))
    ids[codes == EMPTY] = NULL_ID
    return {"ids": ids, "counts": _copy(seen.counts), "last_seen": _copy(seen.last_seen)}


def _as_codes(rows: dict[str, Tensor], buckets: int) -> Seen:
    ids = rows["ids"].numpy()
    codes = id_codes(ids, buckets)
    codes[ids == NULL_ID] = np.iinfo(np.int64).max
    return Seen(torch.from_numpy(codes), rows["counts"], rows["last_seen"])


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
