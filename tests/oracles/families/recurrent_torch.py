"""Multi-head alignment, temporal attention and the pool by learned queries compared with PyTorch's
nn.MultiheadAttention."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import MultiHeadAlignment, MultiHeadPool, TemporalAttention, masks
from tests.oracles.problems import differentiate, torch_answers

PACKAGES = ("torch",)
B, T, S, N, H, QUERIES = 2, 4, 7, 2, 3, 3
D = N * H
CASES = (
    "alignment_heads",
    "alignment_heads_padded",
    "temporal",
    "temporal_padded",
    "temporal_steps",
    "pool_query",
    "pool_queries",
)
# Where real positions are: not only at the front, but at the first, as PyTorch gives NaN for a
# state without any past.
VALID = np.array([[1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0, 0]], bool)


def inputs(case: str) -> dict[str, np.ndarray]:
    """Sequences and weights, float32."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    names = ["query", "key", "value", "out"]
    if case.startswith("pool"):
        # Of a pool, PyTorch's queries are the seeds themselves: its W_q is the identity.
        arrays = {"seed": normal(QUERIES if case.endswith("queries") else 1, D)}
        arrays |= {"states": normal(B, S, D), "cotangent": normal(B, len(arrays["seed"]), D)}
        names.remove("query")
    else:
        arrays = {"x": normal(B, T, D), "cotangent": normal(B, T, D)}
        if case.startswith("alignment"):
            arrays["states"] = normal(B, S, D)
    for name in names:
        arrays[f"{name}_kernel"] = normal(D, D) / np.float32(np.sqrt(D))
        # After the sum alignments and pools have none: nothing seen is 0.
        if name != "out" or case.startswith("temporal"):
            arrays[f"{name}_bias"] = normal(D)
    if case.endswith("padded"):
        arrays["valid"] = VALID[:, : arrays.get("states", arrays.get("x")).shape[1]]
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of what this repository computes."""
    compute = {"alignment": _alignment, "temporal": _temporal, "pool": _pool}[case.split("_")[0]]
    return differentiate(lambda arrays: compute(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with PyTorch."""
    return torch_answers(lambda arrays: _torch(case, arrays), inputs(case))


def _filled(module, a):
    for name in ("query", "key", "value", "out"):
        if f"{name}_kernel" in a:
            projection = getattr(module, name)
            projection.kernel[...] = a[f"{name}_kernel"].reshape(projection.kernel[...].shape)
            if f"{name}_bias" in a:
                projection.bias[...] = a[f"{name}_bias"].reshape(projection.bias[...].shape)
    return module


def _scan(step, carry, x):
    """Contexts [B, T, D] and weights [B, N, T, S] of a scan over [B, T, D]."""

    def turn(carry, x):
        context, weights, carry = step(x, carry)
        return carry, (context, weights)

    _, (out, weights) = jax.lax.scan(turn, carry, jnp.swapaxes(x, 0, 1))
    return {"out": jnp.swapaxes(out, 0, 1), "weights": jnp.moveaxis(weights, 0, 2)}


def _alignment(case, a):
    alignment = _filled(MultiHeadAlignment(D, D, num_heads=N, rngs=nnx.Rngs(0)), a)
    memory = alignment.prepare(a["states"], valid=a.get("valid"))
    return _scan(lambda query, state: alignment.step(query, memory, state), (), a["x"])


def _temporal(case, a):
    module = _filled(TemporalAttention(D, N, rngs=nnx.Rngs(0)), a)
    if case.endswith("steps"):
        return _scan(module.step, module.init_cache(B, T), a["x"])
    mask = masks.valid(key=a["valid"]) if "valid" in a else None
    out, weights = module(a["x"], mask=mask, return_weights=True)
    return {"out": out, "weights": weights}


def _pool(case, a):
    """Computes one query at a time: PyTorch returns a vector per query; ours is their sum if all
    share W_o."""
    module = MultiHeadPool(D, num_heads=N, queries=len(a["seed"]), rngs=nnx.Rngs(0))
    module = _filled(module, {k: v for k, v in a.items() if not k.startswith("out")})
    module.seed[...] = a["seed"].reshape(-1, N, H)
    shared, results = a["out_kernel"].reshape(N, 1, H, D), []
    for i in range(len(a["seed"])):
        one = jnp.zeros((N, len(a["seed"]), H, D)).at[:, i].set(shared[:, 0])
        module.out.kernel[...] = one.reshape(module.out.kernel[...].shape)
        pooled, weights = module(a["states"])
        results.append(pooled)
    weights = jnp.swapaxes(weights.reshape(B, -1, N, S), 1, 2)
    return {"out": jnp.stack(results, axis=1), "weights": weights}


def _torch(case, a):
    import torch

    module = torch.nn.MultiheadAttention(D, N, batch_first=True)
    names = ("query", "key", "value")
    nothing, identity = torch.zeros(D), torch.eye(D)
    # As functions of our arrays, so that these have the gradients: kernels are transposed there.
    weights = {
        "in_proj_weight": torch.cat([a.get(f"{name}_kernel", identity).T for name in names]),
        "in_proj_bias": torch.cat([a.get(f"{name}_bias", nothing) for name in names]),
        "out_proj.weight": a["out_kernel"].T,
        "out_proj.bias": a.get("out_bias", nothing),
    }
    query = a["x"] if "x" in a else a["seed"].expand(B, -1, -1)
    source = a.get("states", a.get("x"))
    options = {"need_weights": True, "average_attn_weights": False}
    if "valid" in a:
        options["key_padding_mask"] = ~a["valid"]
    if case.startswith("temporal"):
        options["attn_mask"] = torch.ones(T, T, dtype=torch.bool).triu(1)
    out, shares = torch.func.functional_call(module, weights, (query, source, source), options)
    return {"out": out, "weights": shares}
