"""The text Transformer with every registered mixer: padding changes nothing, all weights learn.

Padding and gradients of each mixer alone are in tests/attention/test_contract.py, so mixers that
are similar to another one are slow tests here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import registry
from tasks.text_classification import model as models
from tests.tasks.text_classification.test_model import batch, build

SMALL = {"model_size": 8, "num_layers": 1, "num_heads": 2, "feedforward_size": 8}


ONE_LENGTH = [
    line.name for line in registry.mechanisms("mixer") if "length_dependent" in line.capabilities
]
# One mixer of each kind: softmax, sparse, feature maps, low rank, recurrent, without weights.
QUICK = ("dot_product", "longformer", "linear", "linformer", "gated_delta_net", "fourier")


@pytest.mark.parametrize("mixer", ONE_LENGTH)
def test_mixers_for_inputs_of_one_length_are_refused(mixer):
    with pytest.raises(ValueError, match=f"mixer: got '{mixer}', whose result depends on the"):
        models.TransformerConfig(**SMALL, mixer=mixer)


@pytest.mark.parametrize(
    "mixer",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in registry.names("mixer")
        if name not in ONE_LENGTH
    ],
)
def test_every_mixer_reads_text(mixer):
    graphdef, params, others = nnx.split(
        build(models.TransformerConfig(**SMALL, mixer=mixer, max_length=9)), nnx.Param, ...
    )

    def logits(params, tokens, lengths):
        return nnx.merge(graphdef, params, others)(tokens, lengths)

    def loss(params, tokens, lengths):
        result = logits(params, tokens, lengths)
        return jnp.sum(jnp.sin(result * jnp.arange(1.0, 10.0).reshape(3, 3))), result

    tokens, lengths = batch(5)
    gradient, expected = jax.jit(jax.grad(loss, has_aux=True))(params, tokens, lengths)
    wider, _ = batch(9)
    wider[wider == 0] = 33
    other = jax.jit(logits)(params, wider, lengths)
    np.testing.assert_allclose(other, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-4
    gradient = nnx.to_pure_dict(gradient)["encoder"]["layers"][0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        # Softmax does not see a shift: the key's bias may have a gradient of 0.
        name = jax.tree_util.keystr(path)
        assert np.abs(leaf).max() > 0 or "key" in name or "lambda" in name, name


def test_one_way_mixers_have_no_cls():
    one_way = [
        line.name for line in registry.mechanisms("mixer") if "always_causal" in line.capabilities
    ]
    assert one_way
    for mixer in one_way:
        with pytest.raises(ValueError, match=f"pooling: got 'cls', .* mixer '{mixer}'"):
            models.TransformerConfig(mixer=mixer, pooling="cls")
