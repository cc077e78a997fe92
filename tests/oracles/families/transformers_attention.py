"""MultiHeadAttention and its options against the attention modules of Hugging Face transformers.

Kernels are given as ours, [D, N, H]; theirs are matrices [N·H, D].
"""

import numpy as np
from flax import nnx

from attention import MultiHeadAttention, masks
from tests.oracles.problems import differentiate, torch_answers

B, T, D, N, H = 2, 6, 16, 4, 8
LONG = 150  # beyond the last bucket's distance of 128
CASES = (
    "bert",
    "bert_padding",
    "t5_encoder",
    "t5_decoder",
    "qwen3_next_gated",
    "gpt_oss_sinks",
    "gemma2_logit_cap",
    "llama_linear_scaling",
)
# case -> sizes of the arrays besides x, and how our module is built.
_GROUPED = {"query": (D, N, H), "key": (D, 2, H), "value": (D, 2, H), "out": (N, H, D)}
_SMALL = {"query": (D, 2, 2), "key": (D, 2, 2), "value": (D, 2, 2), "out": (2, 2, D)}
_FULL = {"query": (D, N, 4), "key": (D, N, 4), "value": (D, N, 4), "out": (N, 4, D)}
_OPTIONS = {
    "bert": {},
    "t5_encoder": {"positions": "t5", "scale": 1.0},
    "t5_decoder": {"positions": "t5(bidirectional=False)", "scale": 1.0},
    "qwen3_next_gated": {
        "positions": "rope(fraction=0.25)",
        "qk_norm": True,
        "gate": "elementwise",
    },
    "gpt_oss_sinks": {"positions": "rope(base=150000)", "sinks": True},
    "gemma2_logit_cap": {"positions": "rope", "logit_cap": 2.0, "scale": 0.5},
    "llama_linear_scaling": {"positions": "rope(scaling=linear, factor=4)"},
}


def _kernels(case):
    if case.startswith("bert"):
        return _FULL
    return _SMALL if case.startswith("t5") else _GROUPED


def inputs(case):
    rng = np.random.RandomState(100 + CASES.index(case))

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    length = LONG if case.startswith("t5") else T
    kernels = _kernels(case)
    arrays = {"x": normal(B, length, D), "cotangent": normal(B, length, D)}
    arrays |= {f"{n}_kernel": normal(*shape, scale=0.3) for n, shape in kernels.items()}
    if case.startswith("bert"):
        arrays |= {f"{n}_bias": normal(*kernels[n][1:]) for n in ("query", "key", "value")}
    if case.startswith("t5"):
        arrays["positions_table"] = normal(32, 2)
    if case == "qwen3_next_gated":
        arrays["gate_kernel"] = normal(D, N, H, scale=0.3)
        arrays |= {f"{n}_norm_scale": 1 + normal(H, scale=0.2) for n in ("query", "key")}
    if case == "gpt_oss_sinks":
        arrays["sinks"] = normal(N)
    if case == "bert_padding":
        arrays["lengths"] = np.array([T, 2])
    return arrays


def ours(case):
    return differentiate(lambda a: _ours(case, a), inputs(case))


def _ours(case, a):
    kernels = _kernels(case)
    module = MultiHeadAttention(
        D,
        kernels["query"][1],
        key_value_heads=kernels["key"][1],
        head_size=kernels["query"][2],
        use_bias=case.startswith("bert"),
        **_OPTIONS[case.removesuffix("_padding")],
        rngs=nnx.Rngs(0),
    )
    for name, array in a.items():
        if name in ("x", "lengths"):
            continue
        *path, last = (name,) if name == "sinks" else name.rsplit("_", 1)
        place = getattr(module, path[0]) if path else module
        getattr(place, last)[...] = array
    mask = None if case in ("bert", "t5_encoder") else masks.causal()
    if case == "bert_padding":
        mask = masks.lengths(key=a["lengths"])
    out, weights = module(a["x"], mask=mask, return_weights=True)
    return {"out": out, "weights": weights[..., :4, :]}


def theirs(case):
    return torch_answers(lambda a: _theirs(case, a), inputs(case))


