"""A model under load: `prismrec serve` beside `mlflow models serve`.

    python -m benchmarks.serve_load models:/demo@champion --data out/demo/data \
        --out benchmarks/results/serving

Both servers serve the same model from the same registry on loopback and live side by side. Clients,
each with a connection that is kept, send the same body again and again, first to one server for a
few seconds, then to the other, so that a change of the machine's speed meets both. What a server
does while nobody asks is measured too, since it slows the other one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import machine, sentence
from benchmarks.result import write
from prismrec.cluster import state
from prismrec.data.source import open_data
from prismrec.jobs.evaluate import split_tables
from prismrec.serving.inference import InferenceModel
from prismrec.tracking.registry import Registry

BATCHES = (1, 64)
START_S = 300


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        name: how the page calls it.
        process: its first process.
        port: on loopback.
        path: where predictions are asked for.
        headers: sent with every request.
    """

    name: str
    process: psutil.Process
    port: int
    path: str
    headers: dict[str, str]

    def cpu_seconds(self) -> float:
        """Processor time of all its processes so far."""
        total = 0.0
        for each in [self.process, *self.process.children(recursive=True)]:
            try:
                times = each.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total


@dataclass
class Measured:
    """What one server did in all turns of one batch size.

    Args:
        seconds: from a request's first byte to its answer's last, of every request.
        rates: requests per second of each turn.
        failed: answers other than 200, and connections that broke.
    """

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    failed: int = 0

    def facts(self) -> dict[str, Any]:
        """The numbers of the page."""
        half, last = np.percentile(self.seconds, [50, 99]) * 1e3
        return {
            "requests": len(self.seconds),
            "errors": self.failed,
            "requests_per_second": statistics.median(self.rates),
            "slowest_turn": min(self.rates),
            "fastest_turn": max(self.rates),
            "p50_ms": float(half),
            "p99_ms": float(last),
        }


