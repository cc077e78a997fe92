"""A Conformer block against transformers' of SeamlessM4T v2, whose convolution has a layer norm and
looks back only, as ours can.

Weights by our path, "layers/0/attention/query/kernel"; their matrices are [out, in].
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.conformer import Conformer
from tasks.common.backbones.transformer import EncoderConfig
from tests.oracles.problems import differentiate, torch_answers
from tests.oracles.torch_weights import TorchWeights, params

B, T, D, N, W, FF = 2, 9, 8, 2, 5, 12
# Frames of each that are real.
LENGTHS = (9, 6)
CASES = ("conformer_block", "conformer_block_padded")
# Theirs has none.
WITHOUT = ("layers/0/convolution/expand/bias", "layers/0/convolution/down/bias")
CONFIG = EncoderConfig(
    model_size=D,
    num_layers=1,
    num_heads=N,
    feedforward_size=FF,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    activation="silu",
    positions="none",
    max_length=T,
)
PROJECTIONS = {"query": "linear_q", "key": "linear_k", "value": "linear_v", "out": "linear_out"}


def inputs(case: str) -> dict[str, np.ndarray]:
    """Weights by our path, and frames."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    arrays = {"x": normal(B, T, D), "cotangent": normal(B, T, D)}
    for name, leaf in params(Conformer(CONFIG, W, True, rngs=nnx.Rngs(0))).items():
        if name not in WITHOUT:
            arrays[name] = np.float32(name.endswith("scale")) + normal(*leaf.shape, scale=0.4)
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Returns outputs at real frames, and gradients named `d_<input>`."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _valid(case: str) -> np.ndarray:
    lengths = LENGTHS if case.endswith("padded") else (T, T)
    return np.arange(T) < np.array(lengths)[:, None]


def _ours(case, a):
    model = Conformer(CONFIG, W, True, rngs=nnx.Rngs(0))
    for name, leaf in params(model).items():
        leaf[...] = a[name] if name in a else jnp.zeros_like(leaf[...])
    valid = _valid(case)
    return {"out": jnp.where(valid[..., None], model(a["x"], valid=jnp.asarray(valid)), 0)}


def _theirs(case, a):
    import torch
    from transformers import SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2 import modeling_seamless_m4t_v2 as library

    config = SeamlessM4Tv2Config(
        hidden_size=D,
        speech_encoder_attention_heads=N,
        speech_encoder_intermediate_size=FF,
        speech_encoder_dropout=0.0,
        speech_encoder_hidden_act="swish",
        conv_depthwise_kernel_size=W,
        position_embeddings_type="none",
        attn_implementation="eager",
    )
    block = library.SeamlessM4Tv2ConformerEncoderLayer(config).eval()
    own, weights = "layers/0", TorchWeights(a)
    for ours, theirs in (("first_", "ffn1"), ("", "ffn2")):
        weights.norm(
            f"{own}/{ours}{'feedforward_' if not ours else ''}norm", f"{theirs}_layer_norm"
        )
        weights.linear(f"{own}/{ours}feedforward/up", f"{theirs}.intermediate_dense")
        weights.linear(f"{own}/{ours}feedforward/down", f"{theirs}.output_dense")
    weights.norm(f"{own}/attention_norm", "self_attn_layer_norm")
    weights.attention(f"{own}/attention", "self_attn", PROJECTIONS)
    weights.norm(f"{own}/convolution_norm", "conv_module.layer_norm")
    for name, other in (("expand", "pointwise_conv1"), ("down", "pointwise_conv2")):
        kernel = a[f"{own}/convolution/{name}/kernel"]
        weights.found[f"conv_module.{other}.weight"] = kernel.T[..., None]
    depthwise = a[f"{own}/convolution/depthwise"].T[:, None]
    weights.found["conv_module.depthwise_conv.weight"] = depthwise
    weights.norm(f"{own}/convolution/norm", "conv_module.depthwise_layer_norm")
    weights.norm(f"{own}/final_norm", "final_layer_norm")
    assert {*weights.found} == {*block.state_dict()}
    valid = torch.tensor(_valid(case))
    hidden = torch.where(valid, 0.0, torch.finfo(torch.float32).min)[:, None, None].expand(
        B, 1, T, T
    )
    options = {"attention_mask": hidden, "conv_attention_mask": valid}
    out = torch.func.functional_call(block, weights.found, (a["x"],), options)
    return {"out": torch.where(valid[..., None], out, 0.0)}
