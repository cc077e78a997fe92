"""Nystromformer compared with the self-attention of transformers."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import masks
from attention.sequence.nystrom import Nystromformer
from tests.oracles.problems import differentiate, torch_answers

B, T, N, D = 2, 12, 2, 8
CASES = ("nystromformer_landmarks", "nystromformer_one", "nystromformer_exact")
NAMES = ("query", "key", "value")
# Landmarks and convolution; the last has one for each position, where both compute attention.
SIZES = dict(zip(CASES, ((4, 3), (3, 5), (T, 0)), strict=True))


def sizes(case: str) -> tuple[int, int]:
    """Returns batch and heads. Their scale of Z₀ uses the complete batch and all heads, ours, as in
    the paper, of each matrix: the same for one matrix. Their other option is that of each
    matrix."""
    return (1, 1) if case.endswith("one") else (B, N)


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns all arrays of a problem, float32 unless integer."""
    rng = np.random.RandomState(CASES.index(case))
    batch, heads = sizes(case)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    arrays = {"x": normal(batch, T, D), "cotangent": normal(batch, T, D)}
    for name in NAMES:
        arrays[f"{name}_kernel"] = normal(D, D) / np.float32(np.sqrt(D))
        arrays[f"{name}_bias"] = normal(D)
    if SIZES[case][1]:
        arrays["convolution"] = normal(SIZES[case][1], heads)
    if case.endswith("exact"):
        arrays["lengths"] = np.array([T, 5])
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _ours(case, a):
    heads, (landmarks, size) = sizes(case)[1], SIZES[case]
    module = Nystromformer(D, heads, num_landmarks=landmarks, kernel_size=size, rngs=nnx.Rngs(0))
    for name in NAMES:
        projection = getattr(module, name)
        projection.kernel[...] = a[f"{name}_kernel"].reshape(D, heads, -1)
        projection.bias[...] = a[f"{name}_bias"].reshape(heads, -1)
    # Theirs ends before the output projection.
    module.out.kernel[...] = jnp.eye(D).reshape(heads, -1, D)
    if size:
        module.convolution[...] = a["convolution"]
    if not case.endswith("exact"):
        return {"out": module(a["x"])}
    mask = masks.lengths(key=a["lengths"])
    out, weights = module(a["x"], mask=mask, return_weights=True)
    return {"out": out, "weights": weights}


def _theirs(case, a):
    import torch
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import (
        NystromformerSelfAttention,
    )

    landmarks, size = SIZES[case]
    config = NystromformerConfig(
        hidden_size=D,
        num_attention_heads=sizes(case)[1],
        num_landmarks=landmarks,
        segment_means_seq_len=T,
        conv_kernel_size=size or 1,
        attention_probs_dropout_prob=0.0,
    )
    module = NystromformerSelfAttention(config)
    if not size:
        module.conv_kernel_size = None  # The config takes only an int.
    module.init_option = "original" if case.endswith("one") else "exact"
    weights = {}
    for name in NAMES:
        weights[f"{name}.weight"] = a[f"{name}_kernel"].T
        weights[f"{name}.bias"] = a[f"{name}_bias"]
    if size:
        weights["conv.weight"] = a["convolution"].T[:, None, :, None]
    if not case.endswith("exact"):
        return {"out": torch.func.functional_call(module, weights, (a["x"],))[0]}
    hidden = torch.arange(T) >= a["lengths"][:, None, None, None]
    bias = torch.where(hidden, torch.finfo(torch.float32).min, 0.0)
    out, shares = torch.func.functional_call(module, weights, (a["x"], bias, True))
    return {"out": out, "weights": shares}
