"""Search for the operation of a traced program that produces the first non-finite value.

The program is evaluated one operation at a time. Calls, the branches that are taken and loops of
`jax.lax.scan` are entered; other loops and kernels count as one operation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.extend import core

from attention import recording
from launch.engine import jaxprs

_ROOT = Path(__file__).parents[2]
_LIBRARIES = tuple(library.__path__[0] for library in (jax, flax, optax))
_SCOPE = re.compile(r"<([^<>]*)>")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The operation that produces the first non-finite value.

    Attributes:
      kind: "nan" or "inf".
      primitive: name of the JAX primitive.
      module: path of the innermost module whose call contains the operation; "" if there is none.
      line: source file, line and function; "" if unknown.
      backward: whether the operation belongs to the backward pass.
      cause: for the kind "nan", the operation that produced an infinite input; None if the inputs
        are finite.
    """

    kind: str
    primitive: str
    module: str
    line: str
    backward: bool
    cause: Origin | None = None

    def __str__(self) -> str:
        where = f" in module {self.module}" if self.module else ""
        line = f" ({self.line})" if self.line else ""
        passed = " of the backward pass" if self.backward else ""
        text = f"{self.kind} from operation {self.primitive}{passed}{where}{line}"
        return f"{text}, whose input has {self.cause}" if self.cause else text


def first_nonfinite(function: Callable[..., Any], *arguments: Any) -> Origin | None:
    """Searches for the operation that makes a result non-finite.

    This is the first operation that returns NaN although its inputs contain no NaN. If no
    operation does, it is the operation that produced the infinite values of the first infinite
    result. Infinite values that have no effect on the results, such as masked logits, do not count.

    Args:
      function: function of arrays, which is traced.
      *arguments: pytrees of arrays without NaN.

    Returns:
      The operation; None if all results are finite.
    """
    leaves, tree = jax.tree.flatten(arguments)
    closed = jax.make_jaxpr(lambda *given: function(*jax.tree.unflatten(tree, given)))(*leaves)
    try:
        results = _run(closed, [_Value(leaf) for leaf in leaves])
    except _Found as found:
        return found.origin
    return next((value.origin for value in results if value.origin is not None), None)


@contextlib.contextmanager
def module_scopes(model: nnx.Module) -> Iterator[nnx.Module]:
    """Yields a copy of a model whose traced operations have the path of their module as scope."""
    twin = nnx.clone(model)
    modules = [(path, m) for path, m in nnx.iter_graph(twin) if isinstance(m, nnx.Module)]
    for path, module in modules:
        setattr(module, recording.TAG, "/".join(map(str, path)))
    kinds = {type(module) for _, module in modules if "__call__" in vars(type(module))}
    calls = {kind: vars(kind)["__call__"] for kind in kinds}
    try:
        for kind, call in calls.items():
            kind.__call__ = _scoped(call)
        yield twin
    finally:
        for kind, call in calls.items():
            kind.__call__ = call


