"""The endpoints of a server, as an ASGI application.

| path | answers |
| --- | --- |
| `POST /predict`, `POST /invocations` | probabilities of each row, and the version that gave them |
| `GET /schema` | columns, tasks, limits and an example of a request |
| `GET /metrics` | counts and times in Prometheus' text format |
| `GET /health` | that the model is loaded; asks no token |
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismrec.serving.http.metrics import CONTENT_TYPE, ServerMetrics
from prismrec.serving.http.requests import Limits, RequestError, too_large
from prismrec.serving.http.token import is_authorized
from prismrec.serving.logged import input_example
from prismrec.serving.scorer import Outcome, Request, Scorer, ServedModel

_log = logging.getLogger(__name__)

Score = Callable[[Request], Awaitable[Outcome]]
"""Scores one request, usually together with others that wait."""

PATHS = ("/predict", "/invocations", "/schema", "/metrics", "/health")
_OPEN = "/health"
_INLINE_BYTES = 65_536
"""Bodies over this are read in a thread, so that others need not wait."""
_CODES = {400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 413: "TOO_LARGE"}


def build_endpoint(
    scorer: Scorer, score: Score, metrics: ServerMetrics, token_digest: bytes | None
) -> ASGIApp:
    """The application.

    Args:
        scorer: reads requests, and knows the model that serves.
        score: scores them.
        metrics: what is counted.
        token_digest: SHA-256 of the token that every path but `/health` asks for; None asks none.
    """
    endpoint = _Endpoint(scorer, score, metrics)
    routes = [
        Route("/predict", endpoint.predict, methods=["POST"]),
        Route("/invocations", endpoint.predict, methods=["POST"]),
        Route("/schema", endpoint.schema, methods=["GET"]),
        Route("/metrics", endpoint.metrics, methods=["GET"]),
        Route("/health", endpoint.health, methods=["GET"]),
    ]
    application = Starlette(
        routes=routes, exception_handlers={RequestError: _refused, HTTPException: _http_refused}
    )
    return _Gate(application, metrics, token_digest)


class _Gate:
    """Asks for the token before anything else, and counts what was answered."""

    def __init__(self, inner: ASGIApp, metrics: ServerMetrics, token_digest: bytes | None) -> None:
        self._inner, self._metrics, self._digest = inner, metrics, token_digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        # A path that is counted is one of ours: clients must not be able to make new series.
        path = scope["path"] if scope["path"] in PATHS else "other"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._is_open(scope):
                await self._inner(scope, receive, counted)
            else:
                await _unauthenticated()(scope, receive, counted)
        finally:
            self._metrics.answered(path, status, time.perf_counter() - start)

    def _is_open(self, scope: Scope) -> bool:
        if self._digest is None or scope["path"] == _OPEN:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and is_authorized(given[0], self._digest)


class _Endpoint:
    """What each path answers."""

    def __init__(self, scorer: Scorer, score: Score, metrics: ServerMetrics) -> None:
        self._scorer, self._score, self._metrics = scorer, score, metrics

    async def predict(self, http: HttpRequest) -> Response:
        """Probabilities of the rows of the body."""
        kind = http.headers.get("content-type", "application/json").partition(";")[0].strip()
        if kind.lower() != "application/json" or "content-encoding" in http.headers:
            raise RequestError(
                415, "send plain JSON: Content-Type application/json, no Content-Encoding"
            )
        try:
            body = await _body(http, self._scorer.limits)
        except ClientDisconnect:
            raise RequestError(400, "the connection ended before the body did") from None
        if len(body) > _INLINE_BYTES:
            request = await asyncio.to_thread(self._scorer.read, body)
        else:
            request = self._scorer.read(body)
        outcome = await self._score(request)
        if isinstance(outcome, RequestError):
            raise outcome
        if isinstance(outcome, Exception):
            return _failure(500, "the model failed on this request; the server's log says why")
        tasks, label = request.model.inference.tasks, request.model.label
        rows = [dict(zip(tasks, row, strict=True)) for row in outcome.tolist()]
        answer = {"predictions": rows, "model": _model(request.model)}
        return _json(answer, 200, {"x-prismrec-model": _header(label)})

    async def schema(self, http: HttpRequest) -> Response:
        """What a request must hold."""
        return _json(describe(self._scorer.model, self._scorer.limits))

    async def metrics(self, http: HttpRequest) -> Response:
        """What Prometheus reads."""
        return Response(
            self._metrics.text(), media_type=None, headers={"content-type": CONTENT_TYPE}
        )

    async def health(self, http: HttpRequest) -> Response:
        """That the model is loaded: the server listens no earlier."""
        return _json({"status": "ok"})


def describe(served: ServedModel, limits: Limits) -> dict[str, Any]:
    """The document of `/schema`."""
    model = served.inference
    example = input_example(model.manifest).to_dict(orient="split", index=False)
    columns = model.manifest.data_schema.columns
    return {
        "model": _model(served),
        "tasks": list(model.tasks),
        "columns": [
            {"name": name, **columns[name].model_dump(exclude_defaults=True)}
            for name in model.columns
        ],
        "limits": {"body_bytes": limits.body_bytes, "rows": limits.rows},
        "extra_columns": "ignored" if limits.extra_columns else "refused",
        "example": {"dataframe_split": example},
    }


def _model(served: ServedModel) -> dict[str, Any]:
    return {"name": served.name, "version": served.version}


async def _body(http: HttpRequest, limits: Limits) -> bytes:
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.body_bytes:
        raise too_large(limits)
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > limits.body_bytes:
            raise too_large(limits)
        parts.append(part)
    return b"".join(parts)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, "application/json")


def _failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    code = _CODES.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR")
    return _json({"error_code": code, "message": message}, status, headers)


def _unauthenticated() -> Response:
    message = "this server asks for a token; send it as `Authorization: Bearer TOKEN`"
    return _failure(401, message, {"www-authenticate": "Bearer"})


def _refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    # What is left of a body that was not read would be taken for the next request.
    headers = {"connection": "close"} if error.status == 413 else None
    return _failure(error.status, error.message, headers)


def _http_refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    paths = ", ".join(PATHS)
    message = f"{http.method} {http.url.path[:80]}: {error.detail}; there are {paths}"
    return _failure(error.status_code, message, dict(error.headers or {}))


def _header(text: str) -> str:
    return text.encode("ascii", "replace").decode()
