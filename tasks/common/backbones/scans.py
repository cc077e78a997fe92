"""A scan whose linear maps get the gradients of their weights after the loop, in one product each.

B batch, T steps. The gradient of a scan adds up the gradients of what is used at every step inside
the loop: for a kernel [D, F] that is, T times, a thin product [D, B] x [B, F] and a sum as large as
the kernel. Here inputs and gradients of the map are kept instead, and meet in one product [D, T·B]
x [T·B, F] (Appleyard et al. 2016, "Optimizing Performance of Recurrent Neural Networks on GPUs",
section 3.2). On a mesh the devices' sums meet once, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from attention import recording

Array = jax.Array
Maps = Mapping[str, tuple[Array, Array]]
Apply = Callable[[str, Array], Array]


def applied(maps: Maps) -> Apply:
    """(name, x) -> x W + b, with sums in at least float32, in x's dtype."""

    def apply(name: str, x: Array) -> Array:
        kernel, bias = maps[name]
        sums = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.matmul(x, kernel, preferred_element_type=sums).astype(x.dtype) + bias

    return apply


def scan_maps(
    step: Callable[[Apply, Any, Any], tuple[Any, Any]],
    maps: Maps,
    initial: Any,
    inputs: Any,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Any, Any]:
    """`jax.lax.scan` over a step with linear maps.

    Args:
      step: (apply, carry, input) -> (carry, output), where apply(name, x) is what `applied` says;
        each name once.
      maps: name -> kernel [D, F] and bias [F], of the dtype of what they are applied to.
      initial, inputs, reverse, unroll: as for `jax.lax.scan`.

    Returns:
      The last carry, and the outputs of all steps.

    Raises:
      ValueError: a name is applied twice.
    """
    if recording.active():
        # Whoever looks at weights sees into a plain loop, and asks for no gradients.
        return jax.lax.scan(
            lambda carry, x: step(applied(maps), carry, x),
            initial,
            inputs,
            reverse=reverse,
            unroll=unroll,
        )

    def one(maps: Maps, nudges: Mapping[str, Array], carry: Any, x: Any) -> tuple[Any, Any, Any]:
        """A step, the nudges added to what the maps give; also what the maps were applied to."""
        read: dict[str, Array] = {}
        apply = applied(maps)

        def nudged(name: str, x: Array) -> Array:
            if name in read:
                raise ValueError(f"apply: got {name!r} twice, expected each name once a step")
            read[name] = x
            y = apply(name, x)
            return y + nudges[name] if name in nudges else y

        carry, output = step(nudged, carry, x)
        return carry, output, read

    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    read = jax.eval_shape(one, maps, {}, initial, first)[2]
    maps = {name: maps[name] for name in read}
    nudges = {
        name: jnp.zeros((*x.shape[:-1], maps[name][0].shape[1]), x.dtype)
        for name, x in read.items()
    }
    # What the step reads beside its arguments gets its gradients as from any scan.
    pushed, others = jax.closure_convert(one, maps, nudges, initial, first)
    length = len(jax.tree.leaves(inputs)[0])

    def loop(body, *given):
        return jax.lax.scan(body, *given, reverse=reverse, unroll=unroll)

    @jax.custom_vjp
    def run(maps, initial, inputs, others):
        return loop(lambda carry, x: pushed(maps, nudges, carry, x, *others)[:2], initial, inputs)

    def forward(maps, initial, inputs, others):
        def run_pushed(nudges, initial, inputs, others):
            def body(carry, x):
                carry, output, read = pushed(maps, x[0], carry, x[1], *others)
                return carry, (output, read)

            last, (outputs, read) = loop(body, initial, (nudges, inputs))
            return (last, outputs), read

        zeros = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), nudges)
        found, pull, read = jax.vjp(run_pushed, zeros, initial, inputs, others, has_aux=True)
        return found, (maps, pull, read)

    def backward(kept, gradients):
        maps, pull, read = kept
        pushes, *rest = pull(gradients)
        return ({name: _gradients(maps[name], read[name], pushes[name]) for name in maps}, *rest)

    run.defvjp(forward, backward)
    return run(maps, initial, inputs, others)


def _gradients(weights: tuple[Array, Array], x: Array, gradient: Array) -> tuple[Array, Array]:
    """Of kernel and bias, from the map's inputs and the gradients of what it gave."""
    kernel, bias = weights
    sums = jnp.promote_types(kernel.dtype, jnp.float32)
    x, gradient = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (x, gradient))
    of_kernel = jnp.matmul(x.T, gradient, preferred_element_type=sums)
    return of_kernel.astype(kernel.dtype), jnp.sum(gradient, axis=0, dtype=sums).astype(bias.dtype)
