"""Two hosts on one machine: network namespaces joined by a bridge, each with an address of its own.

What runs on a host sees the network of that host only. Files are shared, as on machines with a
shared file system. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """One of the hosts.

    Args:
        name: of its network namespace.
        address: its IP address on the bridge.
        state: its own state directory, which `PRISMREC_STATE_DIR` names there.
    """

    name: str
    address: str
    state: Path

    def command(self, *words: str) -> list[str]:
        """The command line that runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a shell on this host would have, with one thread for every process."""
        own = {"PRISMREC_STATE_DIR": str(self.state), "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
        return os.environ | own | dict(more or {})

    def run(self, *words: str, timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def pids(self) -> list[int]:
        """Every process that runs on this host."""
        done = _ip("netns", "pids", self.name)
        return [int(word) for word in done.split()]

    def kill(self) -> None:
        """SIGKILL every process at once, as when the machine loses its power."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def why_impossible() -> str:
    """Why no hosts can be made here, or an empty text."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    probe = f"prt{os.getpid()}"
    try:
        _ip("netns", "add", probe)
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made: {error.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[tuple[Host, Host]]:
    """Make two hosts; everything on them is killed and they are removed at the end.

    Args:
        directory: where their state directories go.
    """
    number = os.getpid() % 60_000
    subnet, bridge = f"10.{100 + number // 250 % 100}.{number % 250}", f"prb{number}"
    hosts = [Host(f"prh{number}-{n}", f"{subnet}.{n}", directory / f"state{n}") for n in (2, 3)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for n, host in enumerate(hosts):
            outer = f"prv{number}-{n}"
            _ip("netns", "add", host.name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "net0", "netns", host.name)
            _ip("link", "set", outer, "master", bridge, "up")
            inside = ("-n", host.name)
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "net0")
            _ip(*inside, "link", "set", "net0", "up")
            _ip(*inside, "link", "set", "lo", "up")
            host.state.mkdir(parents=True, mode=0o700)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            with contextlib.suppress(subprocess.CalledProcessError):
                host.kill()
                _ip("netns", "del", host.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", bridge)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout
