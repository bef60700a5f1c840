"""`prismrec serve`: a model behind HTTP, in processes of Ray Serve.

Each replica listens itself, on a port of its own. Ray Serve's proxy, which stands between clients
and replicas otherwise, hands every request from process to process, which costs more time than the
model takes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prismrec.cluster import state
from prismrec.cluster.network import check_free, free_port, is_loopback
from prismrec.cluster.runtime import ray_runtime
from prismrec.config import UserError
from prismrec.serving.http.requests import Limits
from prismrec.serving.http.token import token_digest
from prismrec.tracking.registry import Registry

if TYPE_CHECKING:
    from prismrec.jobs.replica import Serving

_DRAIN_S = 5.0
_REQUEST_S = 60.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a model is served.

    Args:
        host: address to listen at.
        port: port of the first replica; the others have the next ones.
        replicas: processes, each with the whole model.
        token_file: file of the token, made where there is none; None takes the usual place.
        ask_token: whether clients need the token.
        limits: what a request may be.
        watch_s: seconds between two looks at the alias.
        verbose: show what Ray says.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    token_file: Path | None = None
    ask_token: bool = True
    limits: Limits = field(default_factory=Limits)
    watch_s: float = 2.0
    verbose: bool = False


def serve_model(model: str, uri: str, options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serve a model until the process is interrupted or terminated.

    Args:
        model: as for `Registry.resolve`; an alias is followed.
        uri: tracking URI of the registry.
        options: how it is served.
        ready: told, in a few lines, where it is to be had, once it is.

    Raises:
        UserError: there is no such model, a port is taken, the token cannot be read, or what was
            asked for would open the model to everybody.
    """
    _check(options)
    registry = Registry(uri)
    with registry.resolve(model) as found:
        name = found.version.label if found.version else str(found.path)
    token_file = (options.token_file or default_token_file()) if options.ask_token else None
    digest = token_digest(token_file) if token_file else None
    _set_up_ray_serve(options)
    with ray_runtime(None, num_workers=options.replicas, verbose=options.verbose):
        from prismrec.jobs.replica import Serving

        serving = Serving(model, registry.uri, digest, options.limits, options.watch_s)
        with _stop_signals() as stopped, _deployed(serving, options):
            addresses = " ".join(f"http://{options.host}:{port}" for port in _ports(options))
            token = f"token in {token_file}" if token_file else "no token is asked for"
            ready(f"{name} at {addresses}\n{token}; Ctrl-C ends it")
            stopped.wait()


def default_token_file() -> Path:
    """Where a generated token is kept: in the state directory, which the cluster uses too."""
    return state.state_directory() / "serve.token"


def _check(options: ServeOptions) -> None:
    if options.replicas < 1:
        raise UserError(f"--replicas {options.replicas}: at least 1 is needed")
    for port in _ports(options):
        check_free(options.host, port, ("--host", "--port"))
    if not is_loopback(options.host) and not options.ask_token:
        raise UserError(
            f"--no-token with --host {options.host} would answer everybody who reaches this "
            "machine; leave one of the two out"
        )


def _ports(options: ServeOptions) -> range:
    return range(options.port, options.port + options.replicas)


def _set_up_ray_serve(options: ServeOptions) -> None:
    """Tell Ray Serve, which reads the environment when it is imported and in its processes."""
    ports = _ports(options)
    os.environ |= {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # among others, that replicas listen themselves
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(
            ports.stop
        ),  # the first one that is not theirs
        "RAY_worker_niceness": "0",  # it is 15 otherwise: anything else on the machine goes first
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # a replica that died is followed on its own port
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }


@contextmanager
def _deployed(serving: Serving, options: ServeOptions) -> Iterator[None]:
    from ray import serve

    from prismrec.jobs.replica import Replica

    logs = {"enable_access_log": False, "log_level": "INFO" if options.verbose else "WARNING"}
    if not options.verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # The proxy is started all the same; it asks for the token too, as it hands on to a replica.
    http = {"host": options.host, "port": free_port(options.host), "request_timeout_s": _REQUEST_S}
    serve.start(http_options=http, logging_config=logs)
    try:
        deployment = Replica.options(  # type: ignore[attr-defined]
            num_replicas=options.replicas,
            max_ongoing_requests=256,
            graceful_shutdown_timeout_s=_DRAIN_S,
            ray_actor_options={"num_cpus": 1},
        )
        try:
            serve.run(deployment.bind(serving), name="prismrec", route_prefix="/")
        except RuntimeError as error:
            raise UserError(
                f"{serving.model}: no replica came up ({str(error).splitlines()[0]}); `prismrec "
                "--verbose serve` shows why"
            ) from error
        yield
    finally:
        serve.shutdown()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, while the context lasts."""
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
