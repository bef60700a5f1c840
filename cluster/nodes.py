"""Starting and ending the Ray node of this machine: `prismrec cluster up`, `join` and `down`.

A node is one process of ours, `ray start --block`, and what it started. It runs in a session of its
own, and what ends a node looks at these processes only: another Ray on the machine is left alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from prismrec.cluster import state
from prismrec.cluster.network import (
    addresses,
    check_free,
    free_port,
    is_loopback,
    pick_interface,
)
from prismrec.cluster.runtime import SETTINGS, on_loopback
from prismrec.config import UserError

START_S = 120.0
"""Seconds in which a node has to be up."""
REACH_S = 5.0
"""Seconds in which the head's port has to take a connection."""
END_S = 20.0
"""Seconds in which the processes of a node may end by themselves."""
_STARTED = "Ray runtime started"
_NO_HEAD = "http2 header with status"
"""Ray says so where a server that is not a head answers its calls."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a node is started.

    Args:
        host: IP address of this machine by which the others reach it. None: loopback for the first
            node, and for one that joins the address from which it sees the first.
        workers: training processes this machine has room for, its cores if not given.
        interface: what gloo and NCCL talk over; the one that carries `host` if not given.
        port: of the cluster; nodes and `train --address` connect to it.
        dashboard_host: address the dashboard and the jobs listen on.
        dashboard_port: their port.
    """

    host: str | None = None
    workers: int | None = None
    interface: str | None = None
    port: int = 6379
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = 8265


def up(options: Options) -> state.Node:
    """Start the first node of a cluster on this machine.

    Raises:
        UserError: this machine has a node, a port is taken, the address or the interface is not
            this machine's, or Ray does not start.
    """
    _refuse_second()
    host = options.host or "127.0.0.1"
    interface = _interface(options, host)
    check_free(host, options.port, ("--host", "--port"))
    dashboard = ("--dashboard-host", "--dashboard-port")
    check_free(options.dashboard_host, options.dashboard_port, dashboard)
    if not state.names_token(os.environ):
        state.make_token()
    arguments = [
        "--head",
        f"--port={options.port}",
        f"--dashboard-host={options.dashboard_host}",
        f"--dashboard-port={options.dashboard_port}",
        "--include-dashboard=true",
        f"--ray-client-server-port={free_port(host)}",  # it has no way to be left out
    ]
    pid, files = _start(host, options, arguments)
    shown = _url_host(options.dashboard_host)
    return _remember(
        "head", f"{host}:{options.port}", host, f"http://{shown}:{options.dashboard_port}",
        interface, (pid, files),
    )  # fmt: skip


def join(address: str, options: Options) -> state.Node:
    """Start a node of a cluster that runs on another machine.

    Args:
        address: host and port that `up` printed.
        options: `port` and those of the dashboard are the head's and are not looked at.

    Raises:
        UserError: this machine has a node or no token, the address is on loopback or does not answer,
            or Ray does not start here, as with another version of Ray or Python.
    """
    _refuse_second()
    head, port = _parse(address)
    environment = dict(os.environ)
    state.use_token(environment)
    if not state.names_token(environment):
        raise UserError(
            f"join: this machine has no token of the cluster; copy the token file of the machine "
            f"that ran `prismrec cluster up` to {state.token_file()} (mode 600)"
        )
    seen = _seen_from(head, port)
    if is_loopback(head):
        raise UserError(
            f"join: {head}:{port} is on loopback, and such a cluster is of one machine; start it with "
            "`prismrec cluster up --host ADDRESS`, and join at that address"
        )
    host = options.host or seen
    interface = _interface(options, host)
    try:
        pid, files = _start(host, options, [f"--address={head}:{port}"])
    except UserError as error:
        if _NO_HEAD not in error.message:
            raise
        raise UserError(
            f"join: what answers at {head}:{port} is not the head of a cluster ({error.message}); is "
            "the head up, and does something else, such as a proxy, take its connections?"
        ) from None
    return _remember("worker", f"{head}:{port}", host, "", interface, (pid, files))


def down() -> state.Node | None:
    """End the node that `up` or `join` started on this machine; None where there was none.

    Processes that Ray started for it end with it, jobs and training workers among them. Of a node that
    has died, what it left is removed.
    """
    node = state.remembered_node()
    if node is not None:
        end_node(node)
    state.forget_node()
    return node


