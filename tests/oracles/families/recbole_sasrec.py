"""SASRec compared with RecBole's; made in the environment that `collaborative.py` describes:

python -m tests.oracles.make_golden recbole_sasrec
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.recommendation.models.sequential import SASRec, SASRecConfig
from tests.oracles.problems import differentiate, torch_answers

LIVE = False
PACKAGES = ("torch", "recbole")

USERS, ITEMS, LONGEST, D, N, F = 4, 9, 6, 8, 2, 5
# Layers.
OPTIONS = {"sasrec_one_layer": 1, "sasrec_two_layers": 2}
CASES = tuple(OPTIONS)
LENGTHS = np.array([LONGEST, 3, 1, 4])


def inputs(case: str) -> dict[str, np.ndarray]:
    """Histories of 1 to 6 items, item 0 is padding; and weights, of the layers stacked."""
    rng, layers = np.random.RandomState(CASES.index(case)), OPTIONS[case]

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    history = np.zeros((USERS, LONGEST), np.int64)
    for user, length in enumerate(LENGTHS):
        history[user, :length] = 1 + rng.permutation(ITEMS - 1)[:length]
    arrays = {
        "history": history,
        "items": normal(ITEMS, D),
        "positions": normal(LONGEST, D),
        "norm_scale": 1 + normal(D, scale=0.1),
        "norm_bias": normal(D, scale=0.1),
    }
    sizes = {"query": (D, D), "key": (D, D), "value": (D, D), "out": (D, D)}
    sizes |= {"up": (D, F), "down": (F, D)}
    for name, (inside, outside) in sizes.items():
        arrays[f"{name}_kernel"] = normal(layers, inside, outside, scale=inside**-0.5)
        arrays[f"{name}_bias"] = normal(layers, outside, scale=0.1)
    for name in ("attention_norm", "feedforward_norm"):
        arrays[f"{name}_scale"] = 1 + normal(layers, D, scale=0.1)
        arrays[f"{name}_bias"] = normal(layers, D, scale=0.1)
    return arrays | {"cotangent": normal(USERS, ITEMS)}


def ours(case: str) -> dict[str, np.ndarray]:
    """Scores of all items, and gradients named `d_<input>`, of what this repository computes."""
    config = SASRecConfig(
        model_size=D,
        num_heads=N,
        num_layers=OPTIONS[case],
        feedforward_size=F,
        max_length=LONGEST,
        norm="post",
        input_norm=True,
        norm_epsilon=1e-12,
    )

    def compute(a):
        model = SASRec(config, ITEMS, rngs=nnx.Rngs(0))
        encoder = model.encoder
        model.items.embedding[...] = a["items"]
        encoder.positions.embedding[...] = a["positions"]
        encoder.input_norm.scale[...] = a["norm_scale"]
        encoder.input_norm.bias[...] = a["norm_bias"]
        for i, layer in enumerate(encoder.layers):
            attention = layer.attention
            for name in ("query", "key", "value"):
                part = getattr(attention, name)
                part.kernel[...] = a[f"{name}_kernel"][i].reshape(D, N, D // N)
                part.bias[...] = a[f"{name}_bias"][i].reshape(N, D // N)
            attention.out.kernel[...] = a["out_kernel"][i].reshape(N, D // N, D)
            attention.out.bias[...] = a["out_bias"][i]
            for name in ("up", "down"):
                getattr(layer.feedforward, name).kernel[...] = a[f"{name}_kernel"][i]
                getattr(layer.feedforward, name).bias[...] = a[f"{name}_bias"][i]
            for name in ("attention_norm", "feedforward_norm"):
                getattr(layer, name).scale[...] = a[f"{name}_scale"][i]
                getattr(layer, name).bias[...] = a[f"{name}_bias"][i]
        history = a["history"].astype(jnp.int32)
        return {"out": model.scores({"items": jnp.where(history == 0, -1, history)})}

    return differentiate(compute, inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with RecBole."""
    return torch_answers(lambda a: _recbole(case, a), inputs(case))


def _recbole(case, a):
    import torch
    from recbole.model.sequential_recommender.sasrec import SASRec as RecBoleSASRec

    fields = ("USER_ID_FIELD", "ITEM_ID_FIELD", "LIST_SUFFIX", "NEG_PREFIX")
    config = {name: name for name in (*fields, "ITEM_LIST_LENGTH_FIELD")} | {
        "MAX_ITEM_LIST_LENGTH": LONGEST,
        "device": torch.device("cpu"),
        "n_layers": OPTIONS[case],
        "n_heads": N,
        "hidden_size": D,
        "inner_size": F,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "loss_type": "CE",
    }

    class Data:
        """Stub of the data set interface that the model uses."""

        def num(self, field):
            return ITEMS

    weights = {
        "item_embedding.weight": a["items"],
        "position_embedding.weight": a["positions"],
        "LayerNorm.weight": a["norm_scale"],
        "LayerNorm.bias": a["norm_bias"],
    }
    names = {
        "query": "multi_head_attention.query",
        "key": "multi_head_attention.key",
        "value": "multi_head_attention.value",
        "out": "multi_head_attention.dense",
        "up": "feed_forward.dense_1",
        "down": "feed_forward.dense_2",
    }
    norms = {
        "attention_norm": "multi_head_attention.LayerNorm",
        "feedforward_norm": "feed_forward.LayerNorm",
    }
    for i in range(OPTIONS[case]):
        for ours_name, name in names.items():
            weights[f"trm_encoder.layer.{i}.{name}.weight"] = a[f"{ours_name}_kernel"][i].T
            weights[f"trm_encoder.layer.{i}.{name}.bias"] = a[f"{ours_name}_bias"][i]
        for ours_name, name in norms.items():
            weights[f"trm_encoder.layer.{i}.{name}.weight"] = a[f"{ours_name}_scale"][i]
            weights[f"trm_encoder.layer.{i}.{name}.bias"] = a[f"{ours_name}_bias"][i]
    model = RecBoleSASRec(config, Data()).eval()
    assert dict(model.named_parameters()).keys() == weights.keys()
    asked = (a["history"], torch.tensor(LENGTHS))
    vectors = torch.func.functional_call(model, weights, asked)
    return {"out": vectors @ a["items"].T}
