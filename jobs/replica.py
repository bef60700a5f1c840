"""One replica of a server: the model, the requests that wait for it, and the alias it follows."""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import Receive, Scope, Send

from prismrec.checkpoint.directory import find_checkpoint
from prismrec.jobs.publish import bundle_of_checkpoint
from prismrec.serving.http.endpoint import build_endpoint
from prismrec.serving.http.metrics import ServerMetrics
from prismrec.serving.http.requests import Limits
from prismrec.serving.inference import InferenceModel
from prismrec.serving.scorer import Outcome, Request, Scorer, ServedModel
from prismrec.tracking.registry import Registry, ResolvedModel
from prismrec.tracking.watch import AliasWatch

MOST_TOGETHER = 64
"""Most requests that are scored together."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What a replica serves.

    Args:
        model: a name of a model; where it has an alias, that is followed.
        uri: tracking URI of the registry.
        token_digest: SHA-256 of the token that clients send, None where none is asked for.
        limits: what a request may be.
        watch_s: seconds between two looks at the alias.
    """

    model: str
    uri: str
    token_digest: bytes | None
    limits: Limits = field(default_factory=Limits)
    watch_s: float = 2.0


def load_served(found: ResolvedModel) -> ServedModel:
    """A model in memory, by its inference copy or by one made of its checkpoint.

    Raises:
        UserError: the directory holds neither, or is damaged.
    """
    info = found.version
    name, version = (str(found.path), None) if info is None else (info.name, info.version)
    if found.is_bundle:
        return ServedModel(InferenceModel.load(found.path), name, version)
    with tempfile.TemporaryDirectory() as scratch:
        copy = bundle_of_checkpoint(find_checkpoint(found.path), Path(scratch) / "model")
        return ServedModel(InferenceModel.load(copy), name, version)


class _Door:
    """Hands what Ray Serve receives to the endpoint of the replica in this process."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        replica: Any = serve.get_replica_context().servable_object
        await replica.endpoint(scope, receive, send)


@serve.deployment
@serve.ingress(_Door())
class Replica:
    """Serves one model, in one process of Ray Serve.

    Args:
        serving: what it serves.
    """

    def __init__(self, serving: Serving) -> None:
        registry = Registry(serving.uri)
        with registry.resolve(serving.model) as found:
            served = load_served(found)
        self._metrics = ServerMetrics(lambda: self._scorer.model)
        self._scorer = Scorer(served, serving.limits, self._metrics.scored)
        self._threads = ThreadPoolExecutor(1, "score")
        self.endpoint = build_endpoint(
            self._scorer, self._score, self._metrics, serving.token_digest
        )
        if found.version is not None and "@" in serving.model:
            watch = AliasWatch(
                registry,
                serving.model,
                found.version.version,
                self._take_over,
                self._metrics.failed_checks.inc,
            )
            watch.start(serving.watch_s)

    def _take_over(self, found: ResolvedModel) -> None:
        self._scorer.replace(load_served(found))
        self._metrics.rollovers.inc()

    @serve.batch(max_batch_size=MOST_TOGETHER, batch_wait_timeout_s=0.0)
    async def _score(self, requests: list[Request]) -> list[Outcome]:
        """Score whatever has come in while the requests before were scored."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._scorer.score, requests)
