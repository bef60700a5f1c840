"""Spectra of tables that are really sharded, by every kind and layout, against the gathered tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prismrec.analysis.spectra import spectrum
from prismrec.config.placement import KINDS
from tests.distributed import test_kinds, test_tables
from tests.helpers.sharded import Trained
from tests.helpers.shared_ranks import trained


def _gathered(ranks: list[Trained], key: str) -> tuple[Tensor, Tensor | None]:
    """A set of a table, and which of its rows the optimizer's state says have moved."""
    shards = [each for rank in ranks for each in rank.shards if each.key == key]
    shape = shards[0].num_rows, shards[0].num_cols
    whole, moved = torch.full(shape, torch.nan), torch.zeros(shape[0], dtype=torch.bool)
    has_state = False
    for shard in shards:
        rows = slice(shard.row, shard.row + shard.weight.shape[0])
        whole[rows, shard.col : shard.col + shard.weight.shape[1]] = shard.weight.float()
        state = shard.states.get("accumulator", shard.states.get("exp_avg_sq"))
        if state is not None:
            has_state = True
            moved[rows] |= state > 0 if state.dim() == 1 else (state > 0).any(1)
    assert not whole.isnan().any(), f"{key} is not whole"
    return whole, moved if has_state else None


@pytest.mark.parametrize("file", [test_kinds, test_tables], ids=["kinds", "tables"])
def test_a_sharded_spectrum_is_that_of_the_gathered_table(file) -> None:
    name = file.__name__.rpartition(".")[2]
    ranks = trained(2, name)
    kinds, layouts = set(), set()
    for index, case in enumerate(file.cases(2)):
        of_case = [rank[index] for rank in ranks]
        kinds |= {table.sharding for table in case.spec.tables}
        layouts |= {table.layout for table in case.spec.tables}
        for key, found in of_case[0].spectra.items():
            assert torch.equal(found.sigma, of_case[1].spectra[key].sigma), "ranks agree"
            whole, moved = _gathered(of_case, key)
            rows = whole if moved is None else whole[moved]
            expected = spectrum(rows)
            assert found.rows == len(rows), key
            torch.testing.assert_close(found.sigma, expected.sigma, rtol=1e-6, atol=1e-6)
            assert found.information_abundance == pytest.approx(
                expected.information_abundance, rel=1e-6
            ), key
    if name == "test_kinds":
        assert kinds == set(KINDS)
        assert layouts == {"packed", "separate", "spread"}
