"""Problems posed to attend, MultiHeadAttention and GRU here and in PyTorch: inputs and our answer.

Every problem is a function of a seed alone. `ours` gives outputs and gradients by name;
`theirs.py` gives the same names by PyTorch, and golden/ keeps what that gave.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import MultiHeadAttention, attend, masks
from tasks.common.backbones.recurrent import BidirectionalGRU

B, T, S, N, H = 2, 5, 7, 4, 4
D = N * H
ATTEND = ("plain", "causal", "boolean_mask", "bias", "grouped_query", "scale", "value_size")
MULTI_HEAD = ("self", "key_padding", "causal", "cross")
GRU = ("forward", "padded")
CASES = (
    *(f"attend_{name}" for name in ATTEND),
    *(f"multi_head_{name}" for name in MULTI_HEAD),
    *(f"gru_{name}" for name in GRU),
)
# float32 on both sides, sums of up to some hundred terms of order 1.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def inputs(case: str) -> dict[str, np.ndarray]:
    """All arrays of a problem, float32 unless boolean or integer."""
    # The platform's own generator, whose stream NumPy keeps for good.
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if case.startswith("attend"):
        k = 2 if case.endswith("grouped_query") else N
        v = 5 if case.endswith("value_size") else H
        s = T if case.endswith("causal") else S
        arrays = {"query": normal(B, T, N, H), "key": normal(B, s, k, H)}
        arrays |= {"value": normal(B, s, k, v), "cotangent": normal(B, T, N, v)}
        if case.endswith("boolean_mask"):
            allowed = rng.uniform(size=(B, 1, T, S)) < 0.6
            allowed[..., 0] = True  # PyTorch gives NaN for an empty row.
            arrays["allowed"] = allowed
        if case.endswith("bias"):
            arrays["bias"] = normal(B, N, T, S)
        return arrays
    if case.startswith("multi_head"):
        arrays = {"x": normal(B, T, D), "cotangent": normal(B, T, D)}
        if case.endswith("cross"):
            arrays["memory"] = normal(B, S, D)
        for name in ("query", "key", "value", "out"):
            arrays[f"{name}_kernel"] = normal(D, D) / np.float32(np.sqrt(D))
            arrays[f"{name}_bias"] = normal(D)
        arrays["lengths"] = np.array([T, 3])
        return arrays
    arrays = {"x": normal(B, T, 6), "cotangent": normal(B, T, 8), "lengths": np.array([T, 3])}
    for way in ("forward", "backward"):
        for name, size in (("input", 6), ("recurrent", 4)):
            arrays[f"{way}_{name}_kernel"] = normal(size, 12) / 2
            arrays[f"{way}_{name}_bias"] = normal(12)
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    arrays = {name: jnp.asarray(array) for name, array in inputs(case).items()}
    cotangent = arrays.pop("cotangent")
    compute = {"attend": _attend, "multi": _multi_head, "gru": _gru}[case.split("_")[0]]
    learned = {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    fixed = {k: v for k, v in arrays.items() if k not in learned}

    @jax.jit
    def run(learned):
        results, backward = jax.vjp(lambda learned: compute(case, learned | fixed), learned)
        first = {name: jnp.zeros_like(array) for name, array in results.items()}
        return results, backward(first | {"out": cotangent})[0]

    results, gradient = run(learned)
    results = dict(results) | {f"d_{name}": array for name, array in gradient.items()}
    return {name: np.asarray(array) for name, array in results.items()}


def _attend(case, a):
    mask = masks.causal() if case.endswith("causal") else None
    mask = masks.dense(a["allowed"]) if "allowed" in a else mask
    scale = 0.3 if case.endswith("scale") else None
    return {
        "out": attend(a["query"], a["key"], a["value"], mask=mask, bias=a.get("bias"), scale=scale)
    }


def _multi_head(case, a):
    module = MultiHeadAttention(D, N, rngs=nnx.Rngs(0))
    for name in ("query", "key", "value", "out"):
        projection = getattr(module, name)
        projection.kernel[...] = a[f"{name}_kernel"].reshape(projection.kernel[...].shape)
        projection.bias[...] = a[f"{name}_bias"].reshape(projection.bias[...].shape)
    mask = {
        "multi_head_key_padding": masks.lengths(key=a["lengths"]),
        "multi_head_causal": masks.causal(),
    }.get(case)
    out, weights = module(a["x"], a.get("memory"), mask=mask, return_weights=True)
    return {"out": out, "weights": weights}


def _gru(case, a):
    module = BidirectionalGRU(6, 4, rngs=nnx.Rngs(0))
    for way in ("forward", "backward"):
        for name in ("input", "recurrent"):
            projection = getattr(getattr(module, way), name)
            projection.kernel[...] = a[f"{way}_{name}_kernel"]
            projection.bias[...] = a[f"{way}_{name}_bias"]
    valid = jnp.arange(T) < a["lengths"][:, None] if case.endswith("padded") else None
    states, final = module(a["x"], valid=valid)
    # PyTorch leaves 0 at padding, we hold the state: compared are the real positions.
    return {"out": states if valid is None else states * valid[..., None], "final": final}
