"""Runs a model so that its attention calls get names and their weights are sent to the host."""

from __future__ import annotations

import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax
import jax
import numpy as np
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata

from attention import recording

Array = jax.Array
Layers = str | int | Sequence[str | int] | None
_UNNAMED = "attention"
_LIBRARIES = tuple(library.__path__[0] for library in (jax, flax))
_NUMBERS = itertools.count()


def prepare(
    model: Any, method: str, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, list[Array]]]:
    """Prepares a function that runs a copy of a model.

    Args:
      model: a module, a method of a module, or any function of arrays.
      method: name of the method to call if the model is a module.
      inputs, keywords: arguments of the model.

    Returns:
      The function, and the arrays to call it with.
    """
    if isinstance(model, types.MethodType) and isinstance(model.__self__, nnx.Module):
        model, method = model.__self__, model.__name__
    leaves, tree = jax.tree.flatten((inputs, keywords))
    traced = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    graphdef, state = None, ()
    if isinstance(model, nnx.Module):
        twin = nnx.clone(model)
        modules = [(path, m) for path, m in nnx.iter_graph(twin) if isinstance(m, nnx.Module)]
        for path, module in modules:
            setattr(module, recording.TAG, "/".join(map(str, path)))
        graphdef, state = nnx.split(twin)

    def run(state: Any, arrays: list[Array]) -> Any:
        given = iter(arrays)
        filled = [
            next(given) if is_traced else leaf
            for leaf, is_traced in zip(leaves, traced, strict=True)
        ]
        inputs, keywords = jax.tree.unflatten(tree, filled)
        called = model if graphdef is None else nnx.merge(graphdef, state)
        return getattr(called, method)(*inputs, **keywords)

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
        """Returns the name of an attention call.

        Calls share a name if they have the same module path, pass through the same source lines
        between the module and `record`, and have weights of the same shape. Their weights can then
        be stacked.

        Args:
          shape: shape of the weights.
          frames: stack frames of the call, innermost first.
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


def trace(
    run: Callable[..., Any],
    arrays: tuple[Any, ...],
    take: Callable[[str, recording.Weights, tuple[int, ...]], Array | None],
    execute: Callable[..., Any] | None = None,
) -> list[str]:
    """Runs or traces a function and passes each attention in it to `take`.

    Args:
      run: function of the arrays.
      arrays: the arguments of `run`.
      take: function of the name, the weights and their shape. It returns an array that replaces the
        result of the attention, or None.
      execute: transformation of `run` that is applied before it is called, such as `jax.jit`. If
        None, `run` is only traced.

    Returns:
      The names, in the order of first appearance.
    """
    names = _Names()

    def start(*arrays: Any) -> Any:
        return run(*arrays)

    def named(weights: recording.Weights) -> Array | None:
        shape = jax.eval_shape(weights).shape
        return take(names.of(shape, _frames(sys._getframe(1), start.__code__)), weights, shape)

    # Functions that were jitted earlier are in JAX's trace cache without a recorder. The number
    # becomes part of the cache key, so that cached traces and traces of the capture are never
    # mixed.
    with set_xla_metadata(capture=next(_NUMBERS)), recording.recorder(named):
        if execute is None:
            jax.eval_shape(start, *arrays)
        else:
            execute(start)(*arrays)
    return names.names


def _frames(frame: types.FrameType | None, last: types.CodeType) -> Iterator[types.FrameType]:
    """Yields the stack frames from `frame` outwards to `last`.

    Frames of libraries are skipped, because their lines may differ between traces of a function.
    """
    while frame is not None and frame.f_code is not last:
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            yield frame
        frame = frame.f_back


def _module(frame: types.FrameType) -> nnx.Module | None:
    """Returns the module whose method runs in a frame, or None if no module's method does.

    The module is the first argument of the method.
    """
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    return first if isinstance(first, nnx.Module) else None


def sender(taken: list[np.ndarray]) -> Callable[[Array], tuple[()]]:
    """Returns a function that appends its argument to `taken` when the program runs.

    Under vmap, it appends one array with the complete mapped axis.
    """

    @jax.custom_batching.custom_vmap
    def send(weights: Array) -> tuple[()]:
        # Copied, because the array is freed after the callback.
        append = lambda array: taken.append(np.array(array))  # noqa: E731
        jax.debug.callback(append, weights, ordered=True)
        return ()

    @send.def_vmap
    def whole(size: int, batched: list[bool], weights: Array) -> tuple[tuple[()], tuple[()]]:
        # JAX unrolls callbacks under vmap; here a single callback gets the complete axis.
        return sender(taken)(weights), ()

    # If the model computes derivatives itself, they must not pass through the callback.
    return lambda weights: send(jax.lax.stop_gradient(weights))


def choose_layers(layers: Layers, names: list[str]) -> set[str]:
    """Returns the names that `layers` selects, as for `inspect.capture`; all names if None.

    Raises:
      ValueError: a layer does not exist, or there are no names.
    """
    if not names:
        raise ValueError(
            "model: got a model without attention, expected at least one attention call"
        )
    if layers is None:
        return set(names)
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
