"""The endpoints on a real socket, without Ray: uvicorn in a thread of this process."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from prismrec.cluster.network import free_port
from prismrec.serving.http.endpoint import build_endpoint
from prismrec.serving.http.metrics import ServerMetrics
from prismrec.serving.scorer import Outcome, Request, Scorer

TOKEN = "a-token-that-only-tests-know"
DEADLINE_S = 60


@dataclass(frozen=True)
class Answer:
    """What came back.

    Args:
        status: HTTP status.
        headers: by lower-case name.
        body: bytes.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Asks one server.

    Args:
        port: on loopback.
        token: what is sent with every request, None sends none.
    """

    port: int
    token: str | None = TOKEN

    def ask(
        self,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        sent = {"content-type": "application/json"} if body is not None else {}
        sent |= {"authorization": f"Bearer {self.token}"} if self.token else {}
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            chosen = method or ("GET" if body is None else "POST")
            connection.request(chosen, path, body, sent, encode_chunked=isinstance(body, Iterator))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def predict(self, document: Any, path: str = "/predict") -> Answer:
        """Ask for predictions."""
        return self.ask(path, json.dumps(document).encode())


@contextmanager
def served(scorer: Scorer) -> Iterator[Client]:
    """A server with the token, until the context ends."""
    metrics = ServerMetrics(lambda: scorer.model)

    async def score(request: Request) -> Outcome:
        metrics.scored(request.rows)
        return (await asyncio.to_thread(scorer.score, [request]))[0]

    digest = hashlib.sha256(TOKEN.encode()).digest()
    port = free_port("127.0.0.1")
    config = uvicorn.Config(
        build_endpoint(scorer, score, metrics, digest), port=port, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + DEADLINE_S
    while not server.started:
        assert thread.is_alive(), "the server ended"
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.01)
    try:
        yield Client(port)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
