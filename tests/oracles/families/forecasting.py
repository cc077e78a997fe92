"""PatchTST and Informer compared with transformers' models.

Weights by our path, "encoder/layers/0/attention/query/kernel"; their matrices are [out, in].
"""

import unittest.mock

import numpy as np
from flax import nnx

from attention.positions import sinusoidal
from tasks.forecasting.models import build
from tasks.forecasting.models.base import WindowSizes
from tasks.forecasting.models.informer import InformerConfig
from tasks.forecasting.models.patchtst import PatchTSTConfig
from tests.oracles.problems import differentiate, torch_answers
from tests.oracles.torch_weights import TorchWeights, params

B, L, F, C, K, D, N, H, LAYERS = 2, 14, 4, 3, 2, 8, 2, 4, 2
# The first two of 14 values fill no patch.
PATCH, STRIDE = 4, 4
# Of Informer: 3 of 14 queries are active in the first layer, and 3 of 7 in the second.
LABEL = 2
CASES = ("patchtst", "informer")

SIZES = WindowSizes(channels=C, lookback=L, horizon=F, calendar=K)
LAYERS_OF = {
    "model_size": D,
    "num_layers": LAYERS,
    "num_heads": N,
    "feedforward_size": 12,
    "dropout_rate": 0.0,
}
CONFIGS = {
    "patchtst": PatchTSTConfig(patch_length=PATCH, patch_stride=STRIDE, **LAYERS_OF),
    "informer": InformerConfig(mixer="prob_sparse(factor=1)", label_length=LABEL, **LAYERS_OF),
}


def inputs(case: str) -> dict[str, np.ndarray]:
    """Weights by our path, the past and the calendar."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    arrays = {"past": normal(B, L, C, scale=2.0), "cotangent": normal(B, F, C, 1)}
    arrays["calendar"] = normal(B, L + F, K)
    for name, leaf in params(_model(case)).items():
        arrays[name] = np.float32(name.endswith("scale")) + normal(*leaf[...].shape, scale=0.4)
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Forecasts, weights, and gradients named `d_<input>`."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    compute = {"patchtst": _patchtst, "informer": _informer}[case]
    return torch_answers(compute, inputs(case))


def tried(length: int) -> np.ndarray:
    """Keys that all queries of Informer try."""
    return np.random.RandomState(length).randint(length, size=length)


def running() -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of Informer's batch norm, in evaluation."""
    rng = np.random.RandomState(9)
    return rng.normal(size=D).astype(np.float32), rng.uniform(0.5, 2, size=D).astype(np.float32)


def _model(case, arrays=None):
    model = build(CONFIGS[case], SIZES, None, rngs=nnx.Rngs(0))
    for name, leaf in params(model).items():
        if arrays is not None:
            leaf[...] = arrays[name]
    return model


def _ours(case, a):
    model = _model(case, a)
    if case == "informer":
        norm = model.encoder.distil[0].norm
        norm.mean[...], norm.variance[...] = running()
        for layer in model.encoder.layers:
            layer.attention.samples = lambda length: np.broadcast_to(tried(length), (length,) * 2)
    there = np.ones((B, L, C), bool)
    out, weights = model(a["past"], there, a["calendar"], return_weights=True)
    return {"out": out, **weights}


