"""Sparse attention compared with transformers' Longformer and Big Bird."""

import numpy as np
from flax import nnx

from attention import masks
from attention.sequence.longformer import Longformer
from attention.sequence.sparse import BigBird, SlidingWindow
from tests.oracles.problems import differentiate, torch_answers

B, N, H = 2, 2, 4
D = N * H
# Longformer takes lengths that are multiples of its window of two on each side.
T, WINDOW = 12, 2
BLOCK, BLOCKS = 3, 8
LINKS = (4, 5, 5, 1, 2, 4)  # What Big Bird draws for blocks 1 to 6 with SEED, one each.
SEED = 5
CASES = (
    "longformer_no_global",
    "longformer_first",
    "longformer_marked",
    "longformer_padded",
    "bigbird",
    "bigbird_padded",
)


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns all arrays of a problem."""
    rng = np.random.RandomState(CASES.index(case))
    length = BLOCK * BLOCKS if case.startswith("bigbird") else T

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    names = ["query", "key", "value", "out"]
    if case.startswith("longformer") and case != "longformer_no_global":
        names += ["query_global", "key_global", "value_global"]
    arrays = {"x": normal(B, length, D), "cotangent": normal(B, length, D)}
    for name in names:
        arrays[f"{name}_kernel"] = normal(D, D) / np.float32(np.sqrt(D))
        arrays[f"{name}_bias"] = normal(D)
    marks = np.zeros((B, length), bool)
    marks[:, 0] = case in ("longformer_first", "longformer_padded")
    if case == "longformer_marked":
        marks[0, [1, 7, 8]] = marks[1, 4] = True
    short = length - 5 if case.endswith("padded") else length
    return arrays | {"marks": marks, "lengths": np.array([length, short])}


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    compute = _big_bird if case.startswith("bigbird") else _longformer
    return torch_answers(lambda arrays: compute(case, arrays), inputs(case))


def _ours(case, a):
    if case == "longformer_no_global":
        module = SlidingWindow(D, N, left=WINDOW, right=WINDOW, rngs=nnx.Rngs(0))
    elif case.startswith("longformer"):
        module = Longformer(D, N, window=WINDOW, rngs=nnx.Rngs(0))
    else:
        # There the last block is global as well: it sees all, and all are linked to it.
        last = BLOCKS - 1
        links = [(), *((drawn, last) for drawn in LINKS), range(BLOCKS)]
        module = BigBird(D, N, block=BLOCK, links=links, rngs=nnx.Rngs(0))
    for name in [name.removesuffix("_kernel") for name in a if name.endswith("_kernel")]:
        projection = getattr(module, name)
        projection.kernel[...] = a[f"{name}_kernel"].reshape(projection.kernel[...].shape)
        projection.bias[...] = a[f"{name}_bias"].reshape(projection.bias[...].shape)
    options = {"global_marks": a["marks"]} if case == "longformer_marked" else {}
    mask = masks.lengths(query=a["lengths"], key=a["lengths"])
    out, weights = module(a["x"], mask=mask, return_weights=True, **options)
    return {"out": out, "weights": weights}


def _linear(a, names):
    """Weights of torch's linear layers as functions of our arrays: kernels are transposed there."""
    weights = {f"{name}.weight": a[f"{name}_kernel"].T for name in names}
    return weights | {f"{name}.bias": a[f"{name}_bias"] for name in names}


def _longformer(case, a):
    import torch
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=D,
        num_attention_heads=N,
        attention_window=[2 * WINDOW],
        attention_probs_dropout_prob=0.0,
    )
    module = LongformerSelfAttention(config, layer_id=0)
    names = ["query", "key", "value"]
    if "query_global_kernel" in a:
        names += [f"{name}_global" for name in names]
    real, marks = torch.arange(T) < a["lengths"][:, None], a["marks"]
    arguments = {
        # Below 0 where masked, above 0 where global.
        "attention_mask": marks * 1e4 - ~real * 1e4,
        "is_index_masked": ~real,
        "is_index_global_attn": marks,
        "is_global_attn": bool(marks.any()),
        "output_attentions": True,
    }
    heads, near, *wide = torch.func.functional_call(module, _linear(a, names), (a["x"],), arguments)
    # Padded queries are left as they come there; here they give 0.
    out = (heads * real[..., None]) @ a["out_kernel"] + a["out_bias"]
    weights = torch.zeros(B, N, T, T)
    for b, i in np.ndindex(B, T):
        places = marks[b].nonzero()[:, 0].tolist()
        if not real[b, i]:
            continue
        if i in places:
            weights[b, :, i] = wide[0][b, :, places.index(i)]
            continue
        # First the global keys (as many columns as the example with most has), then the window.
        first = near.shape[-1] - 2 * WINDOW - 1
        weights[b, :, i, places] = near[b, i, :, : len(places)]
        for j in range(max(0, i - WINDOW), min(T, i + WINDOW + 1)):
            weights[b, :, i, j] += near[b, i, :, first + j - i + WINDOW]
    return {"out": out, "weights": weights}


def _big_bird(case, a):
    import torch
    from transformers import BigBirdConfig
    from transformers.models.big_bird import modeling_big_bird as library

    config = BigBirdConfig(
        hidden_size=D, num_attention_heads=N, block_size=BLOCK, num_random_blocks=1
    )
    # It draws only while training (and has no dropout): else each block is linked to block 0 once
    # more, which then counts twice.
    module = library.BigBirdBlockSparseAttention(config, seed=SEED).train()
    draw = module._bigbird_block_rand_mask_with_head

    def shared(**options):
        # There each head draws for itself; here they share what the first one drew.
        first = draw(**options)[0]
        assert first[:, 0].tolist() == list(LINKS)
        return [first] * N

    module._bigbird_block_rand_mask_with_head = shared
    real = (torch.arange(BLOCK * BLOCKS) < a["lengths"][:, None]).float()
    blocked, band, rows, columns = library.BigBirdModel.create_masks_for_block_sparse_attn(
        real, BLOCK
    )
    arguments = {
        "band_mask": band,
        "from_mask": rows,
        "to_mask": columns,
        "from_blocked_mask": blocked,
        "to_blocked_mask": blocked,
    }
    heads, weights = torch.func.functional_call(
        module, _linear(a, ["query", "key", "value"]), (a["x"],), arguments
    )
    # Weights of padded queries are left as they come there; here they are 0.
    weights = weights * real[:, None, :, None]
    return {"out": heads @ a["out_kernel"] + a["out_bias"], "weights": weights}
