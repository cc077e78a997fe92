"""Selection of the kernel for "auto", by run times that are measured or estimated.

`timings.json` contains the run times of all kernels at a few sizes on a few kinds of device
(`python -m benchmarks.tune` adds the present device). Kernels are tried in the order of their run
times in the measurement with the most similar sizes, and the first kernel that supports the call is
selected. On a GPU or TPU without a similar measurement, `attention.kernels.costs` estimates the run
times instead. Choices are cached for calls outside jit.

B batch, N query heads, K key/value heads, T queries, S keys, H head size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention import registry, tracing
from attention.kernels import costs, devices, partition
from attention.masks import Mask
from attention.masks.terms import Dense, Lengths, Or, Prefix, Segments, Valid, Window, is_static

Array = jax.Array

TIMINGS = pathlib.Path(__file__).with_name("timings.json")

# A call with at most this number of queries, and with more keys than queries, counts as decoding.
# Decoding needs no gradient, so only the forward pass is timed.
DECODE_QUERIES = 8

# If T·S is at least LONG², only kernels with memory O(T + S) have an estimate.
LONG = 512

_KEPT = 4096
_found: dict[Any, KernelChoice] = {}
# A context variable, so that calls of other threads are not recorded.
_recorded: ContextVar[list[RecordedChoice] | None] = ContextVar("recorded", default=None)


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """The kernel that `implementation="auto"` selects, and the reason.

    Attributes:
      name: name of the kernel.
      unsupported: for each kernel that was tried before the selected one, the reason why it was
        rejected: it does not support the call, or is slower than another kernel.
      reason: measurements or estimates that led to the choice, or a note that there are none.
    """

    name: str
    unsupported: dict[str, str]
    reason: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class RecordedChoice:
    """The kernel of one call of `attend`.

    Attributes:
      sizes: B, N, K, T, S, H; a symbolic size is given as a str.
      dtype: name of the query's dtype.
      options: mask terms and names of the options in use, such as "lengths()" or "bias".
      choice: the kernel and the reason.
    """

    sizes: tuple[int | str, ...]
    dtype: str
    options: tuple[str, ...]
    choice: KernelChoice


@contextlib.contextmanager
def record_choices() -> Iterator[list[RecordedChoice]]:
    """Records the kernel of each call of `attend` that is traced in the context.

    Yields:
      A list to which the choices are added.
    """
    found: list[RecordedChoice] = []
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def record(arrays: Sequence[Array], options: Mapping[str, Any], choice: KernelChoice) -> None:
    """Adds a choice of `attend` to the list of `record_choices`, if one is active.

    Args:
      arrays, options: the arguments of `attend`, as for `choose`.
      choice: the kernel that was chosen for them.
    """
    found = _recorded.get()
    if found is None or tracing.only_shapes():
        return
    (B, T, N, H), (S, K) = arrays[0].shape, arrays[1].shape[1:3]
    sizes = (size if isinstance(size, int) else str(size) for size in (B, N, K, T, S, H))
    mask = options["mask"]
    used = [] if mask is None else [term.describe() for term in mask.terms]
    used += [name for name in ("bias", "logit_cap", "sinks") if options[name] is not None]
    used += ["dropout"] if options["dropout_rate"] else []
    found.append(RecordedChoice(tuple(sizes), str(arrays[0].dtype), tuple(used), choice))


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of the kernels at one size on one kind of device.

    Attributes:
      batch, heads, queries, keys, size: B, N, T, S, H.
      dtype: "single" (32 bits and more) or "half" (16).
      options: one of `WORKLOADS`.
      forward: milliseconds of the forward pass of each kernel.
      both: milliseconds of forward and backward pass together, for each kernel.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    dtype: str
    options: str
    forward: Mapping[str, float]
    both: Mapping[str, float]

    @property
    def milliseconds(self) -> Mapping[str, float]:
        """Times by which kernels are ordered: `forward` for decoding, else `both`."""
        return self.forward if self.options == "decode" else self.both

    def distance(self, batch: int, heads: int, queries: int, keys: int, size: int) -> float:
        """Returns the distance of the measured sizes to other sizes.

        It is the sum over T, S, H and B·N of |log(measured / other)|.
        """
        pairs = (
            (self.queries, queries),
            (self.keys, keys),
            (self.size, size),
            (self.batch * self.heads, batch * heads),
        )
        return sum(abs(math.log(max(mine, 1) / max(other, 1))) for mine, other in pairs)


WORKLOADS = {
    "dense": "no mask, or padding only",
    "causal": "no query attends to a later key",
    "sparse": "a window or another pattern with hidden blocks",
    "array": "a dense mask, or packed segments",
    "bias": "a bias for each query and key",
    "decode": f"at most {DECODE_QUERIES} queries and more keys",
}


def workload_class(queries: int, keys: int, mask: Mask | None, bias: Any) -> str:
    """Returns the workload of a call, one of `WORKLOADS`.

    Args:
      queries, keys: T and S.
      mask, bias: as for `attend`.
    """
    if queries <= DECODE_QUERIES and keys > queries:
        return "decode"
    if bias is not None:
        return "bias"
    found = "dense"
    for term in () if mask is None else mask.terms:
        if isinstance(term, Dense | Segments):
            return "array"
        if isinstance(term, Lengths | Valid):
            continue
        causal = isinstance(term, Prefix)
        causal = causal or (isinstance(term, Window) and None in (term.left, term.right))
        # A disjunction may hide any pairs, like a dense mask.
        one = "array" if isinstance(term, Or) else "causal" if causal else "sparse"
        found = max(found, one, key=["dense", "causal", "sparse", "array"].index)
    return found


def dtype_class(dtype: Any) -> str:
    """Returns "half" for 16 bits, "single" for more."""
    return "half" if jnp.dtype(dtype).itemsize <= 2 else "single"


@functools.cache
def timings() -> dict[str, tuple[Timing, ...]]:
    """Returns the measurements of the file `TIMINGS`, which is read only once."""
    return read(TIMINGS)


def read(path: pathlib.Path) -> dict[str, tuple[Timing, ...]]:
    """Reads a file of measurements.

    Returns:
      The measurements by device kind; empty if there is no file.

    Raises:
      ValueError: the file was not written by `benchmarks.tune`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {
            kind: tuple(Timing(**entry) for entry in device["entries"])
            for kind, device in found.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: expected a file written by benchmarks.tune: {error}") from error


def choose(
    arrays: Sequence[Array],
    options: Mapping[str, Any],
    unsupported_reason: Callable[[str], str | None],
    slower_reason: Callable[[str], str | None] = lambda name: None,
) -> KernelChoice:
    """Chooses the kernel for the given arguments of `attend`.

    Args:
      arrays: query [B, T, N, H], key [B, S, K, H], value, or `jax.ShapeDtypeStruct`s.
      options: the other arguments by name, checked.
      unsupported_reason: function that traces a kernel and returns why it does not support the
        arguments, or None.
      slower_reason: function that returns why a kernel is slower than another kernel at these
        sizes, or None. It is called for kernels without a measurement.

    Returns:
      The `KernelChoice`, which depends only on shapes, dtypes, options, mesh and device kind.
    """
    if tracing.only_shapes():
        return KernelChoice(registry.names("kernel")[-1], {}, "shapes only")
    kernels, device = tuple(registry.mechanisms("kernel")), device_kind()
    context = devices.context()
    measured = timings().get(device, ())
    sizes, entry = _sizes(arrays), None
    try:
        # Choices for symbolic sizes are not cached, because the symbols of different `jax.export`
        # scopes cannot be compared.
        known = None if sizes is None else (_signature(arrays, options), kernels, device, context)
        if known in _found:
            return dataclasses.replace(_found[known], unsupported=dict(_found[known].unsupported))
    except TypeError:  # an option that is not hashable: not cached
        known = None
    names = [line.name for line in kernels]
    if sizes is not None:
        wanted = (
            dtype_class(arrays[0].dtype),
            workload_class(sizes[2], sizes[3], options["mask"], options["bias"]),
        )
        entry = nearest(measured, sizes, *wanted)
    unknown = set(names) - {name for one in measured for name in one.milliseconds}
    unsupported: dict[str, str] = {}
    times, estimated = {} if entry is None else entry.milliseconds, {}
    if entry is None and sizes is not None:
        times = estimated = estimates(arrays, options, names)
        unknown = set(names) - estimated.keys()
    for name in in_order(names, unknown, times):
        # The last kernel of the registry supports everything.
        reason = None
        if name != names[-1]:
            reason = (None if name in times else slower_reason(name)) or unsupported_reason(name)
        if reason is None:
            break
        unsupported[name] = reason
    reason = _reason(name, unsupported, names, entry, device, name in unknown, estimated)
    choice = KernelChoice(name, unsupported, reason)
    if known is not None:
        if len(_found) >= _KEPT:
            _found.clear()
        _found[known] = choice
    return dataclasses.replace(choice, unsupported=dict(unsupported))


def nearest(
    entries: Sequence[Timing], sizes: tuple[int, ...], dtype: str, options: str
) -> Timing | None:
    """Returns the timing with the nearest sizes.

    Args:
      entries: timings on one kind of device.
      sizes: arguments of `Timing.distance`.
      dtype, options: only timings with these values are compared.

    Returns:
      The timing, or None if none has this dtype and these options.
    """
    same = [entry for entry in entries if (entry.dtype, entry.options) == (dtype, options)]
    return min(same, key=lambda entry: entry.distance(*sizes), default=None)


def in_order(
    names: Sequence[str], unknown: set[str], milliseconds: Mapping[str, float]
) -> list[str]:
    """Returns the kernels in the order in which they are tried.

    Kernels that were never measured on this device keep their ranks in the registry, so that a new
    kernel at the front is tried first. The measured kernels fill the remaining ranks, fastest
    first; those without a time for this call come last.

    Args:
      names: names of the kernels in the order of the registry.
      unknown: kernels that were never measured on this device.
      milliseconds: times of kernels for this call.
    """
    if not milliseconds:
        return list(names)
    known = [name for name in names if name not in unknown]
    ranked = iter(sorted(known, key=lambda name: milliseconds.get(name, math.inf)))
    return [name if name in unknown else next(ranked) for name in names]


def estimates(
    arrays: Sequence[Array], options: Mapping[str, Any], names: Sequence[str]
) -> dict[str, float]:
    """Estimates the milliseconds of kernels on one device of the mesh of `jax.set_mesh`.

    The estimates include the forward and the backward pass, but for decoding only the forward pass.
    If T·S is at least `LONG`², kernels that keep matrices [B, N, T, S] in memory have no estimate,
    because their memory limits the batch size.

    Args:
      arrays: query, key and value, or `jax.ShapeDtypeStruct`s, with known sizes.
      options: the other arguments of `attend` by name.
      names: names of kernels.

    Returns:
      The milliseconds of each kernel whose module has a function `cost`; empty unless the platform
      is "cuda" or "tpu".
    """
    platform = devices.expected_platform()
    if platform not in costs.LAUNCH:
        return {}
    call = _call(platform, arrays, options)
    found = {}
    for name in names:
        try:
            devices.expect_device(registry.find("kernel", name).capabilities)
        except NotImplementedError:
            continue
        module = sys.modules[registry.load("kernel", name).__module__]
        cost = module.cost(call) if hasattr(module, "cost") else None
        if cost is not None and (not cost.memory or call.queries * call.keys < LONG**2):
            found[name] = 1e3 * costs.seconds(call, cost)
    return found


def _call(platform: str, arrays: Sequence[Array], options: Mapping[str, Any]) -> costs.Call:
    query, key = arrays[:2]
    (B, T, N, H), (S, K) = query.shape, key.shape[1:3]
    mask, bias = options["mask"], options["bias"]
    split = partition.mesh_split(B, N, K)
    examples = heads = 1
    if split is not None:
        examples, heads = (
            math.prod(split.mesh.shape[axis] for axis in axes)
            for axes in (split.batch, split.heads)
        )
    dense = mask is not None and any(isinstance(term, Dense) for term in mask.terms)
    bias_size = 0 if bias is None else math.prod(bias.shape) * bias.dtype.itemsize
    return costs.Call(
        platform=platform,
        batch=B // examples,
        heads=N // heads,
        kv_heads=K // heads,
        queries=T,
        keys=S,
        size=H,
        value_size=arrays[-1].shape[-1],
        itemsize=jnp.dtype(query.dtype).itemsize,
        visible=visible_fraction(mask, T, S),
        array=int(dense) + bias_size / max(B * N * T * S, 1),
        backward=workload_class(T, S, mask, bias) != "decode",
        speed=costs.speed_of(platform, devices.expected_kind()),
    )


def visible_fraction(mask: Mask | None, T: int, S: int) -> float:
    """Returns the fraction of the T·S pairs that the static windows of a mask leave visible."""
    low, high = np.zeros(T), np.full(T, S - 1.0)
    for term in () if mask is None else mask.terms:
        if isinstance(term, Window) and is_static(term.query_offset):
            lower, upper = term.bounds(T, S)
            if lower is not None:
                low = np.maximum(low, np.arange(T) + lower)
            if upper is not None:
                high = np.minimum(high, np.arange(T) + upper)
    return float(np.maximum(high - low + 1, 0).sum() / (T * S)) if T * S else 1.0


def device_kind() -> str:
    """Returns the kind of the device that JAX traces for, or the platform if it is unknown."""
    return devices.expected_kind() or devices.expected_platform()


def _sizes(arrays: Sequence[Array]) -> tuple[int, int, int, int, int] | None:
    """Returns B, N, T, S, H; None if one of them is symbolic (`jax.export`)."""
    (B, T, N, H), S = arrays[0].shape, arrays[1].shape[1]
    sizes = B, N, T, S, H
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _signature(arrays: Sequence[Array], options: Mapping[str, Any]) -> tuple:
    """Returns a hashable key of the arguments and the mesh, on which the choice depends."""
    leaves, tree = jax.tree.flatten((tuple(arrays), dict(options)))
    return tuple(map(_abstract, leaves)), tree, jax.sharding.get_abstract_mesh()


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.typeof(leaf)
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return tuple(leaf.shape), leaf.dtype
    return type(leaf), leaf


def _reason(
    name: str,
    unsupported: Mapping[str, str],
    names: Sequence[str],
    entry: Timing | None,
    device: str,
    unknown: bool,
    estimated: Mapping[str, float],
) -> str:
    if name in estimated:
        others = _others(estimated, names, (name, *unsupported))
        return f"not measured on {device}; estimated {estimated[name]:.3g} ms{others}"
    if entry is None:
        return f"no similar call was measured on {device}; first supported kernel of the registry"
    if unknown:
        return f"was never measured on {device}; selected by its rank in the registry"
    times = entry.milliseconds
    if name not in times:
        return f"was not measured on {device} at such sizes; selected after the measured kernels"
    at = (entry.batch, entry.heads, entry.queries, entry.keys, entry.size)
    return (
        f"measured {times[name]:.3g} ms at (B, N, T, S, H) = {at} on {device}, {entry.dtype} "
        f"{entry.options}{_others(times, names, (name, *unsupported))}"
    )


def _others(times: Mapping[str, float], names: Sequence[str], without: Sequence[str]) -> str:
    found = sorted(
        (value, name) for name, value in times.items() if name in names and name not in without
    )
    return "".join(f", {name} {value:.3g} ms" for value, name in found)
