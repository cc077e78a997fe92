"""Attention weights of any model, and statistics of attention weights.

    weights = inspect.capture(model, tokens, lengths)
    weights["encoder/layers/0/attention"]                          # [B, N, T, T]
    weights = inspect.capture(model, tokens, lengths, layers="layers/0", heads=[0], rows=range(8))

The model is not changed. It runs with its own kernels, including fused ones, and the weights are
computed separately from the same queries and keys.
"""

from __future__ import annotations

import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata

from attention import recording, shapes
from attention.attribution.aggregation import rollout
from attention.numerics import accumulator

__all__ = ["capture", "head_entropy", "head_similarity", "rollout"]

Array = jax.Array
Indices = int | Sequence[int] | np.ndarray
_UNNAMED = "attention"
_LIBRARIES = tuple(library.__path__[0] for library in (jax, flax))
_NUMBERS = itertools.count()


def capture(
    model: nnx.Module | Callable[..., Any],
    *inputs: Any,
    layers: str | int | Sequence[str | int] | None = None,
    heads: Indices | None = None,
    rows: Indices | None = None,
    method: str = "__call__",
    **keywords: Any,
) -> dict[str, np.ndarray]:
    """Runs a model once and returns the weights of each attention that it computes.

    The weights equal those of `return_weights`: exact, before dropout, in at least float32.
    Attention inside jit, scan, remat, cond and vmap is captured too. Each call traces and compiles
    the model again, so do not call this in a training loop.

    For an attention that runs once, the result is [B, N, T, S] for a mixer, [B, heads, T] for a
    pool, and [B, S] or [B, N, S] for an alignment. An attention that runs several times (in a scan,
    or in a shared or stacked layer) gives [calls, ...] in the order of the calls. The axis of
    `jax.vmap` comes first within each call. A branch of `jax.lax.cond` that is not taken gives
    nothing (under vmap JAX takes both branches).

    Names are the paths of the modules, such as "encoder/layers/0/attention" or "pool"; the model
    itself and plain functions are named "attention". Further calls in the same module get the
    suffixes "_1", "_2", ... A function with its own `jax.jit` is traced once per shape; if several
    modules call it, all its weights appear under the first module.

    Only selected weights are computed, and they are sliced on the device.

    Args:
      model: a module, or any function of arrays, which may call modules.
      *inputs, **keywords: arguments of the model. Arrays are traced, other values are static.
      layers: names to keep: a regular expression to search for, an index among all names (in the
        order of the first call; negative from the end), or several of these.
      heads: indices into axis 1 of [B, N, T, S], [B, heads, T] and [B, N, S]; all if None.
      rows: indices into axis 2 of [B, N, T, S], the queries; all if None. Has no effect on pools
        and alignments, which have one query.
      method: name of the method to call, such as "generate".

    Returns:
      name -> NumPy array: [B, N, T, S], [B, heads, T], [B, N, S] or [B, S], with a leading axis of
      calls if there are several. A model on several devices is run on one of them.

    Raises:
      ValueError: the model has no attention, or layers, heads or rows do not exist.
    """
    if isinstance(model, types.MethodType) and isinstance(model.__self__, nnx.Module):
        model, method = model.__self__, model.__name__
    run, arrays = _prepared(model, method, inputs, keywords)
    everything = _trace(run, arrays, lambda *recorded: None).names
    if not everything:
        raise ValueError(
            "model: got a model without attention, expected at least one attention call"
        )
    chosen = everything if layers is None else _chosen_layers(layers, everything)
    taken: dict[str, list[np.ndarray]] = {}

    def send(name: str, weights: recording.Weights, shape: tuple[int, ...]) -> None:
        if name in chosen:
            _sender(taken.setdefault(name, []))(_cut(weights, shape, heads, rows, name))

    _trace(run, arrays, send, jax.jit)
    jax.effects_barrier()
    found = {name: calls for name, calls in taken.items() if calls}
    if not found:
        raise ValueError(f"layers: got {sorted(chosen)}, expected one that runs for the inputs")
    return {name: calls[0] if len(calls) == 1 else np.stack(calls) for name, calls in found.items()}


