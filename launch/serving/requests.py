"""Reading of requests: bodies with limits on size and time, JSON, and multipart forms."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from launch.engine.memory import return_free_memory
from launch.serving.options import Options
from launch.serving.problems import Problem, invalid, overloaded

# Largest total size of the bodies in memory, as a multiple of the maximum size of one body.
_BODIES = 8
# Bodies up to this size are parsed on the thread of the event loop, and are read even if the limit
# on all bodies is reached.
_SMALL = 64 * 2**10
# Bodies above this size leave much freed memory, which is returned to the system.
_LARGE = 2**20

# Largest number of lists and objects in a body. Each takes many times the memory of its text, and
# all other threads wait while they are parsed.
_MOST_CONTAINERS = 500_000

# Errors of malformed forms go to the client; a line in the log for each would fill the disk.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

Result = TypeVar("Result")


class Bodies:
    """Reader of request bodies, which limits the size of each body and the total size in memory."""

    def __init__(self, options: Options):
        """Initializes the reader with the options of the server."""
        self._options, self._held = options, 0
        self._large = asyncio.Lock()

    async def read(self, request: Request) -> bytes:
        """Reads the body of a request.

        The body counts toward the limit on all bodies until `release` is called with it.

        Raises:
          Problem: the body is too large or arrives too slowly, or the limit on all bodies is
            reached.
        """
        most = self._options.max_body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        size = 0
        try:
            try:
                async with asyncio.timeout(self._options.client_timeout_s):
                    async for part in request.stream():
                        size += len(part)
                        self._held += len(part)
                        if size > most:
                            parts.clear()
                            raise _too_large(most)
                        if self._held > _BODIES * most and size > _SMALL:
                            raise overloaded("too many bodies are being read; try again later")
                        parts.append(part)
            except TimeoutError:
                seconds = f"{self._options.client_timeout_s:g} seconds"
                raise Problem(408, f"the body did not arrive within {seconds}") from None
            except ClientDisconnect:
                raise Problem(400, "the client closed the connection") from None
        except BaseException:
            self._held -= size
            raise
        return b"".join(parts)

    def release(self, body: bytes) -> None:
        """Stops counting a body that was read."""
        self._held -= len(body)

    async def parse(self, body: bytes, read: Callable[[Any], Result]) -> Result:
        """Parses a JSON body in UTF-8, calls `read` with the value, and returns the result.

        A value takes many times the memory of its text. Large bodies are therefore parsed one after
        another: the next one is parsed when `read` has returned.

        Raises:
          Problem: the body is not JSON, or `read` raises a `Problem`.
        """
        if len(body) <= _SMALL:
            return read(_json(body))
        async with self._large:
            return await asyncio.to_thread(_parsed, body, read)


def _parsed(body: bytes, read: Callable[[Any], Result]) -> Result:
    try:
        return read(_json(body))
    finally:
        if len(body) > _LARGE:
            return_free_memory()


def _too_large(most: int) -> Problem:
    return Problem(413, f"the body is too large, expected at most {most} bytes")


def content_type(request: Request) -> str:
    """Returns the media type of a body, without parameters."""
    given = request.headers.get("content-type", "")
    return given if given == "application/json" else given.partition(";")[0].strip().lower()


def check_content_type(request: Request, *known: str) -> None:
    """Checks the media type of a body, and that it is not compressed.

    Raises:
      Problem: the type is not among `known`, or the body is compressed.
    """
    if content_type(request) not in known:
        raise Problem(415, f"Content-Type: expected {' or '.join(known)}", "Content-Type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            415, "Content-Encoding: not supported; send the body uncompressed", "Content-Encoding"
        )


def _json(body: bytes) -> Any:
    if body.count(b"[") + body.count(b"{") > _MOST_CONTAINERS:
        raise Problem(413, f"the body has over {_MOST_CONTAINERS} lists and objects", "body")
    try:
        return json.loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Problem(400, "the body is not UTF-8", "body") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply", "body") from None
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}", "body") from None


async def read_form(request: Request, body: bytes) -> dict[str, Any]:
    """Returns the fields of a multipart form: "file" as bytes, "parameters" as text.

    Raises:
      Problem: the form is malformed, or has other fields.
    """

    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(
        request.headers, stream(), max_files=1, max_fields=1, max_part_size=_SMALL
    )
    # Files stay in memory: their size has been checked, and a container may have no disk.
    parser.spool_max_size = len(body) + 1
    found: dict[str, Any] = {}
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, f"the form is malformed: {error.message}", "body") from None
    except (ValueError, LookupError) as error:
        raise Problem(400, f"the form is malformed: {error}", "body") from None
    try:
        for name, value in form.multi_items():
            if name not in ("file", "parameters") or name in found:
                raise invalid(
                    f"{name[:40]!r}: expected one field 'file' and at most one field 'parameters'",
                    name[:40],
                )
            if (name == "parameters") != isinstance(value, str):
                raise invalid(f"{name}: expected a {'text' if name == 'parameters' else 'file'}",
                              name)  # fmt: skip
            found[name] = value if isinstance(value, str) else await value.read()
    finally:
        await form.close()
    if "file" not in found:
        raise invalid("file: is missing", "file")
    return found
