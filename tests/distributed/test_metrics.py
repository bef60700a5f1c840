"""Metrics of rows on 1, 2 and 3 ranks equal those of one process, however the rows are spread."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from prismrec.train.metrics import Evaluation, Resampling
from prismrec.train.metrics.exchange import Ranks
from tests.helpers.evaluation_rows import draw, expected, fill
from tests.helpers.ranks import run_ranks

TASKS = ("like", "finish")
DRAWN = Resampling(count=25, seed=9)


def spread(rows, how: str, rank: int, world_size: int):
    """This rank's rows: dealt out, in blocks of very different size, or none on rank 0."""
    size = rows[0].shape[0]
    owner = {
        "dealt": torch.arange(size) % world_size,
        "blocks": (torch.arange(size) >= size - 5).long() * (world_size - 1),
        "none on rank 0": torch.full((size,), min(1, world_size - 1)),
    }[how]
    return [column[owner == rank] for column in rows]


def report(evaluation: Evaluation):
    return {
        **evaluation.compute(),
        "interval": evaluation.auc_interval("like", DRAWN),
        "interval by group": evaluation.auc_interval("like", DRAWN, by_group=True),
        "curve": evaluation.calibration_curve("finish", 5).observed.tolist(),
    }


def evaluate_everywhere():
    rank, world_size = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo")
    reports = {}
    for how in ("dealt", "blocks", "none on rank 0"):
        rows = spread(draw(400), how, rank, world_size)
        evaluation = Evaluation(TASKS, ["domain"], process_group=group)
        if rows[0].shape[0]:
            fill(evaluation, rows, [0, rows[0].shape[0]])
        reports[how] = report(evaluation)
    reports["no rows at all"] = Evaluation(TASKS, ["domain"]).compute()
    distinct = np.random.default_rng(rank).normal(size=5000 * (rank + 1))
    owners = Ranks().owner_by_score(distinct)
    reports["owned"] = Ranks().sum(np.bincount(owners, minlength=world_size).astype(float))
    ordered = Ranks().exchange((distinct, np.arange(distinct.size)), owners)
    reports["range"] = ordered[0].min(), ordered[0].max(), ordered[0].size, ordered[1].dtype
    return reports


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_spread_over_ranks_gives_the_values_of_one_process(world_size):
    rows = draw(400)
    alone = Evaluation(TASKS, ["domain"])
    fill(alone, rows, [0, 400])
    wanted = report(alone)
    functions = expected(rows, TASKS)
    ranks = run_ranks(evaluate_everywhere, world_size)
    for reports in ranks:
        for how in ("dealt", "blocks", "none on rank 0"):
            found = reports[how]
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                assert found[key] == pytest.approx(value, abs=1e-12, rel=0), (how, key)
            metrics = {key: found[key] for key in functions}
            assert metrics == pytest.approx(functions, abs=1e-12, rel=0)
            assert found == ranks[0][how]
        assert reports["no rows at all"]["like/rows"] == 0
        assert np.isnan(reports["no rows at all"]["like/auc"])

    owned = ranks[0]["owned"]
    assert owned.sum() == 5000 * world_size * (world_size + 1) / 2
    assert owned.max() < 1.1 * owned.mean()
    for lower, upper in itertools.pairwise(ranks):
        assert lower["range"][1] < upper["range"][0]
    assert [r["range"][2] for r in ranks] == owned.tolist()
    assert ranks[0]["range"][3] == np.int64
