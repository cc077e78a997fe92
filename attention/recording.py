"""Where mechanisms hand out their weights to whoever looks; see `attention.inspect.capture`.

A mechanism calls `record(compute)` where it attends. Unless somebody captures, that does nothing
and costs nothing: `compute` is not even called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

Array = jax.Array
# Innermost last; None where recording is muted.
_RECORDERS: list[Callable[[Callable[[], Array]], None] | None] = []


def record(compute: Callable[[], Array]) -> None:
    """Hands a mechanism's weights to the innermost recorder, if there is one.

    Args:
      compute: gives the weights, before dropout: [B, N, T, S] of a sequence mixer, [B, heads, T] of
        a pool, [B, S] of an alignment's step.
    """
    take = _RECORDERS[-1] if _RECORDERS else None
    if take is not None:
        with muted():
            take(compute)


@contextlib.contextmanager
def recorder(take: Callable[[Callable[[], Array]], None]) -> Iterator[None]:
    """While it lasts, `take` gets every `compute` that is recorded."""
    _RECORDERS.append(take)
    try:
        yield
    finally:
        _RECORDERS.pop()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """For a mechanism made of others that records its own weights instead of theirs."""
    _RECORDERS.append(None)
    try:
        yield
    finally:
        _RECORDERS.pop()
