"""Differential attention compared with DiffLlama of transformers."""

import numpy as np
from flax import nnx

from attention import masks
from attention.sequence.differential import DifferentialAttention, lambda_init_of_layer
from tests.oracles.problems import differentiate, torch_answers

B, T, N, H, D = 2, 6, 4, 4, 12
EPSILON, BASE = 1e-3, 100.0
CASES = ("diffllama", "diffllama_grouped", "diffllama_padded")
VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def _key_value_heads(case: str) -> int:
    return 2 if case.endswith("grouped") else N


def _layer(case: str) -> int:
    """From 1 on, as in the paper; theirs counts from 0."""
    return 1 + CASES.index(case)


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns all arrays of a problem, float32 unless integer."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    K = _key_value_heads(case)
    arrays = {"x": normal(B, T, D), "cotangent": normal(B, T, D)}
    arrays |= {name: normal(H) / 2 for name in VECTORS}
    for name, heads in (("query", N), ("key", K), ("value", K)):
        arrays[f"{name}_kernel"] = normal(D, heads, 2, H) / np.float32(np.sqrt(D))
        arrays[f"{name}_bias"] = normal(heads, 2, H)
    arrays["out_kernel"] = normal(N, 2 * H, D) / np.float32(np.sqrt(N * 2 * H))
    arrays["out_bias"] = normal(D)
    arrays["lengths"] = np.array([T, 3] if case.endswith("padded") else [T, T])
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _ours(case, a):
    module = DifferentialAttention(
        D,
        N,
        key_value_heads=_key_value_heads(case),
        head_size=H,
        lambda_init=lambda_init_of_layer(_layer(case)),
        positions=f"rope(base={BASE})",
        epsilon=EPSILON,
        rngs=nnx.Rngs(0),
    )
    for name in VECTORS:
        getattr(module, name)[...] = a[name]
    for name in ("query", "key", "value", "out"):
        projection = getattr(module, name)
        projection.kernel[...] = a[f"{name}_kernel"].reshape(projection.kernel.shape)
        projection.bias[...] = a[f"{name}_bias"].reshape(projection.bias.shape)
    # Theirs has no scale in its norm: ours stays 1.
    mask = masks.causal() & masks.lengths(key=a["lengths"])
    out, weights = module(a["x"], mask=mask, return_weights=True)
    return {"out": out, "weights": weights}


def _theirs(case, a):
    import torch
    from transformers import DiffLlamaConfig
    from transformers.models.diffllama import modeling_diffllama as diffllama

    config = DiffLlamaConfig(
        hidden_size=D,
        num_attention_heads=2 * N,
        num_key_value_heads=2 * _key_value_heads(case),
        head_dim=H,
        attention_bias=True,
        attention_dropout=0.0,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        attn_implementation="eager",
    )
    module = diffllama.DiffLlamaAttention(config, layer_idx=_layer(case) - 1)
    weights = {name: a[name] for name in VECTORS}
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        # Theirs has the first halves of all heads before the second ones; ours keeps those of a
        # head together.
        kernel, bias = a[f"{name}_kernel"].transpose(1, 2), a[f"{name}_bias"].transpose(0, 1)
        weights[f"{letter}_proj.weight"] = kernel.reshape(D, -1).T
        weights[f"{letter}_proj.bias"] = bias.reshape(-1)
    weights["o_proj.weight"] = a["out_kernel"].reshape(-1, D).T
    weights["o_proj.bias"] = a["out_bias"]
    missing = dict(module.named_parameters()).keys() ^ weights.keys()
    assert not missing, missing
    places = torch.arange(T)
    hidden = (places > places[:, None]) | (places >= a["lengths"][:, None, None, None])
    bias = torch.where(hidden, torch.finfo(torch.float32).min, 0.0)
    rotary = diffllama.DiffLlamaRotaryEmbedding(config)(a["x"], places[None])
    options = {"attention_mask": bias, "position_embeddings": rotary}
    out, maps = torch.func.functional_call(module, weights, (a["x"],), options)
    first, second = maps.chunk(2, dim=1)
    strength = (
        torch.exp(a["lambda_q1"] @ a["lambda_k1"])
        - torch.exp(a["lambda_q2"] @ a["lambda_k2"])
        + module.lambda_init
    )
    return {"out": out, "weights": first - strength * second}
