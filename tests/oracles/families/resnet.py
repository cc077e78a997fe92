"""A residual network with the stem of ImageNet compared with ResNetModel of transformers.

Maps are [B, C, Y, X] there, kernels [O, C, height, width]; each map of ours is one of its hidden
states.
"""

import functools

import jax
import numpy as np
from flax import nnx

from tasks.common.backbones.resnet import ResNet, ResNetConfig
from tests.oracles.problems import differentiate, torch_answers

B, Y, X, C = 2, 17, 22, 3
CASES = ("resnet_evaluation", "resnet_training")
CONFIG = ResNetConfig(channels=(4, 6), depths=(1, 2), stem="imagenet")


@functools.cache
def _shapes():
    """Path -> shape of each parameter and statistic."""
    state = jax.eval_shape(lambda: nnx.state(ResNet(CONFIG, C, rngs=nnx.Rngs(0))))
    flat = nnx.to_flat_state(state)
    return {"/".join(map(str, path)): leaf.shape for path, leaf in flat}


def inputs(case):
    """Returns all arrays of a problem, float32."""
    rng = np.random.RandomState(CASES.index(case))
    arrays = {}
    for path, shape in _shapes().items():
        if path.endswith("/kernel"):
            array = rng.normal(size=shape) * (2.0 / np.prod(shape[:3])) ** 0.5
        elif path.endswith("/scale"):
            array = 1 + 0.3 * rng.normal(size=shape)
        elif path.endswith("/bias"):
            array = 0.3 * rng.normal(size=shape)
        else:
            continue
        arrays[path] = array.astype(np.float32)
    sides = CONFIG.sides(Y, X)[-1]
    arrays["x"] = rng.normal(size=(B, Y, X, C)).astype(np.float32)
    arrays["cotangent"] = rng.normal(size=(B, *sides, 6)).astype(np.float32)
    return arrays


def _statistics():
    """Path -> running mean or variance before the call; not differentiated."""
    rng = np.random.RandomState(99)
    found = {}
    for path, shape in _shapes().items():
        if path.endswith("/mean"):
            found[path] = 0.3 * rng.normal(size=shape).astype(np.float32)
        elif path.endswith("/variance"):
            found[path] = 1 + rng.uniform(size=shape).astype(np.float32)
    return found


def ours(case):
    """Maps, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case):
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _ours(case, arrays):
    model = ResNet(CONFIG, C, rngs=nnx.Rngs(0))
    arrays = dict(arrays)
    images, training = arrays.pop("x"), case.endswith("training")
    variables = {"/".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(model))}
    for path, array in (arrays | _statistics()).items():
        variables[path][...] = array
    (first, out), _ = model(images, training=training)
    running = variables["stages/1/blocks/0/shortcut/norm/variance"][...]
    return {"first": first, "out": out} | ({"running": running} if training else {})


# Our names within a block -> theirs.
_LAYERS = {"first": "layer.0", "second": "layer.1", "shortcut": "shortcut"}
_KINDS = {
    "kernel": "convolution.weight",
    "scale": "normalization.weight",
    "bias": "normalization.bias",
    "mean": "normalization.running_mean",
    "variance": "normalization.running_var",
}


def _name(path):
    *parts, kind = path.removesuffix("/").split("/")
    if parts[0] == "stem":
        return f"embedder.embedder.{_KINDS[kind]}"
    _, stage, _, block, layer, *_ = parts
    return f"encoder.stages.{stage}.layers.{block}.{_LAYERS[layer]}.{_KINDS[kind]}"


def _theirs(case, arrays):
    import torch
    from transformers import ResNetConfig as TheirConfig
    from transformers import ResNetModel

    config = TheirConfig(
        num_channels=C,
        embedding_size=CONFIG.channels[0],
        hidden_sizes=list(CONFIG.channels),
        depths=list(CONFIG.depths),
        layer_type="basic",
    )
    model, arrays = ResNetModel(config), dict(arrays)
    images, training = arrays.pop("x"), case.endswith("training")
    model.train(training)
    statistics = {path: torch.tensor(array) for path, array in _statistics().items()}
    weights = {
        _name(path): array.permute(3, 2, 0, 1) if array.ndim == 4 else array
        for path, array in (arrays | statistics).items()
    }
    options = {"output_hidden_states": True}
    found = torch.func.functional_call(model, weights, images.permute(0, 3, 1, 2), options)
    maps = [found.hidden_states[number].permute(0, 2, 3, 1) for number in (1, 2)]
    # The modules have moved what they were given.
    running = statistics["stages/1/blocks/0/shortcut/norm/variance"]
    return {"first": maps[0], "out": maps[1]} | ({"running": running} if training else {})
