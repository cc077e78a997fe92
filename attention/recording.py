"""Hooks through which mechanisms expose their attention weights to `attention.inspect.capture`.

A mechanism calls `heads = record_result(heads, compute, mix=...)` where it computes attention, or
`record(compute)` if its result is not a linear function of the weights. The functions `compute` and
`mix` are called only if a recorder is active.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
from flax import nnx

Array = jax.Array
Map = Callable[[Array], Array]
# Attribute in which the modules of the model's copy store their path, while `inspect.capture` runs
# the copy. Copies that the model makes of its modules (nnx.split and merge, nnx.scan over layers)
# keep this attribute, but have other ids.
TAG = "_path_in_capture"


@dataclasses.dataclass(frozen=True)
class Output:
    """Output projection of an attention module: a linear map of the values, and a bias.

    Attributes:
      project: linear function from the values of all heads, [B, S, N, V], to their contributions
        to the result of the module, [B, S, N, D].
      bias: [D], added to the sum of the contributions; None for 0.
    """

    project: Map
    bias: Array | None


@dataclasses.dataclass(frozen=True)
class Residual:
    """Residual connection around an attention module: norm(x + result), or x + result.

    Attributes:
      x: the array to which the result is added, [B, T, D].
      norm: the norm after the sum; None if there is none.
      linear: function of the sum z and of a summand u, both [..., D]. It applies the norm to u,
        without the bias and with the statistics of z.
    """

    x: Array
    norm: Map | None = None
    linear: Callable[[Array, Array], Array] | None = None


@dataclasses.dataclass(frozen=True)
class Weights:
    """Attention weights, computed when the object is called.

    Attributes:
      compute: function that returns all weights.
      of_rows: function of query indices, int [R], that returns their weights [B, N, R, S]; None if
        this is not cheaper than computing all weights.
      result: result that the mechanism computes with the weights; None if they are recorded by
        `record`.
      mix: affine function from the weights to the result; None if there is none, or under dropout.
      values: values [B, S, K, V] that the weights mix, for K heads that divide N; None if there are
        none.
      output, residual: projection and residual connection after the attention; None if unknown.
    """

    compute: Callable[[], Array]
    of_rows: Callable[[Array], Array] | None = None
    result: Array | None = None
    mix: Callable[[Array], Array] | None = None
    values: Array | None = None
    output: Output | None = None
    residual: Residual | None = None

    def __call__(self) -> Array:
        return self.compute()


Take = Callable[[Weights], Array | None]
# This is a context variable, so that traces of other threads are not recorded.
_RECORDER: ContextVar[Take | None] = ContextVar("recorder", default=None)
_OUTPUT: ContextVar[Output | None] = ContextVar("output", default=None)
_RESIDUAL: ContextVar[Residual | None] = ContextVar("residual", default=None)


def record(compute: Callable[[], Array], of_rows: Callable[[Array], Array] | None = None) -> None:
    """Passes a mechanism's weights to the innermost recorder, if there is one.

    Args:
      compute: function that returns the weights before dropout: [B, N, T, S] for a sequence mixer,
        [B, heads, T] for a pool, [B, S] or [B, N, S] for a step of an alignment.
      of_rows: function that computes the given rows only, see `Weights`.
    """
    _taken(Weights(compute, of_rows))


def record_result(
    result: Array,
    compute: Callable[[], Array],
    of_rows: Callable[[Array], Array] | None = None,
    *,
    mix: Callable[[Array], Array] | None,
    values: Array | None = None,
) -> Array:
    """Passes a mechanism's weights and result to the innermost recorder, if there is one.

    Args:
      result: result of the mechanism, equal to `mix(compute())` if there is a `mix`.
      compute, of_rows: as for `record`.
      mix, values: see `Weights`.

    Returns:
      An array that the caller must use in place of `result`: a recorder may return another one.
    """
    around = _OUTPUT.get(), _RESIDUAL.get()
    replaced = _taken(Weights(compute, of_rows, result, mix, values, *around))
    return result if replaced is None else replaced


def _taken(weights: Weights) -> Array | None:
    take = _RECORDER.get()
    if take is None:
        return None
    with suppressed():
        return take(weights)


def projected(output: Output | None) -> contextlib.AbstractContextManager[None]:
    """Sets `Weights.output` of results that are recorded within the context."""
    return _set(_OUTPUT, output)


def added(residual: Residual | None) -> contextlib.AbstractContextManager[None]:
    """Sets `Weights.residual` of results that are recorded within the context."""
    return _set(_RESIDUAL, residual)


@contextlib.contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def active() -> bool:
    """Returns True if a recorder is active."""
    return _RECORDER.get() is not None


def rename(module: nnx.Module, name: str) -> None:
    """Replaces the last component of the path of a module, while `inspect.capture` runs it.

    The paths of its submodules change accordingly.
    """
    path = getattr(module, TAG, None)
    if path is None:
        return
    new = "/".join([*path.split("/")[:-1], name])
    for part in [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Module)]:
        setattr(part, TAG, new + getattr(part, TAG)[len(path) :])


def recorder(take: Take | None) -> contextlib.AbstractContextManager[None]:
    """Passes the weights that are recorded in the context to a function.

    Args:
      take: function of the weights. If it returns an array, this array replaces the result of the
        mechanism. If `take` is None, nothing is recorded.
    """
    return _set(_RECORDER, take)


def suppressed() -> contextlib.AbstractContextManager[None]:
    """Disables recording inside mechanisms that record their own weights."""
    return recorder(None)