def end_node(node: state.Node) -> None:
    """End the processes of a node and remove Ray's files of it."""
    _end(node.process())
    shutil.rmtree(node.files, ignore_errors=True)


def _start(host: str, options: Options, arguments: Sequence[str]) -> tuple[int, str]:
    """Start `ray start --block` and wait until it says that the node is up."""
    files = tempfile.mkdtemp(prefix="prismrec-")
    log = Path(files) / "start.log"
    command = [
        sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
        f"--node-ip-address={host}", f"--temp-dir={files}/ray",
        f"--num-cpus={options.workers or os.cpu_count() or 1}",
        f"--dashboard-agent-listen-port={free_port(host)}", *arguments,
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=_environment(host, options.interface),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while _STARTED not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"Ray did not start on {host}: {_reason(log)}")
            time.sleep(0.1)
    except BaseException:
        with contextlib.suppress(psutil.NoSuchProcess):
            _end(psutil.Process(process.pid))
        shutil.rmtree(files, ignore_errors=True)
        raise
    return process.pid, files


def _environment(host: str, interface: str | None) -> dict[str, str]:
    """What the node and every process that Ray starts on it find in their environment."""
    environment = {**SETTINGS, **os.environ}
    state.use_token(environment)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    on_loopback(host, environment)
    if interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = environment["NCCL_SOCKET_IFNAME"] = interface
    return environment


def _remember(
    role: str, address: str, host: str, dashboard: str, interface: str, started: tuple[int, str]
) -> state.Node:
    pid, files = started
    created = psutil.Process(pid).create_time()
    node = state.Node(role, address, host, dashboard, interface, pid, created, files)
    state.write_node(node)
    return node


def _end(process: psutil.Process | None) -> None:
    """Ask a process and all below it to end, and kill those that do not."""
    if process is None:
        return
    pid = process.pid
    below = process.children(recursive=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    _, left = psutil.wait_procs([process], timeout=END_S)
    left += [each for each in {*below, *_of_session(pid)} if each.is_running()]
    for each in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, timeout=END_S)


def _of_session(session: int) -> list[psutil.Process]:
    """Processes of a session, whoever their parent is by now."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(each.pid) == session:
                found.append(each)
    return found


def _refuse_second() -> None:
    """Refuse a second node; of one that has died, what it left is removed."""
    node = state.remembered_node()
    if node is not None and node.process() is None:
        down()
    elif node is not None:
        raise UserError(
            f"this machine has a node of the cluster at {node.address} already; end it with "
            f"`prismrec cluster down`, or set {state.DIRECTORY} to another directory"
        )


def _interface(options: Options, host: str) -> str:
    """The interface the user wants, or the one that carries the address."""
    carrying = pick_interface(host)
    if options.interface is None:
        return carrying
    known = addresses()
    if options.interface not in known:
        raise UserError(
            f"--interface: '{options.interface}' is not up on this machine; use one of: "
            f"{', '.join(known)}"
        )
    return options.interface


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"join: '{address}' is no address of a cluster; give host and port as "
            "`prismrec cluster up` printed them, such as 10.0.0.1:6379"
        )
    try:
        return socket.gethostbyname(host), int(port)
    except OSError as error:
        raise UserError(f"join: no machine is called '{host}' here ({error.strerror})") from None


def _seen_from(head: str, port: int) -> str:
    """This machine's address on the way to the head.

    Raises:
        UserError: nothing answers there.
    """
    try:
        with socket.create_connection((head, port), timeout=REACH_S) as connection:
            return str(connection.getsockname()[0])
    except OSError as error:
        raise UserError(
            f"join: nothing answers at {head}:{port} ({error}); run `prismrec cluster up --host "
            "ADDRESS` there with an address that this machine reaches, and open its port"
        ) from None


def _url_host(host: str) -> str:
    """How the dashboard is called from this machine."""
    if ipaddress.ip_address(host).is_unspecified or is_loopback(host):
        return "127.0.0.1"
    return host


def _reason(log: Path) -> str:
    """The line that says why Ray did not start, or its last one."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "mismatch" in line]
    return (told or lines or ["it said nothing"])[-1][:300]