def _scoped(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def scoped(self: Any, *arguments: Any, **options: Any) -> Any:
        path = getattr(self, recording.TAG, "")
        with jax.named_scope(f"<{path}>") if path else contextlib.nullcontext():
            return call(self, *arguments, **options)

    return scoped


@dataclasses.dataclass(frozen=True)
class _Value:
    """An array and the operation that produced its infinite elements; None if all are finite."""

    array: Any
    origin: Origin | None = None


class _Found(Exception):
    """Raised at the first NaN."""

    def __init__(self, origin: Origin):
        super().__init__(str(origin))
        self.origin = origin


def _run(closed: Any, values: list[_Value], outer: str = "") -> list[_Value]:
    """Evaluates a jaxpr; `outer` is the name stack of the equation that calls it."""
    jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    known = dict(zip(jaxpr.constvars, map(_Value, constants), strict=True))
    known |= dict(zip(jaxpr.invars, values, strict=True))
    last = {variable: number for number, equation in enumerate(jaxpr.eqns)
            for variable in equation.invars if not isinstance(variable, core.Literal)}  # fmt: skip
    kept = {variable for variable in jaxpr.outvars if not isinstance(variable, core.Literal)}

    def value(variable: Any) -> _Value:
        return _Value(variable.val) if isinstance(variable, core.Literal) else known[variable]

    for number, equation in enumerate(jaxpr.eqns):
        found = _apply(equation, [value(variable) for variable in equation.invars], outer)
        known |= dict(zip(equation.outvars, found, strict=True))
        # Arrays are freed after their last use.
        for variable in (*equation.invars, *equation.outvars):
            if isinstance(variable, core.Literal) or variable in kept:
                continue
            if last.get(variable, -1) <= number:
                known.pop(variable, None)
    return [value(variable) for variable in jaxpr.outvars]


def _apply(equation: Any, values: list[_Value], outer: str) -> list[_Value]:
    name, options = equation.primitive.name, equation.params
    scopes = f"{outer}/{equation.source_info.name_stack}"
    if name in jaxprs.CALLS:
        return _run(jaxprs.callee(options), values, scopes)
    if name == "cond":
        return _run(options["branches"][int(values[0].array)], values[1:], scopes)

    arrays = equation.primitive.bind(*[value.array for value in values], **options)
    arrays = arrays if equation.primitive.multiple_results else [arrays]
    found = []
    for array in arrays:
        kind = _kind(array)
        inputs = [value for value in values if kind and _kind(value.array)]
        cause = next((value.origin for value in inputs if value.origin), None)
        if kind == "nan":
            if name == "scan":
                _loop(values, options, scopes)
            raise _Found(_origin(equation, scopes, kind, cause))
        origin = cause
        if kind and not inputs:
            origin = _origin(equation, scopes, kind)
        found.append(_Value(array, origin))
    return found


def _loop(values: list[_Value], options: Any, scopes: str) -> None:
    """Repeats a scan one step at a time, because its result has NaN; the body raises `_Found`."""
    constants, carried = jaxprs.scan_sizes(options)
    first = constants + carried
    carry = values[constants:first]
    order = range(options["length"])
    for step in reversed(order) if options["reverse"] else order:
        slices = [_Value(value.array[step], value.origin) for value in values[first:]]
        given = [*values[:constants], *carry, *slices]
        carry = _run(options["jaxpr"], given, scopes)[:carried]


def _kind(array: Any) -> str | None:
    """Returns "nan" if an array contains NaN, else "inf" if it contains infinities, else None."""
    if not jnp.issubdtype(jnp.result_type(array), jnp.inexact):
        return None
    if bool(jnp.all(jnp.isfinite(array))):
        return None
    return "nan" if bool(jnp.any(jnp.isnan(array))) else "inf"


def _origin(equation: Any, scopes: str, kind: str, cause: Origin | None = None) -> Origin:
    modules = _SCOPE.findall(scopes)
    return Origin(
        kind,
        equation.primitive.name,
        modules[-1] if modules else "",
        _line(equation.source_info.traceback),
        "transpose" in scopes,
        cause,
    )


def _line(traceback: Any) -> str:
    """Returns the file, line and function of the innermost stack frame outside of libraries."""
    for frame in getattr(traceback, "frames", ()):
        file = Path(frame.file_name)
        if str(file).startswith(_LIBRARIES) or file == Path(__file__):
            continue
        shown = file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file
        return f"{shown}:{frame.line_num}, {frame.function_name}"
    return ""


def nonfinite_names(tree: Any, name: Callable[[Any], str]) -> list[str]:
    """Returns the names of the arrays of a pytree that are not finite.

    Args:
      tree: pytree of arrays.
      name: function from the path of a leaf to its name.
    """
    return [
        name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(np.asarray(leaf).dtype, jnp.inexact)
        and not np.isfinite(np.asarray(leaf, np.float32)).all()
    ]
