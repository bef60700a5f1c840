"""Ray on this machine or a cluster that already runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from prismrec.config import UserError


@contextmanager
def ray_runtime(address: str | None, *, num_workers: int, verbose: bool) -> Iterator[None]:
    """A connected Ray while the context lasts.

    Without an address an embedded Ray starts on loopback, without a dashboard, and ends with the
    context. A cluster at an address is joined and left as it was.

    Args:
        address: such as "auto" or "10.0.0.1:6379", or None.
        num_workers: processes the embedded Ray must have room for.
        verbose: show what Ray says.

    Raises:
        UserError: the cluster cannot be reached or does not accept this client.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    import ray

    level = logging.INFO if verbose else logging.ERROR
    try:
        if address is None:
            ray.init(
                num_cpus=max(num_workers, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=verbose,
                logging_level=level,
                runtime_env={"env_vars": {"GLOO_SOCKET_IFNAME": "lo"}},
            )
        else:
            ray.init(address=address, log_to_driver=verbose, logging_level=level)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        where = address or "this machine"
        raise UserError(
            f"--address: no Ray to be had at {where}: {str(error).splitlines()[0]}; start one with "
            "`ray start --head`, or leave --address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
