"""Saving: in the background, whole or not at all, and what stays afterwards."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import torch

from prismrec.checkpoint import (
    Checkpointer,
    Retention,
    Snapshot,
    best,
    capture,
    latest,
    read_dense,
    read_manifest,
    read_table,
)
from prismrec.checkpoint.parts import write_part
from prismrec.config import UserError
from prismrec.embeddings.shards import LocalShard
from tests.unit.checkpoint.forms import (
    Form,
    assert_equal,
    dense,
    empty_like,
    fill,
    load,
    logical,
    save,
)


def _small(value: float = 0.0) -> Snapshot:
    return capture([], {"w": torch.full((4,), value)}, {}, {})


def _one(directory: Path, attempt: str = "a", **retention: object) -> Checkpointer:
    return Checkpointer(directory, 0, 1, attempt, Retention(**retention), 5)  # type: ignore[arg-type]


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_holds_its_manifest_and_data_files_only(tmp_path: Path) -> None:
    path = save(tmp_path, fill(empty_like(Form("packed", "row_wise", 2)), logical()), metric=0.75)
    assert path == tmp_path / "step-00000001"
    assert _names(path) == ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
    manifest = read_manifest(path)
    assert (manifest.step, manifest.world_size, manifest.metric) == (1, 2, 0.75)
    assert manifest.extra == {"step": 1, "rank": 0}
    weight = manifest.tables["user/narrow"].tensors["weight"]
    assert [(b.row, b.rows, b.col, b.cols) for b in weight.blocks] == [(0, 4, 0, 4), (4, 7, 0, 4)]
    assert weight.shape == (11, 4)


def test_values_are_those_at_capture(tmp_path: Path) -> None:
    whole = logical()
    ranks = fill(empty_like(Form("packed", "table_wise", 1)), whole)
    values, extra = dense(), {"ledger": [[0, 10]]}
    saver = _one(tmp_path)
    saver.save(3, capture(ranks[0], values.model, values.optimizer, values.ema), extra)
    for shard in ranks[0]:
        shard.weight.add_(1)
        shard.states["sum"].zero_()
    for tensor in (*values.model.values(), *values.optimizer.values(), *values.ema.values()):
        tensor.zero_()
    extra["ledger"].append([10, 20])
    path = saver.wait()
    assert path is not None
    assert_equal(load(path, Form("separate", "row_wise", 2)), whole)
    assert read_manifest(path).extra == {"ledger": [[0, 10]]}


def test_the_copy_counts_its_memory() -> None:
    shard = LocalShard("t", "s", 5, 4, 0, 0, torch.zeros(5, 4), {"sum": torch.zeros(5)})
    replica = LocalShard("t", "s", 5, 4, 0, 0, torch.zeros(5, 4), is_replica=True)
    snapshot = capture([shard, replica], {"w": torch.zeros(3).half()}, {}, {})
    assert snapshot.num_bytes == 5 * 4 * 4 + 5 * 4 + 3 * 2


def test_large_blocks_are_cut_over_files(tmp_path: Path) -> None:
    shard = LocalShard("t", "s", 10, 4, 0, 0, torch.arange(40.0).reshape(10, 4))
    part = write_part(tmp_path, 0, capture([shard], {"w": torch.zeros(9)}, {}, {}), {}, 48)
    assert [b.rows for b in part.tables["t/s"].tensors["weight"].blocks] == [3, 3, 3, 1]
    assert list(part.files) == [
        "rank-00000.safetensors",
        *(f"rank-00000-{n:03d}.safetensors" for n in range(1, 5)),
    ]
    for name, entry in part.files.items():
        assert (tmp_path / name).stat().st_size == entry.size


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    saver = _one(tmp_path, keep_last=2)
    for step, metric in [(1, 0.5), (2, 0.9), (3, 0.6), (4, None), (5, float("nan"))]:
        saver.save(step, _small(step), {}, metric)
    saver.wait()
    assert _names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    assert best(tmp_path) == tmp_path / "step-00000002"
    assert latest(tmp_path) == tmp_path / "step-00000005"
    saver = _one(tmp_path, keep_last=1, keep_best=False)
    saver.save(6, _small(), {})
    assert saver.wait() == tmp_path / "step-00000006"
    assert _names(tmp_path) == ["step-00000006"]
    assert best(tmp_path) is None


def test_equal_metrics_prefer_the_newer(tmp_path: Path) -> None:
    saver = _one(tmp_path, keep_last=9)
    for step, metric in [(1, 0.9), (2, 0.9), (3, 0.8)]:
        saver.save(step, _small(), {}, metric)
    saver.wait()
    assert best(tmp_path) == tmp_path / "step-00000002"


def test_a_step_can_be_saved_again_and_an_earlier_step_can_be_newest(tmp_path: Path) -> None:
    saver = _one(tmp_path, keep_last=2, keep_best=False)
    for step in (1, 2, 3):
        saver.save(step, _small(step), {})
    saver.wait()
    again = _one(tmp_path, "b", keep_last=2, keep_best=False)
    again.save(2, _small(-2), {})
    path = again.wait()
    assert path == tmp_path / "step-00000002-r2"
    assert latest(tmp_path) == path
    assert float(read_dense(path)["w"][0]) == -2
    assert _names(tmp_path) == ["step-00000002-r2", "step-00000003"]


def test_no_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    assert best(tmp_path / "none") is None
    assert _one(tmp_path).wait() is None


def test_what_a_killed_start_left_is_not_mistaken(tmp_path: Path) -> None:
    """Rank 1 of an earlier start wrote its part of step 7; the new start must not take it."""
    stale = tmp_path / "step-00000007.tmp-old-1"
    stale.mkdir()
    old = LocalShard("t", "s", 4, 4, 2, 0, torch.full((2, 4), 13.0))
    write_part(stale, 1, capture([old], {}, {}, {}), {})
    snapshots = [
        capture([LocalShard("t", "s", 4, 4, 2 * r, 0, torch.full((2, 4), r + 0.0))], {}, {}, {})
        for r in range(2)
    ]
    first, second = (Checkpointer(tmp_path, rank, 2, "new", timeout_s=10) for rank in range(2))
    first.save(7, snapshots[0], {})
    time.sleep(0.05)
    second.save(7, snapshots[1], {})
    path = first.wait()
    assert second.wait() == path
    assert path is not None
    assert read_table(path, "t", "s")[:, 0].tolist() == [0, 0, 1, 1]
    assert _names(tmp_path) == ["step-00000007"]


def test_a_rank_that_stays_away_fails_the_save(tmp_path: Path) -> None:
    before = _one(tmp_path)
    before.save(1, _small(), {})
    before.wait()
    saver = Checkpointer(tmp_path, 0, 2, "b", timeout_s=0.2)
    saver.save(2, _small(), {})
    with pytest.raises(UserError, match=r"not every rank .* 0\.2 s .*ranks \[1\]"):
        saver.save(3, _small(), {})
    assert _names(tmp_path) == ["step-00000001"]
    alone = Checkpointer(tmp_path, 1, 2, "b", timeout_s=0.1)
    alone.save(2, _small(), {})
    with pytest.raises(UserError, match="rank 0 did not begin"):
        alone.wait()


def test_a_full_disk_leaves_earlier_checkpoints_and_no_pieces(tmp_path: Path) -> None:
    saver = _one(tmp_path)
    saver.save(1, _small(1), {})
    saver.wait()
    large = capture([], {"w": torch.zeros(1 << 20)}, {}, {})
    with _largest_file(1 << 20):
        saver.save(2, large, {})
        with pytest.raises(UserError, match=r"step 2 .*rank 0 cannot write .*step-00000002.*free"):
            saver.wait()
    assert _names(tmp_path) == ["step-00000001"]
    assert float(read_dense(tmp_path / "step-00000001")["w"][0]) == 1
    saver.save(3, _small(3), {})
    assert saver.wait() == tmp_path / "step-00000003"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saver = _one(tmp_path / "file" / "run")
    saver.save(1, _small(), {})
    with pytest.raises(UserError, match=r"rank 0 cannot write .*file/run: Not a directory"):
        saver.wait()


def test_a_rank_that_fails_fails_the_save_on_every_rank(tmp_path: Path) -> None:
    first, second = (Checkpointer(tmp_path, rank, 2, "a", timeout_s=10) for rank in range(2))
    shard = LocalShard("t", "s", 1 << 16, 4, 0, 0, torch.zeros(1 << 16, 4))
    with _largest_file(1 << 19):
        first.save(1, _small(), {})
        second.save(1, capture([shard], {}, {}, {}), {})
        with pytest.raises(UserError, match="rank 1 cannot write"):
            second.wait()
        with pytest.raises(UserError, match="rank 1 failed: File too large; earlier"):
            first.wait()
    assert _names(tmp_path) == []


def test_when_rank_0_fails_the_others_hear_of_it(tmp_path: Path) -> None:
    first, second = (Checkpointer(tmp_path, rank, 2, "a", timeout_s=10) for rank in range(2))
    with _largest_file(1 << 19):
        first.save(1, capture([], {"w": torch.zeros(1 << 20)}, {}, {}), {})
        second.save(1, _small(), {})
        with pytest.raises(UserError, match="rank 0 failed: File too large"):
            second.wait()
        with pytest.raises(UserError, match="rank 0 cannot write"):
            first.wait()
    assert _names(tmp_path) == []


def test_shards_that_leave_a_gap_are_not_saved(tmp_path: Path) -> None:
    saver = _one(tmp_path)
    saver.save(1, capture([LocalShard("t", "s", 5, 4, 1, 0, torch.zeros(4, 4))], {}, {}, {}), {})
    with pytest.raises(ValueError, match="t/s/weight: blocks hold 16 of 20 elements"):
        saver.wait()
    assert _names(tmp_path) == []


def test_extra_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _one(tmp_path).save(1, _small(), {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_attempt_and_retention_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"attempt must be letters.*'\.\./x'"):
        Checkpointer(tmp_path, 0, 1, "../x")
    with pytest.raises(ValueError, match="keep_last must be at least 1, got 0"):
        _one(tmp_path, keep_last=0)


@pytest.mark.parametrize(
    ("shard", "complaint"),
    [
        (LocalShard("t", "s", 4, 4, 1, 0, torch.zeros(4, 4)), "row 1, column 0 .* not lie in"),
        (LocalShard("t", "s", 4, 4, 0, 2, torch.zeros(4, 4)), "row 0, column 2 .* not lie in"),
        (
            LocalShard("t", "s", 4, 4, 0, 0, torch.zeros(4, 4), {"m": torch.zeros(3)}),
            r"state m has shape \(3,\)",
        ),
        (
            LocalShard("t", "s", 4, 4, 0, 0, torch.zeros(4, 4), {"weight": torch.zeros(4)}),
            "must not be called weight",
        ),
    ],
)
def test_shards_without_a_place_are_refused(shard: LocalShard, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        capture([shard], {}, {}, {})


class _largest_file:  # noqa: N801 - reads as a word of the test
    """Inside, the kernel refuses to let a file of this process grow beyond `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
