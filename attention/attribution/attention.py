"""Gradients of a score with respect to the attention weights of any model.

Dimension letters are defined in `attention.inspect`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import inspect, recording, shapes
from attention.observation import Layers, choose_layers, prepare, sender, trace

Array = jax.Array


class AttentionGradients(NamedTuple):
    """Attention weights and gradients of a score, keyed by the names of `inspect.capture`.

    Attributes:
      weights: the weights W of each attention, by name. The weights of a mixer are [B, N, T, S];
        see `inspect.capture` for the other shapes.
      gradients: ∂f / ∂W of each attention, by name, of the shape of W.
    """

    weights: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


def attention_gradients(
    model: nnx.Module | Callable[..., Any],
    *inputs: Any,
    score: Callable[[Any], Array],
    layers: Layers = None,
    method: str = "__call__",
    **keywords: Any,
) -> AttentionGradients:
    """Computes attention weights and the gradients of a score (Chefer et al. 2021, section 3.1).

        ∂f / ∂w_ts = g_t · v_s,   g_t = ∂f / ∂o_t,   o_t = Σ_s w_ts v_s

    The model is not changed and runs with its own kernels, including fused ones. The gradient of
    the weights is computed from the values v and from the gradient g of the attention's result.
    The weights of each attention are independent variables: the gradient passes through all later
    layers, but not through the softmax of these weights, as with `retain_grad` in PyTorch. At
    masked positions, the weights are 0, but the gradient is not. Location-aware alignment also uses
    the weights in later steps; the gradient does not include this use.

    Attention inside jit, scan, remat, cond and vmap is supported; inside `jax.lax.while_loop` it is
    not. All mechanisms with the capability "gradients" are supported, as is `attend` with any
    kernel. Each call traces and compiles the model several times.

    Args:
      model: a module, or any function of arrays, which may call modules.
      *inputs, **keywords: arguments of the model. Arrays are traced, other values are static.
      score: f, a function of the model's result. It returns a scalar, or scores [B] of independent
        examples, which are summed.
      layers: names of the attention calls to include, as for `inspect.capture`; all if None.
      method: name of the method to call.

    Returns:
      `AttentionGradients`: weights [B, N, T, S] and gradients of the same shape, by name, in at
      least float32. Gradients of an attention that does not affect the score are 0.

    Raises:
      ValueError: the model has no attention, layers do not exist, or the score is neither a scalar
        nor [B]; or an attention runs several times, but only some of its calls affect the score.
      NotImplementedError: a mechanism does not support gradients of its weights, or applies
        dropout to them; set `layers` to select other attention.
    """
    run, arrays = prepare(model, method, inputs, keywords)

    def check(name: str, weights: recording.Weights, shape: tuple[int, ...]) -> None:
        seen[name] = weights.mix is not None

    seen: dict[str, bool] = {}
    chosen = choose_layers(layers, trace(run, arrays, check))
    for name, can in seen.items():
        if name in chosen and not can:
            expected = "a mechanism with the capability 'gradients', without dropout"
            raise NotImplementedError(
                f"{name}: got attention without gradients of its weights, expected {expected} "
                f"(set layers= to select other attention)"
            )
    weights = inspect.capture(
        model, *inputs, layers=sorted(map(_exactly, chosen)), method=method, **keywords
    )
    taken: dict[str, list[np.ndarray]] = {name: [] for name in weights}
    variables: list[Array] = []

    def total(variable: Array, *arrays: Any) -> Array:
        variables.append(variable)
        # `jax.grad` passes arguments that it does not differentiate on unchanged. Mapping the tree
        # creates new Flax variables, which belong to the trace of `jax.grad`.
        scores = score(run(*jax.tree.map(lambda leaf: leaf, arrays)))
        if jnp.ndim(scores) > 1:
            got = shapes.show(jnp.shape(scores))
            raise ValueError(f"score: got shape {got}, expected a scalar or [B]")
        shapes.expect_floating("score", scores)
        return jnp.sum(scores)

    def tap(name: str, recorded: recording.Weights, shape: tuple[int, ...]) -> Array | None:
        if name not in taken:
            return None
        return _tapped(variables[-1], recorded, sender(taken[name]))

    trace(total, (jnp.zeros(()), *arrays), tap, lambda start: jax.jit(jax.grad(start)))
    jax.effects_barrier()
    gradients = {name: _gathered(name, calls, weights[name]) for name, calls in taken.items()}
    return AttentionGradients(weights, gradients)


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}$"


def _tapped(variable: Array, recorded: recording.Weights, send: Callable[[Array], Any]) -> Array:
    """Returns the result of an attention; its backward pass sends the gradient of the weights.

    Args:
      variable: a scalar with respect to which the score is differentiated. It does not affect the
        result; its gradient is 0.
      recorded: weights and result of the attention.
      send: function that receives the gradient with respect to the weights.
    """
    assert recorded.result is not None
    assert recorded.mix is not None
    result, mix = jnp.asarray(recorded.result), recorded.mix
    shape = jax.eval_shape(recorded)
    # The function is affine, so its derivative at 0 equals its derivative at the weights.
    _, backward = jax.vjp(
        lambda weights: mix(weights).astype(result.dtype), jnp.zeros(shape.shape, shape.dtype)
    )
    # The values get their gradient through `result`, so no gradient flows through `backward`.
    leaves, tree = jax.tree.flatten(backward)
    leaves = [jax.lax.stop_gradient(leaf) for leaf in leaves]

    @jax.custom_vjp
    def pass_on(variable: Array, result: Array, leaves: list[Array]) -> Array:
        return result

    def forward(variable, result, leaves):
        return result, leaves

    def back(leaves, cotangent):
        (gradient,) = jax.tree.unflatten(tree, leaves)(cotangent)
        send(gradient)
        return jnp.zeros(()), cotangent, None

    pass_on.defvjp(forward, back)
    return pass_on(variable, result, leaves)


def _gathered(name: str, calls: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Stacks the gradients of an attention in the order of its calls.

    The backward pass sends the gradient of the last call first.
    """
    if not calls:
        return np.zeros_like(weights)
    if calls[0].shape == weights.shape and len(calls) == 1:
        return calls[0]
    if len(calls) != len(weights) or calls[0].shape != weights.shape[1:]:
        raise ValueError(
            f"{name}: got {len(calls)} calls that affect the score, expected all {len(weights)} "
            f"calls or none"
        )
    return np.stack(calls[::-1])
