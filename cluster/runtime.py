"""Ray on this machine or a cluster that already runs."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prismrec.cluster.network import pick_interface
from prismrec.config import UserError

_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_prestart_worker_first_driver": "0",  # none of them could be used: ours have environments
}
"""What Ray reads from the environment; what the user has set there stands."""


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
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    level = logging.INFO if verbose else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                num_cpus=max(num_workers, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=verbose,
                logging_level=level,
                runtime_env={"env_vars": {"GLOO_SOCKET_IFNAME": pick_interface()}},
            )
        else:
            ray.init(address=address, log_to_driver=verbose, logging_level=level)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        where = address or "this machine"
        raise UserError(
            f"--address: no Ray to be had at {where}: {str(error).splitlines()[0]}; start one with "
            "`ray start --head`, or leave --address out"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in the place
    try:
        yield
    finally:
        ray.shutdown()
