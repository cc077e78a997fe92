"""attend compared with `jax.nn.dot_product_attention` (its XLA implementation).

Rows that see nothing are left out: there it gives the mean of the values, here 0.
"""

import jax
import numpy as np

from attention import attend, masks
from tests.oracles.problems import differentiate

B, T, S, N, H = 2, 5, 7, 4, 4
CASES = tuple(
    f"jax_nn_{name}"
    for name in ("plain", "causal", "mask", "bias", "grouped_query", "window", "lengths")
)


def inputs(case):
    rng = np.random.RandomState(200 + CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    k = 2 if case.endswith("grouped_query") else N
    s = T if case.endswith(("causal", "window")) else S
    arrays = {"query": normal(B, T, N, H), "key": normal(B, s, k, H), "value": normal(B, s, k, H)}
    arrays["cotangent"] = normal(B, T, N, H)
    if case.endswith("_mask"):
        arrays["allowed"] = rng.uniform(size=(B, 1, T, S)) < 0.6
        arrays["allowed"][..., 0] = True
    if case.endswith("bias"):
        arrays["bias"] = normal(B, N, T, S)
    if case.endswith("lengths"):
        arrays["lengths"] = np.array([S, 3], np.int32)
    return arrays


def ours(case):
    def compute(a):
        mask = {
            "causal": lambda: masks.causal(),
            "mask": lambda: masks.dense(a["allowed"]),
            "window": lambda: masks.window(2, 1),
            "lengths": lambda: masks.lengths(key=a["lengths"]),
        }.get(case.split("_")[-1], lambda: None)()
        return {"out": attend(a["query"], a["key"], a["value"], mask=mask, bias=a.get("bias"))}

    return differentiate(compute, inputs(case))


def theirs(case):
    def compute(a):
        out = jax.nn.dot_product_attention(
            a["query"],
            a["key"],
            a["value"],
            bias=a.get("bias"),
            mask=a.get("allowed"),
            is_causal=case.endswith("causal"),
            local_window_size=(2, 1) if case.endswith("window") else None,
            key_value_seq_lengths=a.get("lengths"),
            implementation="xla",
        )
        return {"out": out}

    return differentiate(compute, inputs(case))
