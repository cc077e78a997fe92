"""Linformer: options, special cases, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import attend, attention_weights, masks, recording
from attention.sequence.low_rank import Linformer, linformer, linformer_weights
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

attend, attention_weights, linformer, linformer_weights = map(
    compiled, (attend, attention_weights, linformer, linformer_weights)
)

B, T, N, H, R, D = 2, 6, 2, 3, 4, 8


def arrays(length=T):
    return [normal(seed, B, length, N, H) for seed in range(3)]


def test_one_position_by_hand():
    one = np.ones((1, 1, 1, 1), np.float32)
    E, F = np.array([[[1.0, -2.0]]], np.float32), np.array([[[3.0, 5.0]]], np.float32)
    # Logits 1 and -2; the mixtures of the value are 3 and 5.
    shares = np.exp([1.0, -2.0]) / np.exp([1.0, -2.0]).sum()
    expected = shares @ [3.0, 5.0]
    np.testing.assert_allclose(linformer(one, one, one, E, F)[0, 0, 0, 0], expected, rtol=1e-6)
    weights = linformer_weights(one, one, E, F)
    np.testing.assert_allclose(weights[0, 0, 0, 0], expected, rtol=1e-6)


def test_identity_projections_are_attention():
    query, key, value = arrays()
    E = np.eye(T, dtype=np.float32)[None]
    np.testing.assert_allclose(
        linformer(query, key, value, E, E), attend(query, key, value), atol=1e-6
    )
    np.testing.assert_allclose(
        linformer_weights(query, key, E, E), attention_weights(query, key), atol=1e-6
    )


def test_weights_take_the_values_to_the_result():
    query, key, value = arrays()
    E, F = normal(3, N, T, R), normal(4, N, T, R)
    mask = masks.lengths(query=jnp.array([6, 5]), key=jnp.array([4, 6]))
    heads = linformer(query, key, value, E, F, mask=mask)
    weights = linformer_weights(query, key, E, F, mask=mask)
    np.testing.assert_allclose(np.einsum("bnts,bsnv->btnv", weights, value), heads, atol=1e-5)
    np.testing.assert_array_equal(heads[1, 5:], 0)
    np.testing.assert_array_equal(weights[1, :, 5:], 0)
    np.testing.assert_array_equal(weights[0, :, :, 4:], 0)
    assert (weights < 0).any()


def test_padding_at_the_end_changes_nothing():
    module = Linformer(D, 2, max_length=9, projected_length=3, rngs=nnx.Rngs(0))
    x = normal(0, B, 9, D)
    short = module(x[:, :4])
    padded = module(x, mask=masks.lengths(key=jnp.array([4, 4])))
    np.testing.assert_allclose(padded[:, :4], short, atol=1e-6)


def test_what_is_recorded_is_what_is_returned():
    module = Linformer(D, 2, max_length=T, projected_length=3, rngs=nnx.Rngs(0))
    seen = []
    with recording.recorder(lambda compute: seen.append(compute())):
        _, weights = module(normal(0, B, T, D), return_weights=True)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], weights)


@pytest.mark.parametrize(
    ("sharing", "shapes"),
    [("none", [(2, 9, 3)] * 2), ("heads", [(1, 9, 3)] * 2), ("key_value", [(1, 9, 3)])],
)
def test_sharing_shares(sharing, shapes):
    module = Linformer(
        D, 2, max_length=9, projected_length=3, sharing=sharing, use_bias=False, rngs=nnx.Rngs(0)
    )
    params = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert [leaf.shape for leaf in params if leaf.shape[-1] == 3] == shapes
    assert module.query.bias is None
    assert module.out.bias is None


def test_mistakes_are_told():
    for wrong, message in (
        ({"num_heads": 3}, "num_heads: got 3, expected a positive divisor of model_size=8"),
        ({"head_size": 0}, "head_size: got 0, expected at least 1"),
        ({"max_length": 0}, "max_length: got 0, expected at least 1"),
        ({"projected_length": 0}, "projected_length: got 0, expected at least 1"),
        ({"sharing": "layers"}, "sharing: got 'layers', expected one of"),
        ({"dropout_rate": 1.0}, "dropout_rate: got 1.0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Linformer(D, **({"num_heads": 2} | wrong), rngs=nnx.Rngs(0))
    query, key, value = arrays()
    E = normal(3, N, T, R)
    for change, message in (
        ({"key_projection": E[:, :-1]}, r"key_projection: got shape \[2, 5, 4\], expected"),
        ({"value_projection": E[..., :-1]}, r"value_projection: got shape \[2, 6, 3\]"),
        (
            {"key": key[:, :, :1], "value": value[:, :, :1]},
            r"key: got shape \[2, 6, 1, 3\], expected \[B, S, N, H\]",
        ),
    ):
        arguments = {"query": query, "key": key, "value": value}
        arguments |= {"key_projection": E, "value_projection": E} | change
        with pytest.raises(ValueError, match=f"^{message}"):
            linformer(**arguments)
    module = Linformer(D, 2, max_length=9, projected_length=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^x: got shape \[2, 6, 7\], expected \[B, T, D\]"):
        module(normal(0, B, T, 7))