def _theirs(case, a):
    import torch

    def matrix(name):
        kernel = a[f"{name}_kernel"]
        return kernel.reshape(-1, D).T if name == "out" else kernel.reshape(D, -1).T

    length = a["x"].shape[1]
    hidden = torch.full((length, length), -torch.inf).triu(1)[None, None]
    family = case.split("_")[0]
    module, names = _module(case)
    weights = {f"{theirs}.weight": matrix(ours) for ours, theirs in names.items()}
    options = {"attention_mask": hidden}
    if family == "bert":
        weights |= {f"{n}.bias": a[f"{n}_bias"].reshape(-1) for n in ("query", "key", "value")}
        options = {}
        if "lengths" in a:
            padding = torch.arange(length) >= a["lengths"][:, None]
            options["attention_mask"] = torch.where(padding, -torch.inf, 0.0)[:, None, None]
    elif family == "t5":
        weights["relative_attention_bias.weight"] = a["positions_table"]
        options = {"mask": hidden if case == "t5_decoder" else None, "output_attentions": True}
    else:
        options["position_embeddings"] = _angles(case, module.config, a["x"])
    if case == "qwen3_next_gated":
        # One projection for query and gate, head by head; scales are kept less 1.
        both = torch.cat([a["query_kernel"], a["gate_kernel"]], dim=-1)
        weights["q_proj.weight"] = both.reshape(D, -1).T
        weights["q_norm.weight"] = a["query_norm_scale"] - 1
        weights["k_norm.weight"] = a["key_norm_scale"] - 1
    if case == "gpt_oss_sinks":
        weights["sinks"] = a["sinks"]
    results = torch.func.functional_call(module, weights, (a["x"],), options)
    out, shares = results[0], results[-1]
    if family == "bert":
        # The output projection belongs to another module there; no bias here.
        out = out @ matrix("out").T
    return {"out": out, "weights": shares[..., :4, :]}


def _module(case):
    """Their module, and their names of our projections."""
    from transformers import BertConfig, Gemma2Config, GptOssConfig, LlamaConfig, T5Config
    from transformers import Qwen3NextConfig as QwenConfig
    from transformers.models.bert.modeling_bert import BertSelfAttention
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
    from transformers.models.llama.modeling_llama import LlamaAttention
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention
    from transformers.models.t5.modeling_t5 import T5Attention

    family = case.split("_")[0]
    eager = {"attn_implementation": "eager"}
    if family == "bert":
        config = BertConfig(hidden_size=D, num_attention_heads=N, **eager)
        names = {name: name for name in ("query", "key", "value")}
        return BertSelfAttention(config).eval(), names
    if family == "t5":
        config = T5Config(d_model=D, d_kv=2, num_heads=2, **eager)
        config.is_decoder = case == "t5_decoder"
        module = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
        return module, {"query": "q", "key": "k", "value": "v", "out": "o"}
    sizes = {
        "hidden_size": D,
        "num_attention_heads": N,
        "num_key_value_heads": 2,
        "head_dim": H,
        "num_hidden_layers": 2,
        "attention_bias": False,
    } | eager
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "qwen3":
        rope["partial_rotary_factor"] = 0.25
        module = Qwen3NextAttention(QwenConfig(**sizes, rope_parameters=rope), 0)
    elif family == "gpt":
        rope["rope_theta"] = 150000.0
        module = GptOssAttention(GptOssConfig(**sizes, rope_parameters=rope), 0)
    elif family == "gemma2":
        more = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4}
        module = Gemma2Attention(Gemma2Config(**sizes, **more, rope_parameters=rope), 0)
    else:
        rope |= {"rope_type": "linear", "factor": 4.0}
        module = LlamaAttention(LlamaConfig(**sizes, rope_parameters=rope), 0)
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    return module.eval(), names


def _angles(case, config, x):
    import importlib

    import torch

    family, name = {
        "qwen3": ("qwen3_next", "Qwen3NextRotaryEmbedding"),
        "gpt": ("gpt_oss", "GptOssRotaryEmbedding"),
        "gemma2": ("gemma2", "Gemma2RotaryEmbedding"),
        "llama": ("llama", "LlamaRotaryEmbedding"),
    }[case.split("_")[0]]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    return getattr(module, name)(config)(x, torch.arange(x.shape[1])[None])
