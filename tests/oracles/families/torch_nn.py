"""attend, MultiHeadAttention and GRU compared with PyTorch's."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import MultiHeadAttention, attend, masks
from tasks.common.backbones.recurrent import Bidirectional
from tests.oracles.problems import differentiate, torch_answers

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


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns all arrays of a problem, float32 unless boolean or integer."""
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
    compute = {"attend": _attend, "multi": _multi_head, "gru": _gru}[case.split("_")[0]]
    return differentiate(lambda arrays: compute(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with PyTorch."""
    compute = {"attend": _torch_attend, "multi": _torch_multi_head, "gru": _torch_gru}
    return torch_answers(lambda a: compute[case.split("_")[0]](case, a), inputs(case))


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
    module = Bidirectional(6, 4, cell="gru", rngs=nnx.Rngs(0))
    for way in ("forward", "backward"):
        for name in ("input", "recurrent"):
            projection = getattr(getattr(module, way), name)
            projection.kernel[...] = a[f"{way}_{name}_kernel"]
            projection.bias[...] = a[f"{way}_{name}_bias"]
    valid = jnp.arange(T) < a["lengths"][:, None] if case.endswith("padded") else None
    states, final = module(a["x"], valid=valid)
    # PyTorch leaves 0 at padding, we hold the state: compared are the real positions.
    return {"out": states if valid is None else states * valid[..., None], "final": final}


def _torch_attend(case, a):
    from torch.nn import functional

    query, key, value = (a[name].transpose(1, 2) for name in ("query", "key", "value"))
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=a.get("allowed", a.get("bias")),
        is_causal=case.endswith("causal"),
        scale=0.3 if case.endswith("scale") else None,
        enable_gqa=case.endswith("grouped_query"),
    )
    return {"out": out.transpose(1, 2)}


def _torch_multi_head(case, a):
    import torch

    module = torch.nn.MultiheadAttention(D, N, batch_first=True)
    # As functions of our arrays, so that these have the gradients: kernels are transposed there.
    names = ("query", "key", "value")
    weights = {
        "in_proj_weight": torch.cat([a[f"{name}_kernel"].T for name in names]),
        "in_proj_bias": torch.cat([a[f"{name}_bias"] for name in names]),
        "out_proj.weight": a["out_kernel"].T,
        "out_proj.bias": a["out_bias"],
    }
    source = a.get("memory", a["x"])
    options = {"need_weights": True, "average_attn_weights": False}
    if case.endswith("key_padding"):
        options["key_padding_mask"] = torch.arange(T) >= a["lengths"][:, None]
    if case.endswith("causal"):
        options["attn_mask"] = torch.full((T, T), -math.inf).triu(1)
    out, shares = torch.func.functional_call(module, weights, (a["x"], source, source), options)
    return {"out": out, "weights": shares}


def _torch_gru(case, a):
    import torch

    module = torch.nn.GRU(6, 4, batch_first=True, bidirectional=True)
    weights = {}
    for way, suffix in (("forward", ""), ("backward", "_reverse")):
        for name, letters in (("input", "ih"), ("recurrent", "hh")):
            weights[f"weight_{letters}_l0{suffix}"] = a[f"{way}_{name}_kernel"].T
            weights[f"bias_{letters}_l0{suffix}"] = a[f"{way}_{name}_bias"]
    x, pad = a["x"], torch.nn.utils.rnn
    if case.endswith("padded"):
        x = pad.pack_padded_sequence(x, a["lengths"], batch_first=True)
    out, final = torch.func.functional_call(module, weights, (x,))
    if case.endswith("padded"):
        out, _ = pad.pad_packed_sequence(out, batch_first=True, total_length=T)
    return {"out": out, "final": final.transpose(0, 1).reshape(B, -1)}
