"""Backends of `benchmarks.attention`: kernels of this project, JAX, Flax and PyTorch.

For one pass ("forward" or "both") of a case, a backend makes a function that runs it and waits for
the result, and a function that returns the results as float32 NumPy arrays. Unsupported cases raise
NotImplementedError with the reason.

PyTorch receives tensors in its preferred layout [B, N, T, H] and its fastest options: `is_causal`
if the mask is only causal, else a boolean mask. The gradient of a bias is computed only if the bias
is learned. Layouts are converted before the timing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.attention_cases import Case, structured_mask

TORCH = "torch"
"""Backend that ratios refer to."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A backend prepared for a case and a pass.

    Attributes:
      run: runs the pass once and waits for it.
      result: function of the output's cotangent that returns NumPy arrays: the output, or the
        gradients of query, key, value and a learned bias.
      temporaries: bytes of temporaries of the compiled program; None if unknown.
    """

    run: Callable[[], Any]
    result: Callable[[np.ndarray], list[np.ndarray]]
    temporaries: int | None = None


def backends(suite: str) -> dict[str, Callable[[Case, str, Mapping[str, Any], int], Prepared]]:
    """Returns the backends by name, with torch first.

    A backend is a function `make(case, passed, arrays, limit)` that returns a `Prepared`. `limit`
    is in bytes: programs with more temporaries raise NotImplementedError.
    """
    found: dict[str, Any] = {}
    if installed("torch"):
        found[TORCH] = functools.partial(_in_torch, suite, False)
        found["torch flex"] = functools.partial(_in_torch, suite, True)
    found |= house_backends()
    found["jax.nn"] = functools.partial(_in_jax, _jax_nn("xla"))
    if suite == "gpu":
        found["jax.nn cudnn"] = functools.partial(_in_jax, _jax_nn("cudnn"))
    found["flax.linen"] = functools.partial(_in_jax, _flax)
    if installed("tokamax"):
        found["tokamax's own"] = functools.partial(_in_jax, _tokamax)
    return found


def house_backends() -> dict[str, Callable[[Case, str, Mapping[str, Any], int], Prepared]]:
    """Returns the backends that are kernels of this project."""
    from attention import registry

    return {name: functools.partial(_in_jax, _house(name)) for name in registry.names("kernel")}


def installed(module: str) -> bool:
    """Returns whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


# ------------------------------------------------------------------ JAX


def _in_jax(attention: Callable, case: Case, passed: str, arrays: Mapping, limit: int) -> Prepared:
    import jax
    import jax.numpy as jnp

    dtype = jnp.dtype(case.dtype)
    given = {
        name: jnp.asarray(value, dtype if np.issubdtype(value.dtype, np.floating) else None)
        for name, value in arrays.items()
        if value is not None
    }
    if case.cached:
        for name in ("key", "value"):
            given[name] = jnp.swapaxes(given[name], 1, 2) + 0
    learned = ["query", "key", "value"] + (["bias"] if case.bias == "learned" else [])

    def forward(given):
        if case.cached:
            swapped = {name: jnp.swapaxes(given[name], 1, 2) for name in ("key", "value")}
            given = given | swapped
        return attention(case, given)

    def both(given):
        fixed = {name: value for name, value in given.items() if name not in learned}
        moving = {name: given[name] for name in learned}
        _, backward = jax.vjp(lambda moving: forward(fixed | moving), moving)
        gradients = backward(given["cotangent"])[0]
        return [gradients[name] for name in learned]

    function = jax.jit(both if passed == "both" else lambda given: [forward(given)])
    try:
        compiled = function.lower(given).compile()
    except NotImplementedError:
        raise
    except (ValueError, RuntimeError) as error:
        # jax.nn raises one of these errors for unsupported cases, for example of cuDNN.
        raise NotImplementedError(str(error).strip().splitlines()[0][:120]) from error
    analysis = compiled.memory_analysis()
    temporaries = getattr(analysis, "temp_size_in_bytes", None)
    if temporaries is not None and temporaries > limit:
        raise NotImplementedError(f"would need {temporaries / 1e9:.1f} GB of temporaries")

    def result(cotangent):
        cotangent = jnp.asarray(cotangent, dtype)
        return [np.asarray(x, np.float32) for x in compiled(given | {"cotangent": cotangent})]

    return Prepared(lambda: jax.block_until_ready(compiled(given)), result, temporaries)


def _house(implementation: str) -> Callable:
    """Returns a function that calls `attend` with the mask of the case."""
    from attention import attend

    def attention(case, given):
        return attend(
            *(given[name] for name in ("query", "key", "value")),
            mask=structured_mask(case, given.get("lengths"), given.get("mask")),
            bias=given.get("bias"),
            implementation=implementation,
        )

    return attention


