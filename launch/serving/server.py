"""The HTTP server: listening socket, timeouts for slow clients, and shutdown at SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from launch.serving.options import Options
from launch.serving.responses import as_json
from tasks.common.errors import UserError

# Maximum number of open connections; further ones are closed at once.
CONNECTIONS = 1000
# Seconds in addition to `Options.timeout_s` in which accepted requests finish after SIGTERM.
_GRACE_S = 5
_KEEP_ALIVE_S = 5


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on an address.

    Raises:
      UserError: the address is in use, or does not belong to this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host"
        raise UserError(f"--host={host}: {reason}") from None
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(1024)
    except OSError as error:
        opened.close()
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"--port={port}: cannot listen on {host} ({reason}); name another one"
        ) from None
    opened.setblocking(False)
    return opened


class Protocol(H11Protocol):
    """HTTP/1.1 with timeouts for clients that send headers or read responses too slowly."""

    # Set by `make_server`.
    client_timeout_s = 30.0

    def __init__(self, *args: Any, **keywords: Any):
        """Args: as for `H11Protocol`."""
        super().__init__(*args, **keywords)
        self._headers_timer: asyncio.TimerHandle | None = None
        self._reading_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timeout for the headers of the first request."""
        if len(self.connections) >= CONNECTIONS:
            transport.abort()
        super().connection_made(transport)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the timeouts of the connection."""
        super().connection_lost(exc)
        for timer in (self._headers_timer, self._reading_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Processes received bytes, and starts or cancels the timeout for headers."""
        super().data_received(data)
        self._watch_headers()

    def _watch_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            if self._headers_timer is not None:
                self._headers_timer.cancel()
                self._headers_timer = None
        elif self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self.client_timeout_s, self._no_headers)

    def _no_headers(self) -> None:
        self._headers_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()

    def pause_writing(self) -> None:
        """Starts the timeout for a client that does not read the response."""
        super().pause_writing()
        self._reading_timer = self.loop.call_later(self.client_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancels the timeout of `pause_writing`."""
        super().resume_writing()
        if self._reading_timer is not None:
            self._reading_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Sends a JSON error in response to bytes that are not HTTP."""
        body = as_json({"error": msg.rstrip(".").lower(), "field": None})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def make_server(app: ASGIApp, options: Options) -> uvicorn.Server:
    """Returns a server for an application, without starting it.

    Args:
      app: the application.
      options: options of the server.
    """
    protocol = type("Protocol", (Protocol,), {"client_timeout_s": options.client_timeout_s})
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="auto",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(options.timeout_s) + _GRACE_S,
    )
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, opened: socket.socket) -> None:
    """Serves requests until SIGTERM or SIGINT, then finishes the accepted requests.

    Args:
      server: server returned by `make_server`.
      opened: listening socket.
    """
    # The server raises signals again at its end, for handlers that were there before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[opened])
