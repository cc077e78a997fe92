"""Attention over feature maps compared with timm, segmentation_models_pytorch and MONAI.

They need torchvision, which does not install beside the other oracles, so there is no live test:
golden/image_gates.npz contains their results. To make it again, in an environment of its own:

    python -m venv image-oracles
    image-oracles/bin/pip install torch==2.13.0
    image-oracles/bin/pip install --no-deps timm==1.0.31 segmentation-models-pytorch==0.6.0 \
        monai==1.6.1
    image-oracles/bin/pip install jax==0.10.2 flax==0.12.8
    image-oracles/bin/python -m tests.oracles.make_golden image_gates

What is loaded of them are single modules, without the packages around (`_peers`). Maps are
[B, C, Y, X] there, kernels [O, C, height, width].
"""

import functools

import numpy as np
from flax import nnx

from attention import registry
from tests.oracles.problems import differentiate, torch_answers

LIVE = False
PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "monai")

B, Y, X, C, R, G = 2, 5, 7, 8, 4, 6
WIDE = 128  # number of channels, for which the ECA kernel size is five
TRAINED = ("cbam", "coordinate", "non_local")
CASES = (
    "se",
    "eca",
    "eca_wide",
    "scse",
    "attention_gate",
    *(f"{name}_{mode}" for name in TRAINED for mode in ("evaluation", "training")),
)
# name -> size of the batch norm.
NORMS = {"cbam": 1, "coordinate": R, "non_local": C}
_MLP = {"reduce_kernel": (C, R), "expand_kernel": (R, C)}
_BIASES = {"reduce_bias": (R,), "expand_bias": (C,)}
_HEADS = ("query", "key", "value")
# name -> options of ours, and the arrays of its parameters.
PROBLEMS = {
    "se": ({"reduction": 2}, _MLP | _BIASES),
    "eca": ({}, {"kernel": (3,)}),
    "eca_wide": ({}, {"kernel": (5,)}),
    "scse": (
        {"reduction": 2},
        _MLP | _BIASES | {"spatial_kernel": (C, 1), "spatial_bias": (1,)},
    ),
    "attention_gate": (
        {"stride": 1, "hidden_size": R},
        {
            "kernel": (1, 1, C, R),
            "signal_kernel": (G, R),
            "signal_bias": (R,),
            "score_kernel": (R, 1),
            "score_bias": (1,),
        },
    ),
    "cbam": (
        {"reduction": 2, "use_bias": False},
        {f"channel/{name}": shape for name, shape in _MLP.items()}
        | {"spatial/kernel": (7, 7, 2, 1)},
    ),
    "coordinate": (
        {"reduction": 2, "least": 1},
        {"reduce_kernel": (C, R), "reduce_bias": (R,)}
        | {f"{axis}_kernel": (R, C) for axis in ("rows", "columns")}
        | {f"{axis}_bias": (C,) for axis in ("rows", "columns")},
    ),
    "non_local": (
        {"head_size": R},
        {f"{name}_kernel": (C, R) for name in _HEADS}
        # No bias of the key: softmax cancels it, its gradient is 0 and what is found is rounding.
        | {f"{name}_bias": (R,) for name in ("query", "value")}
        | {"out_kernel": (R, C), "out_bias": (C,)},
    ),
}


def _split(case):
    """Name, and whether in training."""
    return case.removesuffix("_evaluation").removesuffix("_training"), case.endswith("_training")


def inputs(case):
    """Returns all arrays of a problem, float32."""
    rng = np.random.RandomState(CASES.index(case))
    name, _ = _split(case)

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    channels = WIDE if case == "eca_wide" else C
    arrays = {"x": normal(B, Y, X, channels), "cotangent": normal(B, Y, X, channels)}
    if name == "attention_gate":
        arrays["signal"] = normal(B, Y, X, G)
    arrays |= {key: normal(*shape, scale=0.4) for key, shape in PROBLEMS[name][1].items()}
    if name in NORMS:
        arrays["norm_scale"] = 1 + normal(NORMS[name], scale=0.3)
        arrays["norm_bias"] = normal(NORMS[name], scale=0.3)
    return arrays


def running(case):
    """Returns running mean and variance before the call; not differentiated."""
    size, rng = NORMS[_split(case)[0]], np.random.RandomState(99)
    return rng.normal(size=size).astype(np.float32), 1 + rng.uniform(size=size).astype(np.float32)