def _prepared(
    model: Any, method: str, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Callable[..., None], tuple[Any, list[Array]]]:
    """Returns a function of arrays that runs a copy of the model, and those arrays."""
    leaves, tree = jax.tree.flatten((inputs, keywords))
    traced = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    graphdef, state = None, ()
    if isinstance(model, nnx.Module):
        twin = nnx.clone(model)
        modules = [(path, m) for path, m in nnx.iter_graph(twin) if isinstance(m, nnx.Module)]
        for path, module in modules:
            setattr(module, recording.TAG, "/".join(map(str, path)))
        graphdef, state = nnx.split(twin)

    def run(state: Any, arrays: list[Array]) -> None:
        given = iter(arrays)
        filled = [
            next(given) if is_traced else leaf
            for leaf, is_traced in zip(leaves, traced, strict=True)
        ]
        inputs, keywords = jax.tree.unflatten(tree, filled)
        called = model if graphdef is None else nnx.merge(graphdef, state)
        getattr(called, method)(*inputs, **keywords)

    arrays = [leaf for leaf, is_traced in zip(leaves, traced, strict=True) if is_traced]
    return run, _on_one_device((state, arrays))


def _on_one_device(tree: Any) -> Any:
    """Moves arrays to one device, because ordered effects require a single-device program."""
    devices = set()
    for leaf in jax.tree.leaves(tree):
        devices |= leaf.devices() if isinstance(leaf, jax.Array) else set()
    if len(devices) < 2:
        return tree
    return jax.device_put(tree, min(devices, key=lambda device: device.id))


class _Names:
    """Names of attention calls, in the order of first appearance."""

    def __init__(self) -> None:
        self._of: dict[Any, str] = {}

    @property
    def names(self) -> list[str]:
        return list(self._of.values())

    def of(self, shape: tuple[int, ...], frames: Iterator[types.FrameType]) -> str:
        """Returns the name of a call with these frames, innermost first.

        Calls share a name if they have the same module path, the same source lines between module
        and `record`, and the same shape, so that their weights can be stacked.
        """
        path, lines = None, []
        for frame in frames:
            module = _module(frame)
            path = getattr(module, recording.TAG, None)
            lines.append((frame.f_code, frame.f_lineno, id(module) if path is None else None))
            if path is not None:
                break
        call = (path, *lines, shape)
        if call not in self._of:
            base = path or _UNNAMED
            several = (f"{base}_{n}" for n in itertools.count(1))
            free = (name for name in itertools.chain([base], several) if name not in self.names)
            self._of[call] = next(free)
        return self._of[call]


def _trace(
    run: Callable[..., None],
    arrays: tuple[Any, list[Array]],
    take: Callable[[str, recording.Weights, tuple[int, ...]], None],
    execute: Callable[..., Any] | None = None,
) -> _Names:
    """Runs, or only traces, with a recorder that passes names, weights and shapes to `take`."""
    names = _Names()

    def start(*arrays: Any) -> None:
        run(*arrays)

    def named(weights: recording.Weights) -> None:
        shape = jax.eval_shape(weights).shape
        take(names.of(shape, _frames(sys._getframe(1), start.__code__)), weights, shape)

    # Functions that were jitted earlier are in JAX's trace cache without a recorder. The number
    # becomes part of the cache key, so that cached traces and traces of the capture are never
    # mixed.
    with set_xla_metadata(capture=next(_NUMBERS)), recording.recorder(named):
        if execute is None:
            jax.eval_shape(start, *arrays)
        else:
            execute(start)(*arrays)
    return names


def _frames(frame: types.FrameType | None, last: types.CodeType) -> Iterator[types.FrameType]:
    """Yields the stack frames from `frame` outwards to `last`.

    Frames of libraries are skipped, because their lines may differ between traces of a function.
    """
    while frame is not None and frame.f_code is not last:
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            yield frame
        frame = frame.f_back


