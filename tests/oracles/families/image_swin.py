"""Attention in shifted windows compared with the layer of transformers' Swin.

All maps are multiples of the window, because padding is visible there and hidden here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.image.window import ShiftedWindow, window_indices
from attention.normalization import layer_norm
from tests.oracles.problems import differentiate, torch_answers

B, N, H, S = 2, 2, 4, 4
C, F = N * H, 6
# case -> sides of the map, shift.
SIDES = {
    "swin_windows": (8, 12, 0),
    "swin_shifted": (8, 12, 2),
    "swin_shifted_by_one": (12, 8, 1),
    "swin_one_window": (4, 4, 2),
}
CASES = tuple(SIDES)


def inputs(case):
    """Returns all arrays of a problem, float32."""
    rng = np.random.RandomState(CASES.index(case))
    Y, X, _ = SIDES[case]

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    arrays = {"x": normal(B, Y, X, C), "cotangent": normal(B, Y, X, C)}
    for name in ("query", "key", "value", "out"):
        arrays[f"{name}_kernel"] = normal(C, C, scale=C**-0.5)
    # No bias of the key: softmax cancels it, its gradient is 0 and what is found is rounding.
    arrays |= {f"{name}_bias": normal(C) for name in ("query", "value", "out")}
    arrays["bias_table"] = normal(2 * S - 1, 2 * S - 1, N)
    for name in ("before", "after"):
        arrays |= {f"{name}_scale": 1 + normal(C, scale=0.3), f"{name}_bias": normal(C, scale=0.3)}
    arrays |= {"up": normal(C, F, scale=0.3), "up_bias": normal(F, scale=0.3)}
    return arrays | {"down": normal(F, C, scale=0.3), "down_bias": normal(C, scale=0.3)}


def ours(case):
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case):
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _ours(case, a):
    Y, X, shift = SIDES[case]
    module = ShiftedWindow(C, num_heads=N, window=S, shift=shift, residual=False, rngs=nnx.Rngs(0))
    for name in ("query", "key", "value", "out"):
        projection = getattr(module, name)
        projection.kernel[...] = a[f"{name}_kernel"].reshape(projection.kernel[...].shape)
        if f"{name}_bias" in a:
            projection.bias[...] = a[f"{name}_bias"].reshape(projection.bias[...].shape)
    module.bias_table[...] = a["bias_table"]
    mixed, weights = module(
        layer_norm(a["x"], a["before_scale"], a["before_bias"]), return_weights=True
    )
    h = a["x"] + mixed
    hidden = layer_norm(h, a["after_scale"], a["after_bias"]) @ a["up"] + a["up_bias"]
    out = h + jax.nn.gelu(hidden, approximate=False) @ a["down"] + a["down_bias"]
    # Theirs are of windows: [B·W, N, S·S, S·S].
    places, _ = window_indices(Y, X, S, shift)
    of_windows = weights[:, :, places[:, :, None], places[:, None]]
    return {"out": out, "weights": jnp.swapaxes(of_windows, 1, 2).reshape(-1, N, S * S, S * S)}


def _theirs(case, a):
    import torch
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    Y, X, shift = SIDES[case]
    config = SwinConfig(window_size=S, attn_implementation="eager", mlp_ratio=F / C)
    layer = SwinLayer(config, C, (Y, X), N, shift_size=shift).eval()
    weights = {"attention.k_proj.bias": torch.zeros(C)}
    for name in ("query", "key", "value", "out"):
        place = f"attention.{name[0]}_proj"
        weights[f"{place}.weight"] = a[f"{name}_kernel"].T
        if f"{name}_bias" in a:
            weights[f"{place}.bias"] = a[f"{name}_bias"]
    table = a["bias_table"].reshape(-1, N)
    weights["attention.relative_position_bias.relative_position_bias_table"] = table
    for name in ("before", "after"):
        weights[f"layernorm_{name}.weight"] = a[f"{name}_scale"]
        weights[f"layernorm_{name}.bias"] = a[f"{name}_bias"]
    for place, name in (("fc1", "up"), ("fc2", "down")):
        weights[f"mlp.{place}.weight"] = a[name].T
        weights[f"mlp.{place}.bias"] = a[f"{name}_bias"]
    arguments = (a["x"].reshape(B, Y * X, C), (Y, X))
    out, shares = torch.func.functional_call(layer, weights, arguments)
    return {"out": out.reshape(B, Y, X, C), "weights": shares}
