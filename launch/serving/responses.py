"""JSON responses, error responses, and middleware for authentication, headers and metrics."""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.serving.metrics import Metrics
from launch.serving.problems import Problem

# Limits on the bytes and seconds for reading the rest of a body that is ignored.
_IGNORED_BYTES = 64 * 2**20
_IGNORED_S = 5.0
# Headers that are added to every response.
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
# Paths that need no token.
PUBLIC = ("/", "/v2/health/live", "/v2/health/ready")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_json(value: Any) -> bytes:
    """Serializes a value as JSON in UTF-8; numbers that are not finite become null."""
    try:
        text = _ENCODER.encode(value)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    # Halves of surrogate pairs, which UTF-8 lacks, become escapes of JSON.
    return text.encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JSON(Response):
    """A response whose content is a JSON value."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the content as JSON in UTF-8."""
        return as_json(content)


def of_problem(problem: Problem) -> JSON:
    """Returns the error response for a `Problem`."""
    return JSON(problem.body, problem.status, problem.headers)


def on_problem(request: Request, error: Exception) -> Response:
    """Handles a `Problem` raised by an endpoint."""
    assert isinstance(error, Problem)
    return of_problem(error)


def on_http_error(request: Request, error: Exception) -> Response:
    """Handles Starlette's errors for unknown paths and unsupported methods."""
    assert isinstance(error, HTTPException)
    text = {
        404: "no such path; see /openapi.json",
        405: f"{request.method[:20]} is not supported here; see the header Allow",
    }
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        headers["Allow"] = ", ".join(sorted(allowed.split(", ")))
    detail = text.get(error.status_code, error.detail)
    return of_problem(Problem(error.status_code, detail, None, headers))


class _Rest:
    """Unread part of a request body, which is read and ignored before an error response is sent.

    Otherwise a client that is still sending when the connection closes would not see the response.
    A client that expects "100 Continue" has not begun to send, so nothing needs to be read.
    """

    def __init__(self, scope: Scope, receive: Receive):
        self._scope, self._receive = scope, receive
        self._started = self._ended = False

    async def receive(self) -> Message:
        """Receives the next message of the request, for the application."""
        self._started = True
        message = await self._receive()
        self._ended = self._ended or not message.get("more_body", False)
        return message

    async def ignored(self, status: int) -> bool:
        """Reads and ignores the rest, within limits; returns whether the body has ended."""
        if not self._started:
            headers = Headers(scope=self._scope)
            self._ended = headers.get("content-length", "0") == "0" and (
                "transfer-encoding" not in headers
            )
            if headers.get("expect", "").lower() == "100-continue":
                return self._ended
        if self._ended or status == 408:
            return self._ended
        size = 0
        try:
            async with asyncio.timeout(_IGNORED_S):
                while not self._ended and size < _IGNORED_BYTES:
                    size += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return False
        return self._ended


class Common:
    """Middleware that checks the token, and adds headers and metrics to every response."""

    def __init__(
        self, app: ASGIApp, *, token: str, metrics: Metrics, direct: Mapping[str, ASGIApp]
    ):
        """Initializes the middleware.

        Args:
          app: application.
          token: token that requests must have; "" if no token is needed.
          metrics: metrics of the server.
          direct: applications by path, which are called for POST requests instead of `app`. For a
            short request, routing and its error handling would take a fifth of the time.
        """
        self._app, self._metrics, self._direct = app, metrics, direct
        self._expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; errors become JSON responses."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started, rest = False, _Rest(scope, receive)

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
                if status >= 400 and not await rest.ignored(status):
                    MutableHeaders(scope=message)["Connection"] = "close"
                self._counter(scope.get("route_template", "other"), status).inc()
            await send(message)

        try:
            if not self._allowed(scope):
                raise Problem(
                    401,
                    "Authorization: expected 'Bearer TOKEN' with the token of the server",
                    "Authorization",
                    {"WWW-Authenticate": "Bearer"},
                )
            direct = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            await (self._app if direct is None else direct)(scope, rest.receive, counted)
        except Exception as error:
            if started:
                raise
            if isinstance(error, Problem):
                answer = of_problem(error)
            else:
                # A bug, whose traceback is logged.
                logging.getLogger(__name__).error("a request failed", exc_info=error)
                answer = of_problem(Problem(500, "the server failed; its log has the reason"))
            await answer(scope, receive, counted)

    @functools.cache  # noqa: B019 - a server has one middleware, and few routes and statuses
    def _counter(self, route: str, status: int) -> Counter:
        return self._metrics.responses.labels(route, str(status))

    def _allowed(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in PUBLIC:
            return True
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        scheme, _, token = given.partition(b" ")
        given = scheme.title() + b" " + token.strip()
        return hmac.compare_digest(given, self._expected)