def _module(frame: types.FrameType) -> nnx.Module | None:
    """Returns the module whose method runs in the frame: the first argument of the method."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    return first if isinstance(first, nnx.Module) else None


def _sender(taken: list[np.ndarray]) -> Callable[[Array], tuple[()]]:
    """Returns a function that appends its argument to `taken` at run time, also under vmap."""

    @jax.custom_batching.custom_vmap
    def send(weights: Array) -> tuple[()]:
        # Copied, because the array is freed after the callback.
        append = lambda array: taken.append(np.array(array))  # noqa: E731
        jax.debug.callback(append, weights, ordered=True)
        return ()

    @send.def_vmap
    def whole(size: int, batched: list[bool], weights: Array) -> tuple[tuple[()], tuple[()]]:
        # JAX unrolls callbacks under vmap; here a single callback gets the complete axis.
        return _sender(taken)(weights), ()

    # Derivatives that the model takes itself do not pass through the callback.
    return lambda weights: send(jax.lax.stop_gradient(weights))


def _chosen_layers(layers: str | int | Sequence[str | int], names: list[str]) -> set[str]:
    chosen: set[str] = set()
    for layer in [layers] if isinstance(layers, str | int) else layers:
        if isinstance(layer, str):
            found = [name for name in names if re.search(layer, name)]
        else:
            found = [names[layer]] if -len(names) <= layer < len(names) else []
        if not found:
            raise ValueError(f"layers: got {layer!r}, expected names or indices of {names}")
        chosen.update(found)
    return chosen


def _cut(
    weights: recording.Weights,
    shape: tuple[int, ...],
    heads: Indices | None,
    rows: Indices | None,
    name: str,
) -> Array:
    """Returns the chosen weights; computes only chosen rows if possible."""
    chosen_heads, chosen_rows = None, None
    if heads is not None and len(shape) in (3, 4):
        chosen_heads = _checked("heads", heads, shape[1], name)
    if rows is not None and len(shape) == 4:
        chosen_rows = _checked("rows", rows, shape[2], name)
    if chosen_rows is None:
        cut = weights()
    elif weights.of_rows is None:
        cut = jnp.take(weights(), chosen_rows, axis=2)
    else:
        cut = weights.of_rows(jnp.asarray(chosen_rows))
    return cut if chosen_heads is None else jnp.take(cut, chosen_heads, axis=1)


def _checked(argument: str, indices: Indices, size: int, name: str) -> np.ndarray:
    chosen = np.atleast_1d(np.asarray(indices))
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer) or not chosen.size:
        raise ValueError(f"{argument}: got {indices!r}, expected at least one integer index")
    if chosen.min() < -size or chosen.max() >= size:
        raise ValueError(
            f"{argument}: got {chosen.tolist()}, expected indices below {size} at {name!r} "
            f"(set layers= to select other attention)"
        )
    return chosen % size


def head_entropy(weights: Array, valid: Array | None = None) -> Array:
    """Computes the mean entropy of the rows of each head, in nats (Clark et al. 2019).

        E_n = mean_t (- Σ_s w_nts ln w_nts), rows scaled to sum to 1

    0 means one key, ln S means uniform weights. Rows of zeros are excluded.

    Args:
      weights: [..., B, N, T, S], at least 0.
      valid: bool [B, T], queries to include; all if None.

    Returns:
      [..., B, N] in at least float32; NaN without rows.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    wide, counted = _rows(weights, valid)
    return _mean(_entropy(_scaled(wide)), counted)


def head_similarity(weights: Array, valid: Array | None = None) -> Array:
    """Computes the mean Jensen-Shannon divergence between heads, in nats (Clark et al. 2019).

        JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2,   H(p) = - Σ_s p_s ln p_s

    0 means equal weights, ln 2 means disjoint weights. Rows of zeros in either head are excluded.

    Args:
      weights: [..., B, N, T, S], at least 0; rows are scaled to sum to 1.
      valid: bool [B, T], queries to include; all if None.

    Returns:
      [..., B, N, N], symmetric, in at least float32; NaN without common rows.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    wide, counted = _rows(weights, valid)
    weights = _scaled(wide)
    entropy = _entropy(weights)

    def to_all(n: Array) -> Array:
        one = jnp.take(weights, n[None], axis=-3)
        alone = (entropy + jnp.take(entropy, n[None], axis=-2)) / 2
        both = counted & jnp.take(counted, n[None], axis=-2)
        return _mean(_entropy((weights + one) / 2) - alone, both)

    # One head at a time: all pairs at once would take N times the memory of the weights.
    result = jax.lax.map(to_all, jnp.arange(weights.shape[-3]))
    return jnp.moveaxis(result, 0, -2)


def _rows(weights: Array, valid: Array | None) -> tuple[Array, Array]:
    """Returns the weights and the mask of rows to include, bool [..., B, N, T]."""
    shapes.expect_floating("weights", weights)
    weights = jnp.asarray(weights)
    if weights.ndim < 4:
        got = shapes.show(weights.shape)
        raise ValueError(f"weights: got shape {got}, expected [..., B, N, T, S]")
    wide = weights.astype(accumulator(weights))
    counted = jnp.sum(wide, axis=-1) > 0
    if valid is not None:
        B, _, T, _ = weights.shape[-4:]
        shapes.expect_boolean("valid", valid, true_means="a query that counts")
        shapes.expect("valid", valid, "B T", {"B": B, "T": T})
        counted = counted & jnp.asarray(valid)[:, None]
    return wide, counted


def _scaled(rows: Array) -> Array:
    total = jnp.sum(rows, axis=-1, keepdims=True)
    return rows / jnp.where(total == 0, 1, total)


def _entropy(weights: Array) -> Array:
    return -jnp.sum(jax.scipy.special.xlogy(weights, weights), axis=-1)


def _mean(rows: Array, counted: Array) -> Array:
    return jnp.sum(jnp.where(counted, rows, 0), axis=-1) / jnp.sum(counted, axis=-1)
