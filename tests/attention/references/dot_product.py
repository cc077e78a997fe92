"""attend and the module around it, multi-head attention."""

import numpy as np

from attention import registry
from tests.attention.references.base import attend


def kernel(inputs, allowed):
    return attend(inputs["query"], inputs["key"], inputs["value"], allowed)


def rms(x, scale, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


def turned(x, base=10000.0, fraction=1.0, interleaved=False, scaling="none", factor=1.0):
    """Rotates by positions 0, 1, ... as complex numbers: each pair times exp(iθ)."""
    T, H = x.shape[1], x.shape[-1]
    R = round(fraction * H)
    if scaling == "ntk":
        base = base * factor ** (R / (R - 2))
    out = x.copy()
    for i in range(R // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + R // 2)
        p = np.arange(T) / (factor if scaling == "linear" else 1.0)
        pair = (x[..., a] + 1j * x[..., b]) * np.exp(1j * p / base ** (2 * i / R))[:, None]
        out[..., a], out[..., b] = pair.real, pair.imag
    return out


def alibi(N, T, S):
    bias = np.zeros((N, T, S))
    for n, t, s in np.ndindex(N, T, S):
        bias[n, t, s] = -(2.0 ** (-8 * (n + 1) / N)) * abs(t - s)
    return bias


def t5_bucket(relative, bidirectional, buckets, max_distance):
    n = buckets // 2 if bidirectional else buckets
    first = n if bidirectional and relative > 0 else 0
    r = abs(relative) if bidirectional else max(-relative, 0)
    exact = n // 2
    if r < exact:
        return first + r
    wide = np.log(r / exact) / np.log(max_distance / exact) * (n - exact)
    return first + min(exact + int(wide + 1e-9), n - 1)


def t5(table, T, S, bidirectional=True, buckets=32, max_distance=128):
    bias = np.zeros((table.shape[1], T, S))
    for t, s in np.ndindex(T, S):
        bias[:, t, s] = table[t5_bucket(s - t, bidirectional, buckets, max_distance)]
    return bias


def shaw(table, query, S, max_distance=16):
    B, T, N, H = query.shape
    bias = np.zeros((B, N, T, S))
    for t, s in np.ndindex(T, S):
        a = table[np.clip(s - t, -max_distance, max_distance) + max_distance]
        bias[:, :, t, s] = query[:, t] @ a / np.sqrt(H)
    return bias


def multi_head(inputs, allowed, positions="none", logit_cap=None, **_):
    """Computes multi-head attention; options with parameters are inferred from the parameters."""
    p, x = inputs["params"], inputs["x"]
    memory = inputs.get("memory", x)
    query, key, value = (
        np.einsum("btd,dnh->btnh", source, p[name]["kernel"]) + p[name].get("bias", 0)
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    if "query_norm" in p:
        query, key = (
            rms(y, p[f"{name}_norm"]["scale"]) for name, y in (("query", query), ("key", key))
        )
    name, _, options = positions.partition("(")
    options = eval(f"dict({options or ')'}")
    N, T, S, bias = query.shape[2], query.shape[1], key.shape[1], None
    if name == "rope":
        query, key = turned(query, **options), turned(key, **options)
    elif name == "alibi":
        bias = alibi(N, T, S)
    elif name == "t5":
        bias = t5(p["positions"]["table"], T, S, **options)
    elif name == "shaw":
        bias = shaw(p["positions"]["table"], query, S, **options)
    heads, weights = attend(
        query, key, value, allowed, bias=bias, logit_cap=logit_cap, sinks=p.get("sinks")
    )
    if "gate" in p:
        gate = np.einsum("btd,dnv->btnv", x, p["gate"]["kernel"])
        gate = gate + p["gate"].get("bias", 0)
        heads = heads / (1 + np.exp(-gate))
    out = np.einsum("btnv,nvd->btd", heads, p["out"]["kernel"]) + p["out"].get("bias", 0)
    return out, weights


REFERENCES = {
    # All kernels compute the same.
    **{("kernel", name): kernel for name in registry.names("kernel")},
    ("mixer", "dot_product"): multi_head,
}

VARIANTS = {
    "dot_product": {
        "self": {},
        "rope": {"positions": "rope"},
        "rope_options": {
            "positions": "rope(base=100.0, fraction=0.5, interleaved=True, scaling='linear', "
            "factor=2.0)"
        },
        "rope_ntk": {"positions": "rope(scaling='ntk', factor=4.0)"},
        "alibi": {"positions": "alibi"},
        "t5": {"positions": "t5(buckets=6, max_distance=5)"},
        "t5_one_way": {"positions": "t5(bidirectional=False, buckets=4, max_distance=6)"},
        "shaw": {"positions": "shaw(max_distance=2)"},
        "gated": {"qk_norm": True, "gate": "elementwise", "key_value_heads": 1, "sinks": True},
        "gated_headwise": {"gate": "headwise", "logit_cap": 2.0, "use_bias": False},
    }
}
