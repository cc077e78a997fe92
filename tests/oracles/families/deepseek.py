"""Multi-head latent attention compared with DeepSeek V2 and V3 of transformers."""

import math

import numpy as np
from flax import nnx

from attention import masks
from attention.sequence.latent import LatentAttention
from tests.oracles.problems import differentiate, torch_answers

B, T, N, D = 2, 6, 2, 12
A, C, H, R, V = 7, 6, 4, 8, 3  # C and R even: theirs views both as complex numbers.
# v2 turns interleaved pairs, v3 either; theirs leaves v3's turned features in another order, the
# same in query and key, so that no product sees it.
CASES = ("mla_v2", "mla_v2_direct_query", "mla_v3", "mla_v3_halves")
BASE = 100.0


def _has_bias(case: str) -> bool:
    return case in ("mla_v2", "mla_v3_halves")


def _query_rank(case: str) -> int | None:
    return None if case.endswith("direct_query") else A


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns all arrays of a problem, float32."""
    rng = np.random.RandomState(CASES.index(case))
    arrays = {"x": (B, T, D), "cotangent": (B, T, D)}
    arrays |= {"latent_kernel": (D, C), "rotary_key_kernel": (D, R), "latent_scale": (C,)}
    if _query_rank(case) is not None:
        arrays |= {"query_latent_kernel": (D, A), "query_scale": (A,)}
    arrays["query_kernel"] = (_query_rank(case) or D, N, H + R)
    arrays |= {"key_kernel": (C, N, H), "value_kernel": (C, N, V), "out_kernel": (N, V, D)}
    if _has_bias(case):
        arrays |= {"latent_bias": (C,), "rotary_key_bias": (R,), "out_bias": (D,)}
        arrays["query_latent_bias"] = (A,)

    def draw(name, shape):
        fan_in = math.prod(shape[:2]) if name == "out_kernel" else shape[0]
        scale = fan_in**-0.5 if name.endswith("kernel") else 1.0
        return (scale * rng.normal(size=shape)).astype(np.float32)

    return {name: draw(name, shape) for name, shape in arrays.items()}


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _ours(case, a):
    module = LatentAttention(
        D,
        N,
        key_value_rank=C,
        query_rank=_query_rank(case),
        head_size=H,
        rotary_size=R,
        value_head_size=V,
        positions=f"rope(base={BASE}, interleaved={not case.endswith('halves')})",
        use_bias=_has_bias(case),
        rngs=nnx.Rngs(0),
    )
    module.latent_norm.scale[...] = a["latent_scale"]
    if "query_scale" in a:
        module.query_norm.scale[...] = a["query_scale"]
    for name, array in a.items():
        owner, _, kind = name.rpartition("_")
        if kind in ("kernel", "bias"):
            getattr(getattr(module, owner), kind)[...] = array
    out, weights = module(a["x"], mask=masks.causal(), return_weights=True)
    return {"out": out, "weights": weights}


def _theirs(case, a):
    import torch
    from transformers import DeepseekV2Config, DeepseekV3Config
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    options = {
        "hidden_size": D,
        "num_attention_heads": N,
        "num_key_value_heads": N,
        "q_lora_rank": _query_rank(case),
        "kv_lora_rank": C,
        "qk_nope_head_dim": H,
        "qk_rope_head_dim": R,
        "v_head_dim": V,
        "attention_bias": _has_bias(case),
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": BASE},
        "attn_implementation": "eager",
    }
    if case.startswith("mla_v2"):
        config = DeepseekV2Config(**options)
        module, rotary = v2.DeepseekV2Attention(config, 0), v2.DeepseekV2RotaryEmbedding(config)
    else:
        config = DeepseekV3Config(**options, rope_interleave=not case.endswith("halves"))
        module, rotary = v3.DeepseekV3Attention(config, 0), v3.DeepseekV3RotaryEmbedding(config)
    assert module.scaling == (H + R) ** -0.5
    # Theirs keeps latent and rotary key, and key and value of each head, in one matrix.
    down = [a["latent_kernel"], a["rotary_key_kernel"]]
    weights = {
        "kv_a_proj_with_mqa.weight": torch.cat(down, dim=1).T,
        "kv_a_layernorm.weight": a["latent_scale"],
        "kv_b_proj.weight": torch.cat([a["key_kernel"], a["value_kernel"]], dim=2).reshape(C, -1).T,
        "o_proj.weight": a["out_kernel"].reshape(-1, D).T,
    }
    query = a["query_kernel"].reshape(-1, N * (H + R)).T
    if _query_rank(case) is None:
        weights["q_proj.weight"] = query
    else:
        weights["q_a_proj.weight"] = a["query_latent_kernel"].T
        weights["q_a_layernorm.weight"] = a["query_scale"]
        weights["q_b_proj.weight"] = query
    if _has_bias(case):
        weights["kv_a_proj_with_mqa.bias"] = torch.cat([a["latent_bias"], a["rotary_key_bias"]])
        weights["q_a_proj.bias"] = a["query_latent_bias"]
        weights["o_proj.bias"] = a["out_bias"]
    missing = dict(module.named_parameters()).keys() ^ weights.keys()
    assert not missing, missing
    positions = rotary(a["x"], torch.arange(T)[None])
    future = torch.full((T, T), torch.finfo(torch.float32).min).triu(1)[None, None]
    options = {"attention_mask": future, "position_embeddings": positions}
    out, shares = torch.func.functional_call(module, weights, (a["x"],), options)
    return {"out": out, "weights": shares}
