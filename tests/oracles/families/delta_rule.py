"""The gated delta rule and Gated DeltaNet compared with Qwen3-Next of transformers."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import masks
from attention.sequence.delta_rule import gated_delta_rule_chunked, gated_delta_rule_recurrent
from attention.sequence.gated_delta_net import GatedDeltaNet
from tests.oracles.problems import differentiate, torch_answers

B, T, N, H, V, D, W = 2, 7, 4, 3, 2, 6, 4
RULES = ("recurrent", "recurrent_state", "chunked", "chunked_state", "chunked_grouped")
# Long: more than one of their chunks of 64. Padded: their mask is for padding at the left.
MODULES = ("plain", "grouped", "padded", "long")
CASES = (
    *(f"delta_rule_{name}" for name in RULES),
    *(f"gated_delta_net_{name}" for name in MODULES),
)


def key_heads(case: str) -> int:
    return 2 if case.endswith("grouped") else N


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns all arrays of a problem, float32 unless integer."""
    # The platform's own generator, whose stream NumPy keeps for good.
    rng, K = np.random.RandomState(CASES.index(case)), key_heads(case)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if case.startswith("delta_rule"):
        key = normal(B, T, K, H)
        arrays = {
            "query": normal(B, T, K, H),
            "key": key / np.linalg.norm(key, axis=-1, keepdims=True),
            "value": normal(B, T, N, V),
            "log_decay": -np.abs(normal(B, T, N)),
            "beta": rng.uniform(size=(B, T, N)).astype(np.float32),
            "cotangent": normal(B, T, N, V),
        }
        return arrays | ({"state": normal(B, N, H, V)} if case.endswith("state") else {})
    length = 70 if case.endswith("long") else T
    arrays = {"x": normal(B, length, D), "cotangent": normal(B, length, D)}
    for name, heads, size in (("query", K, H), ("key", K, H), ("value", N, V), ("gate", N, V)):
        arrays[f"{name}_kernel"] = normal(D, heads, size) / 2
        if name != "gate":
            arrays[f"{name}_filter"] = normal(W, heads, size) / 2
    arrays |= {"beta_kernel": normal(D, N) / 2, "decay_kernel": normal(D, N) / 2}
    arrays |= {"decay_bias": normal(N) - 1, "log_rate": normal(N) / 2}
    arrays |= {"norm_scale": 1 + normal(V) / 2, "out_kernel": normal(N, V, D) / 2}
    if case.endswith("padded"):
        arrays["padding"] = np.array([0, 3])
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    compute = _rule if case.startswith("delta_rule") else _module
    return differentiate(lambda arrays: compute(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    compute = _torch_rule if case.startswith("delta_rule") else _torch_module
    return torch_answers(lambda arrays: compute(case, arrays), inputs(case))


def _rule(case, a):
    chunked, options = "chunked" in case, {}
    rule = gated_delta_rule_chunked if chunked else gated_delta_rule_recurrent
    if chunked:
        options["chunk_size"] = 3
    # They scale queries inside, we outside.
    query = a["query"] / np.float32(np.sqrt(H))
    out, state = rule(
        query, a["key"], a["value"], a["log_decay"], a["beta"], a.get("state"), **options
    )
    return {"out": out, "after": state}


def _module(case, a):
    module = GatedDeltaNet(
        D,
        N,
        key_heads=key_heads(case),
        key_head_size=H,
        value_head_size=V,
        conv_size=W,
        use_bias=False,
        rngs=nnx.Rngs(0),
    )
    for name in ("query", "key", "value", "gate", "beta", "decay", "out"):
        getattr(module, name).kernel[...] = a[f"{name}_kernel"]
    for name in ("query_filter", "key_filter", "value_filter", "log_rate"):
        getattr(module, name)[...] = a[name]
    module.decay.bias[...], module.norm.scale[...] = a["decay_bias"], a["norm_scale"]
    if "padding" not in a:
        return {"out": module(a["x"])}
    real = jnp.arange(T) >= a["padding"][:, None]
    # What stands at padding means nothing: compared are the real positions.
    return {"out": module(a["x"], mask=masks.valid(key=real)) * real[..., None]}


def _torch_rule(case, a):
    from transformers.models.qwen3_next import modeling_qwen3_next as theirs

    chunked, options = "chunked" in case, {}
    rule = (
        theirs.torch_chunk_gated_delta_rule if chunked else theirs.torch_recurrent_gated_delta_rule
    )
    if chunked:
        options["chunk_size"] = 3
    out, state = rule(
        a["query"],
        a["key"],
        a["value"],
        g=a["log_decay"],
        beta=a["beta"],
        initial_state=a.get("state"),
        output_final_state=True,
        **options,
    )
    return {"out": out, "after": state}


def _torch_module(case, a):
    import torch
    from transformers.models.qwen3_next import modeling_qwen3_next as theirs

    K = key_heads(case)
    config = theirs.Qwen3NextConfig(
        hidden_size=D,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_value_heads=N,
        linear_num_key_heads=K,
        linear_key_head_dim=H,
        linear_value_head_dim=V,
        linear_conv_kernel_dim=W,
        rms_norm_eps=1e-6,
        hidden_act="silu",
    )
    module = theirs.Qwen3NextGatedDeltaNet(config, 0)

    def by_key_head(*names):
        # For each key head: all that belongs to it, one name after the other.
        groups = [a[f"{name}_kernel"].reshape(D, K, -1) for name in names]
        return torch.cat(groups, dim=-1).reshape(D, -1).T

    filters = [a[f"{name}_filter"].reshape(W, -1) for name in ("query", "key", "value")]
    weights = {
        "in_proj_qkvz.weight": by_key_head("query", "key", "value", "gate"),
        "in_proj_ba.weight": by_key_head("beta", "decay"),
        # Their last tap is for the position itself, ours the first.
        "conv1d.weight": torch.cat(filters, dim=-1).flip(0).T[:, None],
        "dt_bias": a["decay_bias"],
        "A_log": a["log_rate"],
        "norm.weight": a["norm_scale"],
        "out_proj.weight": a["out_kernel"].reshape(-1, D).T,
    }
    options = {}
    if "padding" in a:
        options["attention_mask"] = torch.arange(T) >= a["padding"][:, None]
    out = torch.func.functional_call(module, weights, (a["x"],), options)
    if "padding" in a:
        out = out * options["attention_mask"][..., None]
    return {"out": out}