def _patchtst(a):
    import torch
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    config = PatchTSTConfig(
        num_input_channels=C,
        context_length=L,
        prediction_length=F,
        patch_length=PATCH,
        patch_stride=STRIDE,
        num_hidden_layers=LAYERS,
        d_model=D,
        num_attention_heads=N,
        ffn_dim=12,
        norm_type="layernorm",
        pre_norm=False,
        scaling="std",
        pooling_type=None,
        loss="mse",
        attn_implementation="eager",
    )
    weights = TorchWeights(a)
    weights.linear("patches/embedding", "model.encoder.embedder.input_embedding")
    weights.found["model.encoder.positional_encoder.position_enc"] = a[
        "patches/encoder/positions/embedding"
    ]
    for i in range(LAYERS):
        own, other = f"patches/encoder/layers/{i}", f"model.encoder.layers.{i}"
        weights.attention(f"{own}/attention", f"{other}.self_attn")
        weights.norm(f"{own}/attention_norm", f"{other}.norm_sublayer1")
        weights.linear(f"{own}/feedforward/up", f"{other}.ff.0")
        weights.linear(f"{own}/feedforward/down", f"{other}.ff.3")
        weights.norm(f"{own}/feedforward_norm", f"{other}.norm_sublayer3")
    weights.linear("out", "head.projection", (L - PATCH) // STRIDE * D + D)
    model = PatchTSTForPrediction(config).eval()
    assert {*weights.found} == {*model.state_dict()}
    options = {"past_values": a["past"], "output_attentions": True}
    result = torch.func.functional_call(model, weights.found, (), options)
    maps = torch.stack(result.attentions, 1)
    return {
        "out": result.prediction_outputs[..., None],
        "patches": maps.reshape(B, C, *maps.shape[1:]),
    }


def _informer(a):
    import torch
    from transformers import InformerConfig
    from transformers.models.informer import modeling_informer as library

    options = {
        "prediction_length": LABEL + F,
        "context_length": L,
        "d_model": D,
        "encoder_layers": LAYERS,
        "decoder_layers": 1,
        "encoder_attention_heads": N,
        "decoder_attention_heads": N,
        "encoder_ffn_dim": 12,
        "decoder_ffn_dim": 12,
        "sampling_factor": 1,
        "lags_sequence": [1],
        "attn_implementation": "eager",
    }
    configs = {kind: InformerConfig(attention_type=kind, **options) for kind in ("prob", "full")}
    for config in configs.values():
        # Theirs has lags and statistics of the window too.
        config.feature_size = C + K
    encoder = library.InformerEncoder(configs["prob"]).eval()
    decoder = library.InformerDecoder(configs["full"]).eval()
    mean, variance = map(torch.tensor, running())
    found = {}
    for stack, module in (("encoder", encoder), ("decoder", decoder)):
        weights = TorchWeights(a)
        weights.linear(f"{stack}_embedding", "value_embedding.value_projection", bias=False)
        weights.norm(f"{stack}/input_norm", "layernorm_embedding")
        # Their positions continue after the encoder's, ours start again at 0.
        table = np.concatenate(
            [sinusoidal(np.arange(n), D, interleaved=False) for n in (L, LABEL + F)]
        )
        weights.found["embed_positions.weight"] = torch.tensor(table)
        for i in range(LAYERS if stack == "encoder" else 1):
            own, other = f"{stack}/layers/{i}", f"layers.{i}"
            weights.attention(f"{own}/attention", f"{other}.self_attn")
            weights.norm(f"{own}/attention_norm", f"{other}.self_attn_layer_norm")
            if stack == "decoder":
                weights.attention(f"{own}/cross_attention", f"{other}.encoder_attn")
                weights.norm(f"{own}/cross_attention_norm", f"{other}.encoder_attn_layer_norm")
            weights.linear(f"{own}/feedforward/up", f"{other}.fc1")
            weights.linear(f"{own}/feedforward/down", f"{other}.fc2")
            weights.norm(f"{own}/feedforward_norm", f"{other}.final_layer_norm")
        if stack == "encoder":
            kernel = a["encoder/distil/0/convolution/kernel"]
            weights.found["conv_layers.0.downConv.weight"] = kernel.permute(2, 1, 0)
            weights.found["conv_layers.0.downConv.bias"] = a["encoder/distil/0/convolution/bias"]
            weights.norm("encoder/distil/0/norm", "conv_layers.0.norm")
            weights.found["conv_layers.0.norm.running_mean"] = mean
            weights.found["conv_layers.0.norm.running_var"] = variance
        others = {"conv_layers.0.norm.num_batches_tracked"}
        assert {*weights.found} == {*module.state_dict()} - others
        found[stack] = weights.found
    past = torch.cat([a["past"], a["calendar"][:, :L]], -1)
    ahead = torch.cat([a["past"][:, L - LABEL :], torch.zeros(B, F, C)], 1)
    ahead = torch.cat([ahead, a["calendar"][:, L - LABEL :]], -1)
    with unittest.mock.patch("torch.randint", lambda low, high, shape: torch.tensor(tried(high))):
        memory = torch.func.functional_call(
            encoder, found["encoder"], (), {"inputs_embeds": past}
        ).last_hidden_state
    given = {
        "inputs_embeds": ahead,
        "encoder_hidden_states": memory,
        "use_cache": False,
        "output_attentions": True,
    }
    result = torch.func.functional_call(decoder, found["decoder"], (), given)
    out = result.last_hidden_state[:, LABEL:] @ a["out/kernel"].reshape(D, C) + a["out/bias"].T[0]
    cross = torch.stack(result.cross_attentions, 1)[..., LABEL:, :]
    return {"out": out[..., None], "decoder": cross}
