"""The problems of cases.py, answered by PyTorch."""

import math

import numpy as np
import torch
from torch.nn import functional

from tests.oracles.cases import B, D, N, T, inputs


def theirs(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`."""
    arrays = {name: torch.tensor(array) for name, array in inputs(case).items()}
    cotangent = arrays.pop("cotangent")
    learned = {k: v.requires_grad_() for k, v in arrays.items() if v.dtype == torch.float32}
    compute = {"attend": _attend, "multi": _multi_head, "gru": _gru}[case.split("_")[0]]
    results = compute(case, arrays)
    (results["out"] * cotangent).sum().backward()
    results |= {f"d_{name}": array.grad for name, array in learned.items()}
    return {name: array.detach().numpy() for name, array in results.items()}


def _attend(case, a):
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


def _multi_head(case, a):
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


def _gru(case, a):
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
