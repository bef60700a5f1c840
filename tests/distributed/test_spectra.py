"""Spectra of sharded tables equal those of the whole ones, however they are cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.tables import make_spec

ROWS, WIDE, NARROW = 90, 8, 4
CUTS = ("rows", "columns", "grid", "replicas", "one rank", "whole and row-wise state")


def _whole() -> tuple[torch.Tensor, torch.Tensor]:
    """A table's weights of rank 3 plus a little noise, and its accumulators: two rows of three moved."""
    generator = torch.Generator().manual_seed(1)
    low = torch.randn(ROWS, 3, generator=generator) @ torch.randn(3, WIDE, generator=generator)
    weight = low + 1e-3 * torch.randn(ROWS, WIDE, generator=generator)
    moved = (torch.arange(ROWS) % 3 > 0).float().unsqueeze(1)
    return weight, moved * torch.rand(ROWS, WIDE, generator=generator)


def _blocks(cut: str, rank: int) -> list[tuple[slice, slice]]:
    half, middle = slice(0, 50), WIDE // 2
    rows, columns = slice(0, ROWS), slice(0, WIDE)
    return {
        "rows": [(half if rank == 0 else slice(50, ROWS), columns)],
        "columns": [(rows, slice(0, 4) if rank == 0 else slice(4, WIDE))],
        "grid": [
            (half, slice(0, middle)) if rank == 0 else (half, slice(middle, WIDE)),
            (slice(50, ROWS), slice(middle, WIDE) if rank == 0 else slice(0, middle)),
        ],
        "replicas": [(rows, columns)],
        "one rank": [(rows, columns)] if rank == 0 else [],
        "whole and row-wise state": [(rows, columns)] if rank == 1 else [],
    }[cut]


def _spectra() -> list[dict]:
    import torch.distributed as dist

    from prismrec.analysis.table_spectra import RowChoice, table_spectra
    from prismrec.embeddings.shards import LocalShard

    rank, (weight, accumulator) = dist.get_rank(), _whole()
    spec = make_spec()
    spec = replace(spec, sets=spec.sets[:1], tables=(replace(spec.tables[0], rows=ROWS),))
    counts = {"user": torch.arange(ROWS) % 4}
    found = []
    for cut in CUTS:
        shards = [
            LocalShard(
                table="user",
                set_name="wide",
                num_rows=ROWS,
                num_cols=WIDE,
                row=rows.start,
                col=columns.start,
                weight=weight[rows, columns].clone(),
                states={
                    "accumulator": accumulator[rows].mean(1)
                    if "state" in cut
                    else accumulator[rows, columns].clone()
                },
                is_replica=cut == "replicas" and rank == 1,
            )
            for rows, columns in _blocks(cut, rank)
        ]
        choices = (RowChoice(trained_only=False), RowChoice(), RowChoice(counts))
        found.append([table_spectra(shards, spec, choice)["user/wide"] for choice in choices])
    return [[(each.sigma, each.rows) for each in some] for some in found]


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(_spectra, 2, timeout_s=120)


@pytest.mark.parametrize("cut", CUTS)
def test_sharded_equals_whole(two_ranks, cut):
    from prismrec.analysis.spectra import spectrum

    weight, accumulator = _whole()
    moved = accumulator[:, 0] > 0
    counts = (torch.arange(ROWS) % 4) * moved
    expected = [weight, weight[moved], weight.repeat_interleave(counts, dim=0)]
    rows = [ROWS, int(moved.sum()), int((counts > 0).sum())]
    for rank in two_ranks:
        for (sigma, seen), matrix, number in zip(
            rank[CUTS.index(cut)], expected, rows, strict=True
        ):
            torch.testing.assert_close(sigma, spectrum(matrix).sigma, rtol=1e-6, atol=1e-9)
            assert seen == number


def test_untrained_rows_would_hide_a_collapse(caplog):
    """A tenth of the rows, of rank 1, were trained; the rest is noise as it was drawn."""
    from prismrec.analysis.collapse import CollapseProbe
    from prismrec.embeddings.shards import LocalShard

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1000, WIDE, generator=generator)
    accumulator = torch.zeros(1000, WIDE)
    weight[:100] = torch.outer(torch.randn(100, generator=generator), torch.ones(WIDE))
    accumulator[:100] = 1.0
    spec = make_spec()
    spec = replace(spec, sets=spec.sets[:1], tables=(replace(spec.tables[0], rows=1000),))
    shard = LocalShard("user", "wide", 1000, WIDE, 0, 0, weight, {"accumulator": accumulator})
    probe = CollapseProbe(warn_below=0.3)
    metrics = probe([shard], spec, step=7)
    assert probe([shard], spec, step=8) == metrics
    (warning,) = caplog.records  # once
    assert warning.getMessage() == (
        "step 7: sets of tables use less than 0.3 of their dimensions (table/set, dimensions used): "
        "user/wide 1.0 of 8"
    )
    assert metrics["collapse/abundance/user/wide"] == pytest.approx(1, abs=1e-3)
    assert metrics["collapse/share/user/wide"] == pytest.approx(1 / 8, abs=1e-3)
    assert metrics["collapse/collapsed_sets"] == 1
    blind = CollapseProbe(warn_below=0.3)([replace(shard, states={})], spec, step=7)
    assert blind["collapse/share/user/wide"] > 0.7
    assert blind["collapse/collapsed_sets"] == 0
    few = CollapseProbe(warn_below=0.3, min_rows=101)([shard], spec, step=7)
    assert few["collapse/collapsed_sets"] == 0


def test_numbers_that_are_not_finite_are_named_and_end_nothing(caplog):
    from prismrec.analysis.collapse import CollapseProbe
    from prismrec.embeddings.shards import LocalShard

    weight = torch.randn(100, WIDE)
    weight[7, 2] = torch.nan
    spec = make_spec()
    spec = replace(spec, sets=spec.sets[:1], tables=(replace(spec.tables[0], rows=100),))
    shard = LocalShard("user", "wide", 100, WIDE, 0, 0, weight, {})
    metrics = CollapseProbe(0.2)([shard], spec, step=3)
    assert metrics == {"collapse/not_finite_sets": 1.0, "collapse/collapsed_sets": 0.0}
    (warning,) = caplog.records
    assert warning.getMessage() == (
        "step 3: sets of tables hold numbers that are not finite (table/set): user/wide"
    )
