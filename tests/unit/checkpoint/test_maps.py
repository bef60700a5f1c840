"""Maps of ids in a checkpoint: from any number of ranks to any other, ids without a row included."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.checkpoint import (
    Checkpointer,
    CheckpointReader,
    capture,
    read_manifest,
    restore_maps,
    row_owners,
    verify,
)
from prismrec.checkpoint.manifest import MANIFEST, Manifest, write_manifest
from prismrec.config import UserError
from prismrec.config.ids import ManagedIds
from prismrec.data.encode.codes import id_codes
from prismrec.data.encode.ids import NULL_ID
from prismrec.embeddings.managed.id_map import IdMap, MapPart
from prismrec.embeddings.managed.newcomers import EMPTY
from prismrec.embeddings.managed.state import blank_state, give_state, take_state

BUCKETS, ROWS = 4, 5
CPU = torch.device("cpu")


def maps_of(ranks: int, buckets: int = BUCKETS, rows: int = ROWS, **given: Any) -> list[IdMap]:
    """The maps of one table on so many ranks."""
    options = ManagedIds(kind="managed", **{"policy": "distance_lfu", "interval": 4, **given})
    share = buckets // ranks
    parts = [MapPart(buckets, rows, rank * share, share) for rank in range(ranks)]
    return [IdMap(options, part, CPU) for part in parts]


def live(maps: list[IdMap], steps: range, seed: int = 0) -> list[list[int]]:
    """Run the same steps whatever the number of maps, and say what rows were looked up."""
    found = []
    for step in steps:
        random = np.random.default_rng([seed, step])
        ids = random.integers(0, 40, 30) * 1_000_003 + step // 3
        ids[:2] = NULL_ID
        codes = torch.from_numpy(id_codes(ids, maps[0].part.buckets))
        rows = torch.empty_like(codes)
        for each in maps:
            ours = each.is_ours(codes)
            rows[ours] = each.record(codes[ours], step) + each.part.first * each.part.bucket_rows
            if each.is_due(step):
                each.admit(step)
        found.append(rows.tolist())
    return found


def save(directory: Path, maps: list[IdMap], step: int) -> Path:
    savers = [Checkpointer(directory, r, len(maps), "test", timeout_s=20) for r in range(len(maps))]
    for saver, each in zip(savers, maps, strict=True):
        snapshot = capture([], {}, {}, {}, [take_state(each, "user")])
        saver.save(step, snapshot, {})
    paths = {saver.wait() for saver in savers}
    path = paths.pop()
    assert path is not None
    return path


def load(path: Path, maps: list[IdMap]) -> None:
    for each in maps:
        state = blank_state(each, "user")
        restore_maps(path, [state])
        give_state(each, state)


def together(maps: list[IdMap]) -> dict[str, list[Any]]:
    """All that the maps hold, as one."""
    newcomers = [each.newcomers.seen() for each in maps]
    return {
        name: list(itertools.chain(*(getattr(m, name).view(-1).tolist() for m in maps)))
        for name in ("codes", "counts", "last_seen")
    } | {
        f"new {name}": list(itertools.chain(*(getattr(n, name).tolist() for n in newcomers)))
        for name in ("codes", "counts", "last_seen")
    }


CELLS = [(1, 1), (1, 2), (2, 1), (2, 4), (4, 2), (1, 4), (4, 1)]


@pytest.mark.parametrize(("before", "after"), CELLS)
def test_every_id_keeps_its_row_and_the_run_goes_on_as_if_nothing_had_been(
    before: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = maps_of(before)
    live(saved, range(1, 11))  # two steps after an admission: some ids wait for a row
    path = save(tmp_path, saved, 10)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    restored = maps_of(after)
    live(restored, range(1, 4), seed=9)  # what was there before is gone
    load(path, restored)
    assert len(together(restored)["new codes"]) > 3
    assert together(restored) == together(saved)
    assert live(restored, range(11, 25)) == live(saved, range(11, 25))
    assert together(restored) == together(saved)
    verify(path)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(
    st.sampled_from(CELLS),
    st.sampled_from(["lfu", "lru", "distance_lfu"]),
    st.integers(1, 5),
    st.integers(1, 12),
)
def test_any_policy_and_moment(
    tmp_path_factory: pytest.TempPathFactory,
    cell: tuple[int, int],
    policy: str,
    interval: int,
    step: int,
) -> None:
    given = {"policy": policy, "interval": interval, "ttl_steps": 6, "min_count": 2}
    saved, restored = maps_of(cell[0], **given), maps_of(cell[1], **given)
    live(saved, range(1, step + 1), seed=step)
    load(save(tmp_path_factory.mktemp("maps"), saved, step), restored)
    assert together(restored) == together(saved)
    steps = range(step + 1, step + 8)
    assert live(restored, steps, seed=step) == live(saved, steps, seed=step)


def test_a_checkpoint_says_which_id_has_which_row(tmp_path: Path) -> None:
    maps = maps_of(2)
    live(maps, range(1, 9))
    path = save(tmp_path, maps, 8)
    with CheckpointReader(path) as reader:
        owners = row_owners(reader, "user").numpy()
        codes = np.concatenate([each.codes.view(-1).numpy() for each in maps])
        assert ((owners == NULL_ID) == (codes == EMPTY)).all()
        used = codes != EMPTY
        assert used.sum() > 8
        assert (id_codes(owners[used], BUCKETS) == codes[used]).all()
        assert (owners[used] % 1_000_003 < 4).all(), "the ids are those of the data"
        with pytest.raises(UserError, match="no map of ids of table 'users'; did you mean 'user'"):
            row_owners(reader, "users")
    entry = read_manifest(path).maps["user"]
    assert (entry.rows, entry.buckets) == (BUCKETS * ROWS, BUCKETS)
    assert not list(path.glob("*.pt")) + list(path.glob("*.pkl"))


def test_maps_of_another_shape_are_refused(tmp_path: Path) -> None:
    maps = maps_of(1)
    path = save(tmp_path, maps, 1)
    with pytest.raises(UserError, match="has 40 rows in 8 buckets here, and 20 in 4 there"):
        load(path, maps_of(1, buckets=8))
    with pytest.raises(UserError, match="has 24 rows in 4 buckets here, and 20 in 4 there"):
        load(path, maps_of(1, rows=6))
    state = blank_state(maps[0], "shop")
    with pytest.raises(UserError, match="it has no map of the ids of table 'shop'"):
        restore_maps(path, [state])


def test_a_damaged_map_is_not_read(tmp_path: Path) -> None:
    maps = maps_of(1)
    live(maps, range(1, 6))
    path = save(tmp_path, maps, 5)
    manifest = read_manifest(path)
    name = manifest.maps["user"].tensors["ids"].blocks[0].file
    content = bytearray((path / name).read_bytes())
    content[-3] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load(path, maps_of(1))


def test_a_manifest_whose_map_has_holes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, maps_of(2), 1)
    manifest = read_manifest(path)
    entry = manifest.maps["user"]
    ids = entry.tensors["ids"]
    torn = ids.model_copy(update={"blocks": ids.blocks[:1]})
    broken = entry.model_copy(update={"tensors": entry.tensors | {"ids": torn}})
    (path / MANIFEST).unlink()
    write_manifest(path, manifest.model_copy(update={"maps": {"user": broken}}))
    with pytest.raises(UserError, match="user/ids: blocks hold 10 of 20 elements"):
        read_manifest(path)


def test_a_checkpoint_without_managed_tables_has_no_maps(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, 0, 1, "test", timeout_s=20)
    saver.save(1, capture([], {"w": torch.ones(2)}, {}, {}), {})
    path = saver.wait()
    assert path is not None
    assert read_manifest(path).maps == {}
    content = json.loads((path / MANIFEST).read_text())
    assert Manifest.model_fields["maps"].default == content["maps"] == {}
