"""Scaled dot-product attention, and the selection of the kernel that computes it.

Vaswani et al. 2017, "Attention Is All You Need". `kernels/reference.py` defines the result. Every
other kernel computes the same result or raises NotImplementedError.

B examples, T queries, S keys, N query heads, K key/value heads, H head size, V value head size.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Container
from typing import Any

import jax
import jax.numpy as jnp

from attention import masks, recording, registry, shapes
from attention.kernels import derivatives, devices, dispatch, partition, reference
from attention.kernels.dispatch import KernelChoice
from attention.numerics import mix_heads

Array = jax.Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: masks.Mask | Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    logit_cap: float | None = None,
    sinks: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """Computes the mean of the values for each query, weighted by the softmax of its logits.

        l_ts = cap(scale · q_t·k_s + bias_ts),   cap(x) = c·tanh(x / c)
        w_ts = exp(l_ts) / (Σ_s' exp(l_ts') + exp(sink)),   s' over the keys visible to t
        o_t  = Σ_s w_ts v_s

    Rows that may attend to nothing return 0 and have finite gradients. Softmax and sums are
    computed in at least float32. Keys that the mask hides, and their values, have no influence on
    the result. They must still be finite, because 0 times NaN is NaN.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H]. K divides N; query head n uses key/value head n // (N / K).
      value: [B, S, K, V].
      mask: a `Mask` or an array for `masks.dense`; True means may attend.
      bias: [B or 1, N or 1, T, S], floating point.
      scale: 1 / sqrt(H) if None.
      logit_cap: c above (Gemma 2 Team 2024), positive; no cap if None.
      sinks: [N], floating point, one extra logit per head that takes weight but has no value.
      dropout_rate: probability of setting a weight to 0, in [0, 1). The other weights are scaled
        up.
      dropout_key: random key, required if dropout_rate > 0.
      implementation: name of a kernel, or "auto" for the fastest supported kernel according to
        measurements on this kind of device (see `explain_choice`). Forward-mode and higher
        derivatives need "reference"; "native" supports higher derivatives in reverse mode. Arrays
        without elements always use the reference.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
      NotImplementedError: the kernel does not support the arguments (the message names kernels that
        do), or does not support a derivative that is computed.
    """
    request = _checked(
        query, key, value, mask, bias, scale, logit_cap, sinks, dropout_rate, dropout_key
    )
    result = _run(implementation, request)
    return recording.record_result(
        result,
        lambda: _weights(request),
        lambda rows: _weights(request.of_rows(rows)),
        mix=None if dropout_rate else lambda weights: mix_heads(weights, value),
        values=value,
    )


def _run(implementation: str, request: _Request) -> Array:
    if implementation != "auto":
        dispatch.record(
            request.arrays, request.options, KernelChoice(implementation, {}, "named by the caller")
        )
        return _run_named(implementation, request)
    choice = _choose(request)
    dispatch.record(request.arrays, request.options, choice)
    return request.guarded(choice.name).run(choice.name)


def attention_weights(
    query: Array,
    key: Array,
    *,
    mask: masks.Mask | Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    logit_cap: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """Computes the attention weights of `attend` (Vaswani et al. 2017).

        w_ts = exp(l_ts) / (Σ_s' exp(l_ts') + exp(sink)),   l as for `attend`

    Rows sum to 1, to less than 1 with sinks, and to 0 if they may attend to nothing. Dropout is
    not applied.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H].
      mask, bias, scale, logit_cap, sinks: as for `attend`.

    Returns:
      w, [B, N, T, S] in at least float32.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
    """
    request = _checked(query, key, None, mask, bias, scale, logit_cap, sinks, 0.0, None)
    return _weights(request)


def explain_choice(query: Array, key: Array, value: Array, **options: Any) -> KernelChoice:
    """Returns the kernel that `attend(query, key, value, **options)` selects under "auto".

    The attention itself is not computed.

    Args:
      query, key, value: arrays [B, T, N, H], [B, S, K, H] and [B, S, K, V], or
        `jax.ShapeDtypeStruct`s of these shapes.
      **options: as for `attend`, without the implementation.

    Returns:
      The `KernelChoice`: the kernel, the measurements, and why other kernels were not selected.

    Raises:
      ValueError: as for `attend`, or an unknown option.
    """
    defaults: dict[str, Any] = dict.fromkeys(
        ["mask", "bias", "scale", "logit_cap", "sinks", "dropout_key"]
    )
    unknown = sorted(options.keys() - defaults.keys() - {"dropout_rate"})
    if unknown:
        raise ValueError(f"explain_choice: got {unknown}, expected options of attend")
    return _choose(_checked(query, key, value, **(defaults | {"dropout_rate": 0.0} | options)))


@dataclasses.dataclass(frozen=True)
class _Request:
    """Checked arguments of `attend`, in the form in which kernels receive them."""

    arrays: tuple[Array, ...]
    options: dict[str, Any]

    def of_rows(self, rows: Array) -> _Request:
        """Returns the request for a selection of queries, without values.

        Args:
          rows: indices of the queries, int [R].
        """
        query, key = self.arrays[:2]
        B, T, N, _ = query.shape
        mask, bias = self.options["mask"], self.options["bias"]
        if mask is not None:
            allowed = mask.materialize(B, N, T, key.shape[1])
            mask = masks.dense(jnp.take(allowed, rows, axis=2))
        if bias is not None:
            bias = jnp.take(bias, rows, axis=2)
        query = jnp.take(query, rows, axis=1)
        return _Request((query, key), self.options | {"mask": mask, "bias": bias})

    @property
    def is_empty(self) -> bool:
        """True if an array has no elements."""
        return any(_is_zero(size) for array in self.arrays for size in array.shape)

    def run(self, name: str) -> Array:
        """Runs a kernel.

        Raises:
          NotImplementedError: the kernel does not support the request.
        """
        self._expect_sizes(registry.find("kernel", name).capabilities)
        return _kernel(name)(*self.arrays, **self.options)

    def guarded(self, name: str) -> _Request:
        """Returns the request with arrays that raise an error for unsupported derivatives.

        Args:
          name: name of the kernel.
        """
        can = registry.find("kernel", name).capabilities
        if "forward_mode" in can:
            return self

        def guarded(array: Array) -> Array:
            higher = "higher_derivatives" in can
            return derivatives.guard_derivatives(jnp.asarray(array), kernel=name, higher=higher)

        given = {name: self.options[name] for name in ("bias", "sinks")}
        learned = {name: x if x is None else guarded(x) for name, x in given.items()}
        return _Request(tuple(map(guarded, self.arrays)), self.options | learned)

    def _expect_sizes(self, can: Container[str]) -> None:
        """Raises NotImplementedError if the kernel does not support symbolic sizes."""
        if "symbolic" in can:
            return
        for name, array in zip(("query", "key", "value"), self.arrays, strict=False):
            if not shapes.is_known(array):
                got = shapes.show(array.shape)
                raise NotImplementedError(f"{name}: got shape {got}, expected no symbolic size")

    def slower_reason(self, name: str) -> str | None:
        """Returns why a kernel is slower than another one, or None.

        The reason comes from the function `slower_reason` of the kernel's module, if there is one.
        """
        module = sys.modules[registry.load("kernel", name).__module__]
        return module.slower_reason(*self.arrays[:2]) if hasattr(module, "slower_reason") else None

    def unsupported_reason(self, name: str) -> str | None:
        """Returns why a kernel does not support the request, or None if it does.

        The kernel is traced to find out.
        """
        static = {
            k: v for k, v in self.options.items() if k in ("scale", "logit_cap", "dropout_rate")
        }
        traced = {k: v for k, v in self.options.items() if k not in static}
        try:
            # These checks are cheap, so they come before the trace.
            can = registry.find("kernel", name).capabilities
            devices.expect_device(can)
            self._expect_sizes(can)
            kernel = functools.partial(_kernel(name), **static)
            jax.eval_shape(lambda arrays, traced: kernel(*arrays, **traced), self.arrays, traced)
        except NotImplementedError as error:
            return str(error)
        return None


def _kernel(name: str) -> Callable[..., Array]:
    """Returns the kernel with a name.

    A kernel with the capability "per_device" is wrapped, so that it runs on each device of the mesh
    set by `jax.set_mesh`.
    """
    kernel = registry.load("kernel", name)
    if "per_device" not in registry.find("kernel", name).capabilities:
        return kernel
    return lambda *arrays, **options: partition.run_per_device(kernel, arrays, options)


def _weights(request: _Request) -> Array:
    return reference.weights(*request.arrays[:2], **request.options)


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0


def _choose(request: _Request) -> KernelChoice:
    if request.is_empty:
        return KernelChoice(registry.names("kernel")[-1], {}, "an array has no elements")
    return dispatch.choose(
        request.arrays, request.options, request.unsupported_reason, request.slower_reason
    )


def _run_named(name: str, request: _Request) -> Array:
    registry.find("kernel", name)
    if request.is_empty:
        name = registry.names("kernel")[-1]
    guarded = request.guarded(name)
    try:
        return guarded.run(name)
    except NotImplementedError as error:
        others = [other for other in registry.names("kernel") if other != name]
        able = [other for other in others if request.unsupported_reason(other) is None]
        raise NotImplementedError(f"{name}: {error}; supported by: {', '.join(able)}") from error


# A cap of at least 2^100 changes no logit below 2^80, so it is ignored: a large cap may be infinite
# in float32, and 0 times infinity is NaN. A cap below 2^-100 may be 0 in float32 and is rejected.
_NO_CAP, _LEAST_CAP = 2.0**100, 2.0**-100


def _checked_cap(logit_cap: float | None) -> float | None:
    """Returns the cap, or None if it changes nothing."""
    if logit_cap is None:
        return None
    if not logit_cap > 0:
        raise ValueError(f"logit_cap: got {logit_cap}, expected a positive number or None")
    if logit_cap < _LEAST_CAP:
        raise ValueError(f"logit_cap: got {logit_cap}, expected at least {_LEAST_CAP:.0e}")
    return None if logit_cap >= _NO_CAP else logit_cap


def _checked(
    query, key, value, mask, bias, scale, logit_cap, sinks, dropout_rate, dropout_key
) -> _Request:
    sizes = shapes.expect_attention(query, key, value)
    B, N, T = sizes["B"], sizes["N"], sizes["T"]
    sizes.setdefault("S", key.shape[1])
    if bias is not None:
        shapes.expect_floating("bias", bias)
        hint = shapes.layout_hint(jnp.shape(bias)[-2:], (T, sizes["S"]), N)
        shapes.expect_broadcastable("bias", bias, "B N T S", sizes, hint=hint)
    if sinks is not None:
        shapes.expect_floating("sinks", sinks)
        shapes.expect("sinks", sinks, "N", {"N": N})
    if scale is None:
        # If H is 0, all logits are 0 for any scale, and H**-0.5 would divide by zero.
        scale = sizes["H"] ** -0.5 if sizes["H"] else 1.0
    logit_cap = _checked_cap(logit_cap)
    shapes.expect_rate("dropout_rate", dropout_rate, dropout_key)
    if dropout_rate and not (shapes.is_known(query) and shapes.is_known(key)):
        got = f"{dropout_rate} with a query of shape {shapes.show(jnp.shape(query))}"
        raise ValueError(f"dropout_rate: got {got}, expected 0 for symbolic sizes")
    if mask is not None:
        mask = mask if isinstance(mask, masks.Mask) else masks.dense(mask)
        # Checks the sizes without computing the mask; the kernel may never materialize it.
        jax.eval_shape(lambda m: m.materialize(B, N, T, sizes["S"]), mask)
    arrays = (query, key) if value is None else (query, key, value)
    return _Request(
        arrays,
        {
            "mask": mask,
            "bias": bias,
            "scale": scale,
            "logit_cap": logit_cap,
            "sinks": sinks,
            "dropout_rate": dropout_rate,
            "dropout_key": dropout_key if dropout_rate else None,
        },
    )
