"""The queue of a served model: the inputs that are accepted and not answered yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from launch.serving.arrivals import call_threadsafe
from launch.serving.problems import Problem, invalid, overloaded

Result = TypeVar("Result")


class Queue:
    """Places for inputs; all methods but `submit` are called on the thread of the event loop.

    Attributes:
      size: number of places.
      taken: number of occupied places.
      submit: starts a function on another thread and returns its future.
    """

    def __init__(self, name: str, size: int, submit: Callable[[Callable[[], Any]], Future]):
        """Creates an empty queue; `name` is the name of the model."""
        self._name, self.size, self.taken, self.submit = name, size, 0, submit

    def expect_free(self) -> None:
        """Checks that a place is free.

        Raises:
          Problem: the queue is full.
        """
        if self.taken >= self.size:
            raise self.full()

    def expect_rows(self, rows: int, field: str) -> None:
        """Checks that an input needs no more rows than there are places.

        Raises:
          Problem: the input needs more rows.
        """
        if rows > self.size:
            raise invalid(
                f"{field}: is encoded as {rows} rows, expected at most {self.size}", field
            )

    def full(self) -> Problem:
        """Returns the `Problem` with which requests are rejected while the queue is full."""
        return overloaded(f"model {self._name} has a full queue; try again later")

    @contextmanager
    def accepted(self, inputs: int) -> Iterator[Places]:
        """Reserves places for inputs.

        After the context ends, the places are freed as soon as no thread works on the inputs.

        Raises:
          Problem: the queue is full.
        """
        places = Places(self)
        places.add(inputs)
        try:
            yield places
        finally:
            places.close()


class Places:
    """The places that a request occupies in a model's queue, at first one for each input.

    If an input is encoded as several rows, it occupies a place for each row.
    """

    def __init__(self, queue: Queue):
        """Initializes the object without occupying a place."""
        self._queue, self._taken, self._running, self._closed = queue, 0, 0, False

    def add(self, count: int, field: str = "inputs") -> None:
        """Reserves `count` more places.

        Args:
          count: number of places.
          field: name of the input in messages.

        Raises:
          Problem: the request needs more places than the queue has, or the queue is full.
        """
        queue = self._queue
        queue.expect_rows(self._taken + count, field)
        if queue.taken + count > queue.size:
            raise queue.full()
        queue.taken += count
        self._taken += count

    async def call(self, function: Callable[[], Result]) -> Result:
        """Calls a function on another thread; no place is freed before the function returns."""
        loop = asyncio.get_running_loop()
        future: Future[Result] = self._queue.submit(function)
        self._running += 1
        future.add_done_callback(lambda _: call_threadsafe(loop, self._done))
        try:
            return await asyncio.wrap_future(future)
        finally:
            # The traceback of an error refers to this frame, and would keep the input in memory.
            del future

    def _done(self) -> None:
        self._running -= 1
        self._free()

    def close(self) -> None:
        """Frees the places as soon as no function of `call` is running."""
        self._closed = True
        self._free()

    def _free(self) -> None:
        if self._closed and not self._running:
            self._queue.taken -= self._taken
            self._taken = 0
