"""A tracking server of MLflow's that can be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from prismrec.cluster.network import free_port

DEADLINE_S = 180.0
"""Seconds in which the server must answer."""


class MlflowServer:
    """A real `mlflow server` on loopback, in processes of its own.

    Never in the process of the test: its handlers set the global addresses of MLflow, which every
    later test and every process that it starts would take for its own.

    Args:
        directory: of its SQLite file `server.db` (made if need be), its artifacts and its log.
    """

    def __init__(self, directory: Path) -> None:
        self.port = free_port("127.0.0.1")
        self.uri = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        where = self._directory
        with (where / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--workers", "1",
                 "--host", "127.0.0.1", "--port", str(self.port),
                 "--backend-store-uri", f"sqlite:///{where}/server.db",
                 "--artifacts-destination", str(where / "artifacts")],
                cwd=where, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            )  # fmt: skip
        deadline = time.monotonic() + DEADLINE_S
        while not self.answers():
            said = (where / "server.log").read_text()
            assert self._process.poll() is None, f"the server ended:\n{said}"
            assert time.monotonic() < deadline, f"no answer within {DEADLINE_S} s:\n{said}"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it says that it is well."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it with everything it started; nothing if it does not run."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
