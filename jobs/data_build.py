"""`prismrec data build`: a data set out of Parquet files, on Ray or in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.config import UserError
from prismrec.data.building.build import Means, Stages, build_data, run_here
from prismrec.data.building.plan import BuildPlan
from prismrec.jobs.over_ray import ray_means
from prismrec.train.signals import signals_end


@dataclass(frozen=True, slots=True)
class Where:
    """Where a build does its work.

    Args:
        use_ray: on Ray; otherwise in this process.
        address: of a Ray cluster; an embedded Ray starts without one.
        verbose: show what Ray says.
    """

    use_ray: bool = True
    address: str | None = None
    verbose: bool = False


def run_build(
    plan: BuildPlan, out: Path, where: Where, tell: Stages, *, overwrite: bool = False
) -> dict[str, Any]:
    """Build a data set that appears at `out` whole or not at all, also when SIGTERM ends the process.

    Args:
        plan: what is built.
        out: directory to make; with machines of a cluster, on a file system that all of them share.
        where: where the work is done.
        tell: told how far it is.
        overwrite: replace a data set that lies at `out`.

    Returns:
        What `prismrec.data.building.build.build_data` returns.

    Raises:
        UserError: plan, rows, joined tables or recipe are wrong, or `out` is taken.
    """
    if not where.use_ray and where.address is not None:
        raise UserError("--no-ray works in this process; leave out --address, or --no-ray")
    with signals_end():
        if not where.use_ray:
            return build_data(plan, out, Means(run_here, None, tell), overwrite)
        with ray_means(where.address, tell, verbose=where.verbose) as means:
            return build_data(plan, out, means, overwrite)
