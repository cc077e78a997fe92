"""Additive and dot alignment against Keras' AdditiveAttention and Attention, on its JAX backend.

Keras attends from all queries at once, and takes queries and keys that are projected already: W q
and U h + b are made here, and its `scale` is our v.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import AdditiveAlignment, ConcatAlignment, DotAlignment
from tests.oracles.problems import differentiate

PACKAGES = ("torch", "keras")
B, T, S, Q, D, A = 2, 4, 7, 5, 6, 3
CASES = ("keras_additive", "keras_additive_masked", "keras_concat", "keras_dot", "keras_dot_masked")


def inputs(case: str) -> dict[str, np.ndarray]:
    """Queries of T steps, states and weights, float32; which states are real."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    dot = case.startswith("keras_dot")
    arrays = {"queries": normal(B, T, D if dot else Q), "states": normal(B, S, D)}
    arrays["cotangent"] = normal(B, T, D)
    if not dot:
        arrays |= {"W": normal(Q, A), "U": normal(D, A), "v": normal(A)}
    if case.startswith("keras_additive"):
        arrays["b"] = normal(A)
    if case.endswith("masked"):
        arrays["valid"] = np.array([[1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0]], bool)
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Returns a scan of steps."""
    return differentiate(lambda arrays: _steps(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with Keras."""
    return differentiate(lambda arrays: _keras(case, arrays), inputs(case))


def _steps(case, a):
    if case.startswith("keras_dot"):
        alignment = DotAlignment(D, D, rngs=nnx.Rngs(0))
    elif case == "keras_concat":
        alignment = ConcatAlignment(Q, D, hidden_size=A, rngs=nnx.Rngs(0))
        alignment.hidden.kernel[...] = jnp.concatenate([a["W"], a["U"]])
        alignment.score[...] = a["v"]
    else:
        alignment = AdditiveAlignment(Q, D, hidden_size=A, rngs=nnx.Rngs(0))
        alignment.query.kernel[...], alignment.key.kernel[...] = a["W"], a["U"]
        alignment.key.bias[...], alignment.score[...] = a["b"], a["v"]
    memory = alignment.prepare(a["states"], valid=a.get("valid"))

    def step(state, query):
        context, weights, state = alignment.step(query, memory, state)
        return state, (context, weights)

    queries = jnp.swapaxes(a["queries"], 0, 1)
    _, (out, weights) = jax.lax.scan(step, alignment.initial_state(memory), queries)
    return {"out": jnp.swapaxes(out, 0, 1), "weights": jnp.swapaxes(weights, 0, 1)}


def _keras(case, a):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    assert keras.backend.backend() == "jax"
    query, key = a["queries"], a["states"]
    if case.startswith("keras_dot"):
        layer, weights = keras.layers.Attention(score_mode="dot"), []
    else:
        layer, weights = keras.layers.AdditiveAttention(), [a["v"]]
        query, key = query @ a["W"], key @ a["U"] + a.get("b", 0.0)
    sequences = [query, a["states"], key]
    layer.build([x.shape for x in sequences])
    (out, shares), _ = layer.stateless_call(
        weights,
        [variable.value for variable in layer.non_trainable_variables],
        sequences,
        mask=[None, a["valid"]] if "valid" in a else None,
        return_attention_scores=True,
    )
    return {"out": out, "weights": shares}
