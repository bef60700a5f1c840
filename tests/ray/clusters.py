"""Clusters of this machine for tests: the program with a state directory of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismrec.cluster.network import free_port
from tests.ray import commands

DEADLINE_S = 400
"""Seconds a command may take; some of them train to the end."""


@dataclass(frozen=True)
class Machine:
    """A user's machine: a state directory, and what else is in the environment.

    Args:
        state: the state directory; its parent is the working directory.
        environment: more variables.
    """

    state: Path
    environment: dict[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """The whole environment."""
        own = {"PRISMREC_STATE_DIR": str(self.state)}
        return commands.environment() | own | self.environment

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `prismrec` to its end."""
        return subprocess.run(
            [commands.PROGRAM, *arguments],
            env=self.variables(),
            cwd=self.state.parent,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `prismrec`."""
        return subprocess.Popen(
            [commands.PROGRAM, *arguments],
            env=self.variables(),
            cwd=self.state.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def node(self) -> dict[str, Any]:
        """What the state directory says of the node."""
        return dict(json.loads((self.state / "node.json").read_text()))

    def token(self) -> str:
        """The cluster's token."""
        return (self.state / "auth_token").read_text()


@contextlib.contextmanager
def cluster(machine: Machine, workers: int, host: str | None = None) -> Iterator[Machine]:
    """A node while the context lasts, on loopback if no address is given."""
    where = ["--port", str(free_port("127.0.0.1")), "--dashboard-port", str(free_port("127.0.0.1"))]
    where += ["--host", host] if host else []
    done = machine.run("cluster", "up", "--workers", str(workers), *where, "--json")
    try:
        assert done.returncode == 0, done.stderr
        yield machine
    finally:
        machine.run("cluster", "down")