def _jax_nn(implementation: str) -> Callable:
    import jax

    def attention(case, given):
        whole = case.causal and case.window is None
        options = {"mask": given.get("mask"), "is_causal": whole}
        if whole and case.lengths is False:
            options["mask"] = None
        if case.window is not None:
            options |= {"mask": None, "local_window_size": (case.window, 0)}
        elif case.lengths:
            options |= {"mask": None, "key_value_seq_lengths": given["lengths"]}
            if implementation == "cudnn":
                full = np.full(case.batch, case.queries, np.int32)
                options["query_seq_lengths"] = full
        return jax.nn.dot_product_attention(
            *(given[name] for name in ("query", "key", "value")),
            bias=given.get("bias"),
            implementation=implementation,
            **options,
        )

    return attention


def _flax(case: Case, given: Mapping[str, Any]) -> Any:
    """Calls flax.linen. flax.nnx is not measured, because without dropout it calls jax.nn."""
    import jax.numpy as jnp
    from flax import linen

    query, key, value = (given[name] for name in ("query", "key", "value"))
    group = case.heads // case.key_value_heads
    if group > 1:
        key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    return linen.dot_product_attention(
        query, key, value, bias=given.get("bias"), mask=given.get("mask"), deterministic=True
    )


def _tokamax(case: Case, given: Mapping[str, Any]) -> Any:
    """Calls tokamax with its default implementation."""
    import tokamax

    whole = case.causal and case.window is None and not case.lengths
    return tokamax.dot_product_attention(
        *(given[name] for name in ("query", "key", "value")),
        bias=given.get("bias"),
        mask=None if whole else given.get("mask"),
        is_causal=whole,
    )


# ------------------------------------------------------------------ PyTorch


def _in_torch(
    suite: str, flex: bool, case: Case, passed: str, arrays: Mapping, limit: int
) -> Prepared:
    import torch

    device = "cuda" if suite == "gpu" and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(os.cpu_count())
    else:
        # This selects TF32, as JAX does by default.
        torch.set_float32_matmul_precision("high")
    dtype = getattr(torch, case.dtype)

    def tensor(name):
        value = arrays[name]
        if value is None:
            return None
        if name == "mask" and case.lengths and not (case.causal or case.window):
            # Padding is equal for all queries, and torch broadcasts it.
            value = value[:, :, :1]
        found = torch.from_numpy(np.array(value)).to(device)
        if name in ("query", "key", "value", "cotangent"):
            found = found.transpose(1, 2).contiguous()
        return found.to(dtype) if found.is_floating_point() else found

    given = {name: tensor(name) for name in arrays}
    learned = [given["query"], given["key"], given["value"]]
    if case.bias == "learned":
        learned.append(given["bias"])
    attention = _flex(case, passed, given, device) if flex else _sdpa(case, given)
    for leaf in learned if passed == "both" else ():
        leaf.requires_grad_()

    def work(cotangent):
        if passed == "forward":
            with torch.no_grad():
                return [attention()]
        return torch.autograd.grad(attention(), learned, cotangent)

    def wait(given):
        if device == "cuda":
            torch.cuda.synchronize()
        return given

    def result(cotangent):
        cotangent = torch.from_numpy(cotangent).to(device, dtype).transpose(1, 2).contiguous()
        (*heads_first,) = work(cotangent)
        rows = [x.transpose(1, 2) for x in heads_first[:3]] + heads_first[3:]
        return [x.float().cpu().numpy() for x in rows]

    return Prepared(lambda: wait(work(given["cotangent"])), result)


def _sdpa(case: Case, given: Mapping[str, Any]) -> Callable[[], Any]:
    from torch.nn import functional

    whole = case.causal and case.window is None and not case.lengths and not case.bias
    mask = None if whole else given["mask"] if given["bias"] is None else given["bias"]
    if given["bias"] is not None and given["mask"] is not None:
        raise NotImplementedError("takes a mask and a bias as one argument only")
    return lambda: functional.scaled_dot_product_attention(
        *(given[name] for name in ("query", "key", "value")),
        attn_mask=mask,
        is_causal=whole,
        enable_gqa=case.heads != case.key_value_heads,
    )


def _flex(case: Case, passed: str, given: Mapping[str, Any], device: str) -> Callable[[], Any]:
    """Returns a call of compiled flex_attention with a block mask of the case."""
    import torch
    from torch.nn.attention import flex_attention as flex

    if device == "cpu" and passed == "both":
        raise NotImplementedError("has no backward pass on a CPU")
    # Compilation takes seconds per case, so only long cases are measured.
    if case.bias or case.cached or case.dtype != "float32" or case.queries < 2048:
        raise NotImplementedError("is measured in float32, for T >= 2048, without bias")

    def mask_mod(b, h, t, s):
        if case.window is not None:
            return (s <= t) & (s >= t - case.window)
        return s <= t

    visible = given["mask"]
    rule = (lambda b, h, t, s: visible[0, 0, t, s]) if case.big_bird else mask_mod
    blocks = None
    if case.causal or case.window is not None or case.big_bird:
        blocks = flex.create_block_mask(rule, None, None, case.queries, case.keys, device=device)
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    tensors = [given[name] for name in ("query", "key", "value")]
    grouped = case.heads != case.key_value_heads
    return lambda: compiled(*tensors, block_mask=blocks, enable_gqa=grouped)
