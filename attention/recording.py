"""Hooks through which mechanisms expose their attention weights to `attention.inspect.capture`.

A mechanism calls `record(compute)` where it computes attention. `compute` is called only if a
recorder is active.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Weights:
    """Attention weights that are computed when called.

    Attributes:
      compute: function that returns all weights.
      of_rows: function from query indices, int [R], to weights [B, N, R, S]; None if this is not
        cheaper than computing all weights.
    """

    compute: Callable[[], Array]
    of_rows: Callable[[Array], Array] | None = None

    def __call__(self) -> Array:
        return self.compute()


Take = Callable[[Weights], None]
# This is a context variable, so that traces of other threads are not recorded.
_RECORDER: ContextVar[Take | None] = ContextVar("recorder", default=None)


def record(compute: Callable[[], Array], of_rows: Callable[[Array], Array] | None = None) -> None:
    """Passes a mechanism's weights to the innermost recorder, if there is one.

    Args:
      compute: returns the weights before dropout: [B, N, T, S] of a sequence mixer, [B, heads, T]
        of a pool, [B, S] or [B, N, S] of a step of an alignment.
      of_rows: function that computes the given rows only, see `Weights`.
    """
    take = _RECORDER.get()
    if take is not None:
        with suppressed():
            take(Weights(compute, of_rows))


@contextlib.contextmanager
def recorder(take: Take | None) -> Iterator[None]:
    """Passes everything recorded within the context to `take`."""
    token = _RECORDER.set(take)
    try:
        yield
    finally:
        _RECORDER.reset(token)


def suppressed() -> contextlib.AbstractContextManager[None]:
    """Disables recording inside mechanisms that record their own weights."""
    return recorder(None)
