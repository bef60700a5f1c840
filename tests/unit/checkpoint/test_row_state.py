"""Row-wise state under another cut of the columns: copies, means by columns, and the record of it.

One table of 3 rows with the sets `wide` (8 columns) and `narrow` (4), by hand; columns are numbered
over both sets as they lie in a packed row, so that `wide` is 0 to 8 and `narrow` 8 to 12.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.checkpoint import (
    Checkpointer,
    CheckpointReader,
    Conversion,
    Restored,
    capture,
    describe_conversions,
    latest_conversions,
    merge_conversions,
    read_manifest,
    restore,
)
from prismrec.embeddings.shards import LocalShard

ROWS = 3
SETS = {"wide": (0, 8), "narrow": (8, 12)}
SHAPES = {"t/wide": (ROWS, 8), "t/narrow": (ROWS, 4)}

Cut = tuple[int, int]
"""First and past-the-last column of a shard."""

PACKED: list[Cut] = [(0, 12)]
SEPARATE: list[Cut] = [(0, 8), (8, 12)]


def _shards(
    cuts: Sequence[Cut], numbers: Sequence[Sequence[float]], start: int = 0, rows: int = ROWS
) -> list[LocalShard]:
    """A shard for each cut with its accumulators, as one block of rows of every set it touches."""
    shards = []
    for (low, high), values in zip(cuts, numbers, strict=True):
        state = torch.tensor(values, dtype=torch.float32)[start : start + rows].clone()
        weight = torch.zeros(rows, high - low)
        for name, (first, stop) in SETS.items():
            left, right = max(low, first), min(high, stop)
            if left < right:
                shards.append(
                    LocalShard(
                        *("t", name, ROWS, stop - first, start, left - first),
                        weight[:, left - low : right - low],
                        {"sum": state},
                    )
                )
    return shards


def _save(
    directory: Path, shards: list[LocalShard], conversions: Sequence[Conversion] = ()
) -> Path:
    saver = Checkpointer(directory, 0, 1, "test", timeout_s=20)
    saver.save(7, capture(shards, {}, {}, {}), {}, conversions=conversions)
    path = saver.wait()
    assert path is not None
    return path


def _load(path: Path, cuts: Sequence[Cut]) -> tuple[list[list[float]], Restored]:
    """The accumulators of each shard of a cut, and what `restore` returned."""
    shards = _shards(cuts, [[-1.0] * ROWS] * len(cuts))
    restored = restore(path, shards, {}, {}, {}, SHAPES)
    found: dict[int, Tensor] = {}
    for shard in shards:
        found[id(shard.states["sum"])] = shard.states["sum"]
    return [each.tolist() for each in found.values()], restored


A, B, C = [1.0, 2.0, 3.0], [4.0, 8.0, 16.0], [0.0, 1.0, 32.0]


@pytest.mark.parametrize(
    ("saved", "numbers", "wanted", "expected"),
    [
        (PACKED, [A], SEPARATE, [A, A]),
        (PACKED, [A], [(0, 4), (4, 8), (8, 12)], [A, A, A]),
        # (8 * 1 + 4 * 4) / 12 and so on
        (SEPARATE, [A, B], PACKED, [[2.0, 4.0, 88 / 12]]),
        (SEPARATE, [A, B], SEPARATE, [A, B]),
        # equal parts: the plain mean
        ([(0, 4), (4, 8), (8, 12)], [A, B, C], SEPARATE, [[2.5, 5.0, 9.5], C]),
        # unequal parts: (5 * 1 + 3 * 4) / 8
        ([(0, 5), (5, 8), (8, 12)], [A, B, C], SEPARATE, [[2.125, 4.25, 7.875], C]),
        # cut within `wide`; the second half is shared with `narrow`: (6 * 1 + 2 * 4) / 8
        ([(0, 6), (6, 12)], [A, B], SEPARATE, [[1.75, 3.5, 6.25], B]),
        ([(0, 6), (6, 12)], [A, B], PACKED, [[2.5, 5.0, 9.5]]),
        # 0..4 of the first; 4..6 of the first and 6..8 of the second; 8..12 of the second
        ([(0, 6), (6, 12)], [A, B], [(0, 4), (4, 8), (8, 12)], [A, [2.5, 5.0, 9.5], B]),
    ],
)
def test_numbers_are_copied_or_averaged_by_columns(
    tmp_path: Path,
    saved: list[Cut],
    numbers: list[list[float]],
    wanted: list[Cut],
    expected: list[list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = _save(tmp_path, _shards(saved, numbers))
    found, _ = _load(path, wanted)
    assert found == [pytest.approx(each, rel=1e-7) for each in expected]
    monkeypatch.setattr("prismrec.checkpoint.reader._CHUNK_ROWS", 2)
    assert _load(path, wanted)[0] == found


def test_equal_numbers_stay_to_the_bit(tmp_path: Path) -> None:
    odd = torch.rand(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    cuts = [(0, 5), (5, 8), (8, 11), (11, 12)]
    found, _ = _load(_save(tmp_path, _shards(cuts, [odd] * 4)), PACKED)
    assert torch.equal(torch.tensor(found[0]), torch.tensor(odd))


def test_shared_numbers_are_stored_once(tmp_path: Path) -> None:
    """3 rows: 12 weights and 1 number each, and no second copy of the number for `narrow`."""
    shards = _shards(PACKED, [A])
    assert capture(shards, {}, {}, {}).num_bytes == 4 * (3 * 12 + 3)
    manifest = read_manifest(_save(tmp_path, shards))
    wide, narrow = (manifest.tables[f"t/{name}"].tensors["sum"] for name in ("wide", "narrow"))
    assert [block.key for block in wide.blocks] == [block.key for block in narrow.blocks]
    assert [(b.row, b.rows, b.col, b.cols) for b in wide.blocks] == [(0, 3, 0, 8)]
    assert [(b.row, b.rows, b.col, b.cols) for b in narrow.blocks] == [(0, 3, 0, 4)]
    assert (wide.per_row, narrow.per_row) == (1, 1)
    assert manifest.tables["t/wide"].tensors["weight"].per_row is None


def test_the_manifest_counts_the_numbers_of_a_row(tmp_path: Path) -> None:
    cuts = [(0, 2), (2, 6), (6, 12)]
    numbers = [A, B, C]
    top, bottom = _shards(cuts, numbers, 0, 2), _shards(cuts, numbers, 2, 1)
    path = _save(tmp_path, top + bottom)
    tables = read_manifest(path).tables
    assert tables["t/wide"].tensors["sum"].per_row == 3
    assert tables["t/narrow"].tensors["sum"].per_row == 1
    with CheckpointReader(path) as reader:  # one number for a row: the mean over the set
        assert reader.table("t", "wide", "sum").tolist() == pytest.approx(
            [(2 * a + 4 * b + 2 * c) / 8 for a, b, c in zip(A, B, C, strict=True)]
        )
        assert reader.table("t", "narrow", "sum").tolist() == C


def _told(found: Sequence[Conversion]) -> dict[str, Any]:
    """Each conversion as its rule and the numbers before and after: (col, cols, sharing sets)."""
    return {
        each.tensor: (
            each.rule,
            *(
                [(a.col, a.cols, *a.shared_with) for a in pieces]
                for pieces in (each.before, each.after)
            ),
        )
        for each in found
    }


def test_conversions_say_what_was_done(tmp_path: Path) -> None:
    path = _save(tmp_path, _shards([(0, 6), (6, 12)], [A, B]))
    _, same = _load(path, [(0, 6), (6, 12)])
    assert same.conversions == ()
    _, found = _load(path, SEPARATE)
    assert _told(found.conversions) == {
        "t/wide/sum": ("mean", [(0, 6), (6, 2, "narrow")], [(0, 8)]),
        "t/narrow/sum": ("copy", [(0, 4, "wide")], [(0, 4)]),
    }
    assert {each.step for each in found.conversions} == {7}
    assert describe_conversions(found.conversions) == (
        "row-wise optimizer state was stored for another cut of the columns and was converted, so "
        "training goes on with other steps than there: t/narrow/sum (1 a row shared with wide to "
        "1 a row, copy), t/wide/sum (2 a row shared with narrow to 1 a row, mean)"
    )


def test_ranks_see_their_own_part_of_a_conversion(tmp_path: Path) -> None:
    """Rank 0 takes the first half of `wide`, rank 1 the second with `narrow`."""
    path = _save(tmp_path, _shards(PACKED, [A]))
    parts = [
        restore(path, _shards([cut], [A]), {}, {}, {}, SHAPES).conversions
        for cut in ((0, 4), (4, 12))
    ]
    assert _told(parts[0]) == {"t/wide/sum": ("copy", [(0, 8, "narrow")], [(0, 4)])}
    assert _told(merge_conversions([*parts[0], *parts[1]])) == {
        "t/wide/sum": ("copy", [(0, 8, "narrow")], [(0, 4), (4, 4, "narrow")]),
        "t/narrow/sum": ("copy", [(0, 4, "wide")], [(0, 4, "wide")]),
    }


def test_the_next_manifest_has_the_last_conversion_of_each_tensor(tmp_path: Path) -> None:
    _, first = _load(_save(tmp_path / "1", _shards(SEPARATE, [A, B])), PACKED)
    path = _save(tmp_path / "2", _shards(PACKED, [A]), first.conversions)
    assert read_manifest(path).conversions == first.conversions
    _, second = _load(path, [(0, 4), (4, 12)])
    kept = latest_conversions(second.manifest.conversions, second.conversions)
    assert [each.tensor for each in kept] == ["t/narrow/sum", "t/wide/sum"]
    assert [each.rule for each in kept] == ["copy", "copy"]
    _, third = _load(path, PACKED)
    assert third.conversions == ()
    kept = latest_conversions(third.manifest.conversions, third.conversions)
    assert [each.rule for each in kept] == ["mean", "mean"]


def _as_version_1(path: Path) -> None:
    """Write a manifest as version 1 did: a row-wise block counts as one column."""
    content = json.loads((path / "manifest.json").read_text())
    del content["sha256"], content["conversions"]
    content["version"] = 1
    for table in content["tables"].values():
        for tensor in table["tensors"].values():
            del tensor["per_row"]
            for block in tensor["blocks"] if len(tensor["shape"]) == 1 else ():
                block["cols"] = 1
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content))


def test_version_1_is_read(tmp_path: Path) -> None:
    numbers = [A, B]
    path = _save(tmp_path, _shards(SEPARATE, numbers, 0, 2) + _shards(SEPARATE, numbers, 2, 1))
    _as_version_1(path)
    assert json.loads((path / "manifest.json").read_text())["version"] == 1
    assert _load(path, SEPARATE)[0] == [A, B]
    found, restored = _load(path, [(0, 4), (4, 12)])
    assert found == [A, pytest.approx([2.5, 5.0, 9.5])]
    assert [each.rule for each in restored.conversions] == ["mean", "mean"]
    assert restored.manifest.version == 2
    assert restored.manifest.tables["t/wide"].tensors["sum"].per_row == 1


@st.composite
def cuts(draw: st.DrawFn) -> list[Cut]:
    """The 12 columns cut anywhere, or between the sets too."""
    inner = draw(st.sets(st.integers(1, 11), max_size=5))
    edges = [0, *sorted(inner), 12]
    return list(itertools.pairwise(edges))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(saved=cuts(), wanted=cuts(), row=st.integers(1, ROWS - 1), seed=st.integers(0, 99))
def test_any_cut_becomes_any_other(
    tmp_path_factory: pytest.TempPathFactory,
    saved: list[Cut],
    wanted: list[Cut],
    row: int,
    seed: int,
) -> None:
    """Against the numbers written out for every column, and the mean over a shard's columns."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(len(saved), ROWS, generator=generator)
    shards = _shards(saved, numbers.tolist(), 0, row)
    shards += _shards(saved, numbers.tolist(), row, ROWS - row)
    path = _save(tmp_path_factory.mktemp("cuts"), shards)
    by_column = torch.zeros(ROWS, 12, dtype=torch.float64)
    for (low, high), values in zip(saved, numbers, strict=True):
        by_column[:, low:high] = values[:, None].double()
    found, restored = _load(path, wanted)
    for (low, high), values in zip(wanted, found, strict=True):
        expected = by_column[:, low:high].mean(1)
        torch.testing.assert_close(torch.tensor(values).double(), expected, rtol=1e-7, atol=0)
    changed = set(wanted) - set(saved)
    touched = {
        f"t/{name}/sum"
        for low, high in changed
        for name, (first, stop) in SETS.items()
        if max(low, first) < min(high, stop)
    }
    assert {each.tensor for each in restored.conversions} == touched
