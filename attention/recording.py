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
from flax import nnx

Array = jax.Array
# Modules of the running copy store their path. Copies that the model makes of them (nnx.split and
# merge, nnx.scan over layers) keep the path, but not the id.
TAG = "_path_in_capture"


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


def active() -> bool:
    """Returns True if weights are recorded."""
    return _RECORDER.get() is not None


def rename(module: nnx.Module, name: str) -> None:
    """Replaces the last component of a module's path in a running copy, also for its submodules."""
    path = getattr(module, TAG, None)
    if path is None:
        return
    new = "/".join([*path.split("/")[:-1], name])
    for part in [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Module)]:
        setattr(part, TAG, new + getattr(part, TAG)[len(path) :])


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
