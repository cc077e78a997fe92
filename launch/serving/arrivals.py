"""Delivery of results of other threads to an event loop."""

from __future__ import annotations

import asyncio
import collections
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


class Arrivals:
    """Futures that other threads complete and that an event loop waits for.

    The futures of a batch are set one right after another. The event loop is notified once for all
    of them, because each notification takes a system call.
    """

    def __init__(self):
        self._done: collections.deque[tuple[asyncio.Future, Future]] = collections.deque()
        self._appending = threading.Lock()

    async def wait(self, future: Future[Result]) -> Result:
        """Waits for a future and returns its result; cancels it if this call is canceled."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Result] = loop.create_future()

        def arrived(found: Future[Result]) -> None:
            # A lock is needed, because futures are set by the thread that runs batches, and
            # canceled by the thread of the event loop.
            with self._appending:
                self._done.append((waiter, found))
                # If the deque was not empty, an earlier notification is still on its way.
                is_first = len(self._done) == 1
            if is_first:
                call_threadsafe(loop, self._deliver)

        future.add_done_callback(arrived)
        try:
            return await waiter
        except asyncio.CancelledError:
            future.cancel()
            raise

    def _deliver(self) -> None:
        while self._done:
            waiter, found = self._done.popleft()
            if waiter.done():
                continue
            if found.cancelled():
                waiter.cancel()
            elif (error := found.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(found.result())


def call_threadsafe(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Calls a function on the thread of an event loop, unless the loop is closed."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        # The loop is closed: the server has stopped.
        logging.getLogger(__name__).debug("an input was encoded after the end of the server")