def ask(server: Server, body: bytes, clients: int, seconds: float, into: Measured) -> None:
    """One turn: every client asks until the time is over."""
    until = time.perf_counter() + seconds
    taken: list[list[float]] = [[] for _ in range(clients)]
    failed = [0] * clients

    def client(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while time.perf_counter() < until:
            began = time.perf_counter()
            try:
                connection.request("POST", server.path, body, server.headers)
                answer = connection.getresponse()
                answer.read()
                failed[index] += answer.status != 200
            except (OSError, http.client.HTTPException):
                failed[index] += 1
                connection.close()
            taken[index].append(time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    into.seconds += [second for each in taken for second in each]
    into.rates.append(sum(map(len, taken)) / seconds)
    into.failed += sum(failed)


def bodies(model: InferenceModel, data: str) -> dict[int, bytes]:
    """A request of each batch size, of the first rows of a data set."""
    names = list(model.columns)
    tables = split_tables(model.recipe, open_data(data), "all", names)
    rows = next(table for table in tables if table.num_rows >= max(BATCHES)).to_pydict()
    found = {}
    for batch in BATCHES:
        lines = [list(row) for row in zip(*(rows[name][:batch] for name in names), strict=True)]
        found[batch] = json.dumps({"dataframe_split": {"columns": names, "data": lines}}).encode()
    return found


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: list[str], log: Path, is_up: Callable[[], bool]) -> Iterator[psutil.Process]:
    """A server that answers; ended with the context."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        state.DIRECTORY: str(log.parent),
    }
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_S
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not come up:\n{log.read_text()}")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(120)
        _, alive = psutil.wait_procs(below, 60)
        for each in alive:
            each.kill()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def servers(model: str, uri: str, scratch: Path) -> Iterator[list[Server]]:
    """Both servers of one model."""
    programs = Path(sys.executable).parent
    ours, theirs = free_port(), free_port()
    os.environ["MLFLOW_TRACKING_URI"] = uri
    prismrec = [str(programs / "prismrec"), "serve", model, "--tracking-uri", uri]
    mlflow = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model]
    mlflow += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(theirs)]
    kind = {"Content-Type": "application/json"}
    with ExitStack() as stack:
        first = stack.enter_context(
            started(
                [*prismrec, "--port", str(ours)],
                scratch / "prismrec.log",
                lambda: "Ctrl-C ends it" in (scratch / "prismrec.log").read_text(),
            )
        )
        token = (scratch / "serve.token").read_text().strip()
        headers = {**kind, "Authorization": f"Bearer {token}"}
        second = stack.enter_context(
            started(mlflow, scratch / "mlflow.log", lambda: _answers(theirs, "/ping"))
        )
        yield [
            Server("prismrec serve", first, ours, "/predict", headers),
            Server("mlflow models serve", second, theirs, "/invocations", kind),
        ]


def idle_share(server: Server, seconds: float = 5.0) -> float:
    """Cores that a server uses while nobody asks it."""
    before = server.cpu_seconds()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both servers at every batch size."""
    registry = Registry(options.tracking_uri)
    with registry.resolve(options.model) as found:
        model = InferenceModel.load(found.path)
    sent = bodies(model, options.data)
    turns = max(round(options.seconds / options.turn), 1)
    document: dict[str, Any] = {
        "machine": machine(),
        "clients": options.clients,
        "turn_seconds": options.turn,
        "turns": turns,
        "table_type": model.table_type,
        "batches": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        with servers(options.model, registry.uri, Path(scratch)) as both:
            document["idle_cores"] = {each.name: idle_share(each) for each in both}
            for batch, body in sent.items():
                results = {each.name: Measured() for each in both}
                for each in both:
                    ask(each, body, options.clients, 2, Measured())
                for turn in range(turns):
                    for each in both if turn % 2 == 0 else both[::-1]:
                        ask(each, body, options.clients, options.turn, results[each.name])
                pairs = zip(*(results[each.name].rates for each in both), strict=True)
                ratios = [ours / theirs for ours, theirs in pairs]
                document["batches"][batch] = {
                    "body_bytes": len(body),
                    "ratio": {
                        "median": statistics.median(ratios),
                        "lowest": min(ratios),
                        "highest": max(ratios),
                    },
                    "servers": {name: each.facts() for name, each in results.items()},
                }
    document["machine"]["load_after"] = os.getloadavg()[0]
    return document


def page(document: dict[str, Any], command: str) -> str:
    """The document as a page."""
    facts = document["machine"]
    seconds = document["turns"] * document["turn_seconds"]
    lines = [
        "# A model behind HTTP, under load",
        "",
        f"`{command}`, {sentence(facts)}. Load of the machine {facts['load_before']:.1f} before and "
        f"{facts['load_after']:.1f} after: other work ran on it, so compare within this page only.",
        "",
        f"{document['clients']} clients on loopback, {seconds:g} s for each server and batch size in "
        f"turns of {document['turn_seconds']:g} s, the servers one after the other in each. "
        "Requests/s is the median of the turns, with the slowest and fastest; p50 and p99 are over "
        "all requests. "
        f"Tables are {document['table_type']}; every process has one thread for the model.",
        "",
        "| rows of a request | server | requests | errors | requests/s | p50, ms | p99, ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for batch, measured in document["batches"].items():
        lines += [
            f"| {batch} | `{name}` | {each['requests']:,} | {each['errors']} | "
            f"{each['requests_per_second']:.0f} ({each['slowest_turn']:.0f}-{each['fastest_turn']:.0f}) | "
            f"{each['p50_ms']:.1f} | {each['p99_ms']:.1f} |"
            for name, each in measured["servers"].items()
        ]
    lines.append("")
    for batch, measured in document["batches"].items():
        ratio = measured["ratio"]
        lines.append(
            f"At {batch} rows (a body of {measured['body_bytes']:,} bytes), `prismrec serve` answers "
            f"{ratio['median']:.2f} times as many requests, turn by turn {ratio['lowest']:.2f} to "
            f"{ratio['highest']:.2f}."
        )
    idle = ", ".join(f"`{name}` {cores:.2f}" for name, cores in document["idle_cores"].items())
    lines += ["", f"Cores used while nobody asks: {idle}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the page and its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="a registered model, such as models:/demo@champion")
    parser.add_argument("--data", required=True, help="a data set with the model's columns")
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60, help="of each server and batch size")
    parser.add_argument("--turn", type=float, default=5, help="seconds of a turn")
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.md are written")
    options = parser.parse_args()
    document = measure(options)
    text = page(document, "python -m benchmarks.serve_load " + shlex.join(sys.argv[1:]))
    sys.stdout.write(text)
    write(options.out, document, text)


if __name__ == "__main__":
    main()
