"""Ray on this machine or a cluster that already runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from prismrec.cluster import state
from prismrec.cluster.network import is_loopback, pick_interface, talk_over
from prismrec.config import UserError

SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_prestart_worker_first_driver": "0",  # none of them could be used: ours have environments
}
"""What Ray reads from the environment; what the user has set there stands."""

CONNECT_S = 10.0
"""Seconds in which the head of a cluster has to answer."""


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
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    address = known_address(address)
    on_loopback(address.rpartition(":")[0] if address else "127.0.0.1", os.environ)
    if address is not None:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
        state.use_token(os.environ)
        _check_answers(address)
    import ray

    level = logging.INFO if verbose else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                address="local",  # else Ray would take any cluster that it finds on this machine
                num_cpus=max(num_workers, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=verbose,
                logging_level=level,
                runtime_env={"env_vars": {"GLOO_SOCKET_IFNAME": pick_interface()}},
            )
        else:
            ray.init(address=address, log_to_driver=verbose, logging_level=level)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address, error) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in the place
    try:
        yield
    finally:
        ray.shutdown()


def known_address(address: str | None) -> str | None:
    """The address with "auto" replaced by that of this machine's node, where it has one.

    Inside a job, and wherever else `RAY_ADDRESS` is set, "auto" is left to Ray.

    Raises:
        UserError: "auto", and this machine has no node.
    """
    if address != "auto" or os.environ.get("RAY_ADDRESS"):
        return address
    node = state.read_node()
    if node is None:  # Ray would take any cluster that it finds on this machine
        raise UserError(
            "--address: this machine has no node of a cluster; start one with `prismrec cluster "
            "up`, join one with `prismrec cluster join`, or give the cluster's address"
        )
    return node.address


def on_loopback(host: str, environment: MutableMapping[str, str]) -> None:
    """Have Ray listen on and connect to loopback where that is the cluster's address.

    On Linux Ray takes 127.0.0.1 for a wish to have the machine's outer address, unless it believes
    to be where clusters are not possible. It reads this once, when it is imported.

    Args:
        host: the cluster's address.
        environment: of the process that imports Ray, changed in place.
    """
    if host == "localhost" or (host[:1].isdigit() and is_loopback(host)):
        environment.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try it for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            return
    except OSError as error:
        raise UserError(
            f"--address: nothing answers at {address} ({error}); `prismrec cluster status` on a "
            "machine of the cluster shows its address"
        ) from None


def talk_over_node_address() -> str:
    """In a Ray worker: have gloo and NCCL talk over what carries this node's address.

    Returns:
        The interface's name.
    """
    import ray

    return talk_over(ray.util.get_node_ip_address())


def _unreachable(address: str | None, error: Exception) -> UserError:
    """What to do when Ray does not start or does not let this client in."""
    first = (str(error).splitlines() or [type(error).__name__])[0][:300]
    if address is None:
        return UserError(f"no Ray could be started on this machine: {first}")
    return UserError(
        f"--address: the cluster at {address} does not let this machine in ({first}): either its "
        f"token is another one (copy the token file of the machine that ran `prismrec cluster up` "
        f"to {state.token_file()}), or this machine is none of its nodes (`prismrec cluster join`)"
    )
