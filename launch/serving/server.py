"""The HTTP server: listening socket, timeouts for slow clients, and shutdown at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from launch.serving.options import Options
from launch.serving.responses import as_json
from tasks.common.errors import UserError

# Maximum number of open connections. If another one is opened, the connection that has been idle
# for the longest time is closed.
CONNECTIONS = 1000
# Connections accepted per iteration of the event loop, and the length of the operating system's
# queue of connections that wait to be accepted.
_ACCEPTED, _BACKLOG = 64, 1024
# Maximum number of open files other than connections.
_FILES = 1000
# Seconds in addition to `Options.timeout_s` in which accepted requests finish after SIGTERM.
_GRACE_S = 5
_KEEP_ALIVE_S = 5
# Seconds that the server waits at shutdown for requests in transit.
_ON_THE_WAY_S = 0.2


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
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"--port={port}: cannot listen on {host} ({reason}); name another port"
        ) from None
    opened.setblocking(False)
    return opened


class Protocol(H11Protocol):
    """HTTP/1.1 with timeouts for clients that send headers or read responses too slowly."""

    # Set by `make_server`.
    client_timeout_s = 30.0

    def __init__(self, *args: Any, **keywords: Any):
        """Takes the arguments of `H11Protocol`."""
        super().__init__(*args, **keywords)
        self._headers_timer: asyncio.TimerHandle | None = None
        self._reading_timer: asyncio.TimerHandle | None = None
        self._idle_since = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timeout for the headers of the first request."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._make_room()
        self._watch_headers()

    def _make_room(self) -> None:
        """Closes the connection that has been idle for the longest time, if there are too many.

        Thus clients that open many connections do not keep out clients that send requests. If all
        other connections have requests, the new connection is closed.
        """
        opened = [one for one in self.connections if not one.transport.is_closing()]
        idle = [one for one in opened if isinstance(one, Protocol) and one._is_idle]
        if len(opened) > CONNECTIONS and idle:
            min(idle, key=lambda one: one._idle_since).transport.abort()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        """Records the time at which the connection becomes idle."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

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


class Server(uvicorn.Server):
    """A server that still answers all requests sent to it before it shuts down."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept connections, a few at a time, which bounds the open files."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(_BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the server, after it has answered all connections that the system accepted."""
        loop = asyncio.get_running_loop()
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        waiting = []
        # Closing the socket would reset the connections that wait to be accepted.
        for listening in sockets or ():
            with contextlib.suppress(OSError):
                while True:
                    waiting.append(listening.accept()[0])
        for server in self.servers:
            server.close()
        for opened in waiting:
            opened.setblocking(False)
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, opened)
        await asyncio.sleep(_ON_THE_WAY_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        config: Any = self.config
        return config.http_protocol_class(
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )


def make_server(app: ASGIApp, options: Options) -> Server:
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
        backlog=_ACCEPTED,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(options.timeout_s) + _GRACE_S,
    )
    return Server(config)


def _allow_files() -> None:
    """Increases the limit of open files if the maximum number of connections exceeds it."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + _FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(server: uvicorn.Server, opened: socket.socket) -> None:
    """Serves requests until SIGTERM or SIGINT, then finishes the accepted requests.

    Args:
      server: server returned by `make_server`.
      opened: listening socket.
    """
    _allow_files()

    # This handler applies before the server installs its own handlers, and after the server has
    # removed them again.
    def stop(*_: Any) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run(sockets=[opened])
