"""Requests of many clients over loopback, sent and received by a single thread.

The clients share the cores with the server, so each request costs as little as possible: requests
are encoded beforehand, and responses are parsed afterwards.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

# After this number of seconds without any response, the server counts as stuck.
_STUCK_S = 120


class Answer(NamedTuple):
    """Response to a request.

    Attributes:
      number: index of the request.
      seconds: time from the sending of the request to its complete response.
      status: HTTP status.
      body: content.
    """

    number: int
    seconds: float
    status: int
    body: bytes


def json_request(path: str, value: object) -> bytes:
    """Returns an HTTP request with a JSON body."""
    return _request(path, "application/json", json.dumps(value).encode())


def form_request(path: str, content: bytes) -> bytes:
    """Returns an HTTP request with a form that uploads a file."""
    boundary = "-" * 8 + "part"
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return _request(path, f"multipart/form-data; boundary={boundary}", body)


def _request(path: str, kind: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Client:
    """A keep-alive connection with at most one request at a time."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number, self.start = -1, 0.0
        self._parts, self._missing = [], -1

    def send(self, number: int, request: bytes) -> None:
        self.number, self._parts, self._missing = number, [], -1
        self.start = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> Answer | None:
        """Reads the available bytes; returns the response if it is complete, else None."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._parts.append(part)
        if self._missing >= 0:
            self._missing -= len(part)
        else:
            head, separator, body = b"".join(self._parts).partition(b"\r\n\r\n")
            if not separator:
                return None
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._missing = int(length) - len(body)
        if self._missing > 0:
            return None
        seconds = time.perf_counter() - self.start
        head, _, body = b"".join(self._parts).partition(b"\r\n\r\n")
        return Answer(self.number, seconds, int(head[9:12]), body)


def send(port: int, requests: Sequence[bytes], count: int, clients: int) -> list[Answer]:
    """Sends requests from several clients and returns the answers in the order of arrival.

    Args:
      port: port of the server.
      requests: the different requests, which are sent in turn: request number n is
        `requests[n % len(requests)]`.
      count: number of requests to send.
      clients: number of connections. Each has one request at a time.

    Raises:
      ConnectionError: the server closed a connection or does not answer.
    """
    answers: list[Answer] = []
    with selectors.DefaultSelector() as selector:
        for number in range(min(clients, count)):
            client = _Client(port)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(number, requests[number % len(requests)])
        sent = min(clients, count)
        while len(answers) < count:
            ready = selector.select(_STUCK_S)
            if not ready:
                raise ConnectionError(f"the server did not answer for {_STUCK_S} seconds")
            for key, _ in ready:
                client = key.data
                answer = client.receive()
                if answer is None:
                    continue
                answers.append(answer)
                if sent < count:
                    client.send(sent, requests[sent % len(requests)])
                    sent += 1
                else:
                    selector.unregister(client.socket)
                    client.socket.close()
    return answers