def ours(case):
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case):
    """Computes the same with PyTorch modules of others."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _ours(case, a):
    name, training = _split(case)
    options, _ = PROBLEMS[name]
    kind, sizes = ("gate", (C, G)) if name == "attention_gate" else ("map_attention", (C,))
    if name == "eca_wide":
        name, sizes = "eca", (WIDE,)
    module = registry.load(kind, name)(*sizes, **options, rngs=nnx.Rngs(0))
    norm = getattr(module, "spatial", module).norm if name in NORMS else None
    for path, array in a.items():
        if path in ("x", "signal"):
            continue
        place, last = (norm, path[5:]) if path.startswith("norm_") else _place(module, path)
        variable = getattr(place, last)
        # One head here: [C, 1, R] for their [R, C].
        variable[...] = array.reshape(variable[...].shape)
    if norm is not None:
        norm.mean[...], norm.variance[...] = running(case)
    maps = [a[key] for key in ("x", "signal") if key in a]
    results = {"out": module(*maps, training=training)}
    if training:
        results |= {"running_mean": norm.mean[...], "running_variance": norm.variance[...]}
    return results


def _place(module, path):
    *parts, last = path.split("/")
    first, _, second = last.partition("_")
    for part in [*parts, first] if second else parts:
        module = getattr(module, part)
    return module, second or last


def _theirs(case, a):
    import torch

    name, training = _split(case)
    module, weights = getattr(_Theirs(_peers()), name)(a)
    if name in NORMS:
        prefix = {"cbam": "spatial.conv.bn", "coordinate": "bn1", "non_local": "norm"}[name]
        mean, variance = (torch.tensor(array) for array in running(case))
        weights |= {f"{prefix}.weight": a["norm_scale"], f"{prefix}.bias": a["norm_bias"]}
        weights |= {f"{prefix}.running_mean": mean, f"{prefix}.running_var": variance}
    maps = [a[key].permute(0, 3, 1, 2) for key in ("signal", "x") if key in a]
    module.train(training)
    out = torch.func.functional_call(module, weights, tuple(maps))
    results = {"out": out.permute(0, 2, 3, 1)}
    if training:
        # The module has moved what it was given.
        results |= {"running_mean": mean, "running_variance": variance}
    return results


def _convolution(kernel):
    """[C, O] -> [O, C, 1, 1]."""
    return kernel.T[:, :, None, None]


class _Theirs:
    """name -> their module, and its weights as functions of our arrays."""

    def __init__(self, peers):
        self.peers = peers

    def _mlp(self, a, reduce, expand, prefix="", bias=True):
        weights = {
            f"{reduce}.weight": _convolution(a[f"{prefix}reduce_kernel"]),
            f"{expand}.weight": _convolution(a[f"{prefix}expand_kernel"]),
        }
        if bias:
            weights |= {f"{reduce}.bias": a["reduce_bias"], f"{expand}.bias": a["expand_bias"]}
        return weights

    def se(self, a):
        return self.peers["SEModule"](C, rd_channels=R), self._mlp(a, "fc1", "fc2")

    def eca(self, a):
        return self.peers["EcaModule"](C), {"conv.weight": a["kernel"][None, None]}

    def eca_wide(self, a):
        return self.peers["EcaModule"](WIDE), {"conv.weight": a["kernel"][None, None]}

    def scse(self, a):
        weights = self._mlp(a, "cSE.1", "cSE.3")
        weights["sSE.0.weight"] = _convolution(a["spatial_kernel"])
        weights["sSE.0.bias"] = a["spatial_bias"]
        return self.peers["SCSEModule"](C, reduction=2), weights

    def cbam(self, a):
        weights = self._mlp(a, "channel.fc1", "channel.fc2", prefix="channel/", bias=False)
        # The mean comes first there, the maximum here.
        kernel = a["spatial/kernel"].flip(2)
        weights["spatial.conv.conv.weight"] = kernel.permute(3, 2, 0, 1)
        return self.peers["CbamModule"](C, rd_channels=R), weights

    def coordinate(self, a):
        names = {"reduce": "conv1", "rows": "conv_h", "columns": "conv_w"}
        return self.peers["CoordAttn"](C, rd_channels=R, bias=True), self._linear(a, names)

    def non_local(self, a):
        names = {"query": "t", "key": "p", "value": "g", "out": "z"}
        module = self.peers["NonLocalAttn"](C, use_scale=False, rd_channels=R)
        return module, self._linear(a | {"key_bias": a["query_bias"] * 0}, names)

    def _linear(self, a, names):
        weights = {f"{to}.weight": _convolution(a[f"{name}_kernel"]) for name, to in names.items()}
        return weights | {f"{to}.bias": a[f"{name}_bias"] for name, to in names.items()}

    def attention_gate(self, a):
        import torch

        module = self.peers["AttentionBlock"](2, f_int=R, f_g=G, f_l=C)
        # Batch norms of theirs that the paper does not have; so set, they change nothing.
        weights = {}
        for place, size in (("W_g.1", R), ("W_x.1", R), ("psi.1", 1)):
            weights[f"{place}.running_var"] = torch.full((size,), 1 - 1e-5)
            weights[f"{place}.running_mean"] = torch.zeros(size)
        linear = {"W_g.0": "signal", "psi.0": "score"}
        for place, name in linear.items():
            weights[f"{place}.conv.weight"] = _convolution(a[f"{name}_kernel"])
            weights[f"{place}.conv.bias"] = a[f"{name}_bias"]
        weights["W_x.0.conv.weight"] = _convolution(a["kernel"][0, 0])
        weights["W_x.0.conv.bias"] = torch.zeros(R)
        return module, weights


@functools.cache
def _peers():
    """Their classes by name, without what their packages import beside them."""
    import importlib.util
    import os
    import sys
    import types

    def bare(name):
        """Returns a package that contains its modules, without executing its __init__."""
        parent, _, last = name.rpartition(".")
        package = types.ModuleType(name)
        if parent:
            package.__path__ = [os.path.join(path, last) for path in sys.modules[parent].__path__]
        else:
            package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = package

    for name in ("timm", "segmentation_models_pytorch", "segmentation_models_pytorch.base"):
        bare(name)
    # The one thing that timm.layers wants of torchvision, and for nothing that is used here.
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
    from monai.networks.nets.attentionunet import AttentionBlock
    from segmentation_models_pytorch.base.modules import SCSEModule
    from timm.layers.cbam import CbamModule
    from timm.layers.coord_attn import CoordAttn
    from timm.layers.eca import EcaModule
    from timm.layers.non_local_attn import NonLocalAttn
    from timm.layers.squeeze_excite import SEModule

    classes = (AttentionBlock, SCSEModule, CbamModule, CoordAttn, EcaModule, NonLocalAttn, SEModule)
    return {kind.__name__: kind for kind in classes}
