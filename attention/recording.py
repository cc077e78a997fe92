"""Where mechanisms hand out their weights to whoever looks; see `attention.inspect.capture`.

A mechanism calls `record(compute)` where it attends. Unless somebody captures, that does nothing
and costs nothing: `compute` is not even called.
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
    """Weights that are computed when called.

    Attributes:
      compute: gives all of them.
      of_rows: indices of queries, int [R] -> the same as [B, N, R, S]; None where there is nothing
        cheaper than to compute all.
    """

    compute: Callable[[], Array]
    of_rows: Callable[[Array], Array] | None = None

    def __call__(self) -> Array:
        return self.compute()


Take = Callable[[Weights], None]
# Of the context: what another thread traces meanwhile stays as it is.
_RECORDER: ContextVar[Take | None] = ContextVar("recorder", default=None)


def record(compute: Callable[[], Array], of_rows: Callable[[Array], Array] | None = None) -> None:
    """Hands a mechanism's weights to the innermost recorder, if there is one.

    Args:
      compute: gives the weights, before dropout: [B, N, T, S] of a sequence mixer, [B, heads, T] of
        a pool, [B, S] or [B, N, S] of an alignment's step.
      of_rows: see `Weights`.
    """
    take = _RECORDER.get()
    if take is not None:
        with suppressed():
            take(Weights(compute, of_rows))


@contextlib.contextmanager
def recorder(take: Take | None) -> Iterator[None]:
    """While it lasts, `take` gets all that is recorded."""
    token = _RECORDER.set(take)
    try:
        yield
    finally:
        _RECORDER.reset(token)


def suppressed() -> contextlib.AbstractContextManager[None]:
    """For a mechanism made of others that records its own weights instead of theirs."""
    return recorder(None)
