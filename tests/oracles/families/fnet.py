"""FNet's transform compared with that of transformers, and compared with its matrix form."""

import numpy as np
from flax import nnx

from attention.normalization import LayerNorm
from attention.sequence.fourier import Fourier
from tests.oracles.problems import differentiate, torch_answers

B, T, D = 2, 12, 10
CASES = ("fnet_basic", "fnet_matrix", "fnet_sublayer")


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns all arrays of a problem, float32."""
    rng = np.random.RandomState(CASES.index(case))
    names = {"x": (B, T, D), "cotangent": (B, T, D)}
    if case.endswith("sublayer"):
        names |= {"scale": (D,), "bias": (D,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _ours(case, a):
    mixed = Fourier(D, 2, orthonormal=False, rngs=nnx.Rngs(0))(a["x"])
    if not case.endswith("sublayer"):
        return {"out": mixed}
    norm = LayerNorm(D, epsilon=1e-12)
    norm.scale[...], norm.bias[...] = a["scale"], a["bias"]
    return {"out": norm(a["x"] + mixed)}


def _theirs(case, a):
    import torch
    from transformers import FNetConfig
    from transformers.models.fnet import modeling_fnet

    config = FNetConfig(
        hidden_size=D,
        use_tpu_fourier_optimizations=case.endswith("matrix"),
        tpu_short_seq_length=T,
        layer_norm_eps=1e-12,
    )
    if not case.endswith("sublayer"):
        return {"out": modeling_fnet.FNetBasicFourierTransform(config)(a["x"])[0]}
    module = modeling_fnet.FNetFourierTransform(config)
    weights = {"output.LayerNorm.weight": a["scale"], "output.LayerNorm.bias": a["bias"]}
    return {"out": torch.func.functional_call(module, weights, (a["x"],))[0]}
