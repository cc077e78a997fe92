"""MultiHeadAttention, projections and positions: what the contract does not ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import LearnedPositions, MultiHeadAttention, masks
from attention.normalization import LayerNorm
from attention.positions import build_added_positions, rotary, sinusoidal
from attention.projection import Projection
from tests.attention.subjects import normal

X = jnp.asarray(normal(0, 2, 5, 8))


def shape_of(module, path):
    for name in path.split("/"):
        module = getattr(module, name)
    return module[...].shape


def test_multi_head_parameter_layout():
    module = MultiHeadAttention(
        8, 4, key_value_heads=2, head_size=6, value_head_size=3, memory_size=5, rngs=nnx.Rngs(0)
    )
    shapes = {
        "query/kernel": (8, 4, 6),
        "query/bias": (4, 6),
        "key/kernel": (5, 2, 6),
        "key/bias": (2, 6),
        "value/kernel": (5, 2, 3),
        "value/bias": (2, 3),
        "out/kernel": (4, 3, 8),
        "out/bias": (8,),
    }
    state = nnx.to_flat_state(nnx.state(module))
    assert {"/".join(map(str, path)): leaf[...].shape for path, leaf in state} == shapes
    assert all(leaf[...].dtype == jnp.float32 for _, leaf in state)
    bare = MultiHeadAttention(8, 4, use_bias=False, rngs=nnx.Rngs(0))
    assert len(nnx.to_flat_state(nnx.state(bare))) == 4


def test_multi_head_rope_depends_on_distance_alone():
    module = MultiHeadAttention(8, 2, positions="rope", rngs=nnx.Rngs(0))
    run = jax.jit(lambda p: module(X, query_positions=p, key_positions=p, return_weights=True))
    out, weights = run(jnp.arange(5))
    shifted, shifted_weights = run(jnp.arange(5) + 7)
    np.testing.assert_allclose(shifted, out, atol=2e-6)
    np.testing.assert_allclose(shifted_weights, weights, atol=2e-6)
    np.testing.assert_allclose(module(X), out, atol=2e-6)
    assert np.abs(run(2 * jnp.arange(5))[0] - out).max() > 1e-3
    each = run(jnp.stack([jnp.arange(5), jnp.arange(5) + 3]))[0]
    np.testing.assert_allclose(each, out, atol=2e-6)


def test_multi_head_dropout_only_with_a_key():
    module = MultiHeadAttention(8, 2, dropout_rate=0.5, rngs=nnx.Rngs(0))
    plain = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(module(X), plain(X))
    assert np.abs(module(X, dropout_key=jax.random.key(0)) - plain(X)).max() > 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(X[..., :6]), r"x: got shape \[2, 5, 6\], expected \[B, T, D\] with D=8"),
        (lambda m: m(X, X[:1]), r"memory: got shape \[1, 5, 8\], expected .* with B=2, M=8"),
        (
            lambda m: m(X, query_positions=jnp.arange(5)),
            r"expected None because the module was built with positions='none'",
        ),
        (lambda m: m(X, mask=masks.lengths(key=jnp.ones(3, int))), r"lengths\(key=\): got shape"),
    ],
)
def test_multi_head_calls_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(MultiHeadAttention(8, 2, rngs=nnx.Rngs(0)))


def test_multi_head_cross_rope_needs_both_positions():
    module = MultiHeadAttention(8, 2, positions="rope", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="query_positions: got None, expected query and key"):
        module(X, X)
    with pytest.raises(ValueError, match="key_positions: got None, expected query and key"):
        module(X, X, query_positions=jnp.arange(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, r"num_heads: got 3, expected a positive divisor of model_size=8"),
        ({"num_heads": 0}, r"num_heads: got 0"),
        ({"num_heads": 4, "key_value_heads": 3}, r"key_value_heads: got 3, .*num_heads=4"),
        ({"num_heads": 8, "positions": "rope"}, r"head_size: got 1, expected an even number"),
        (
            {"num_heads": 4, "positions": "yes"},
            r"positions: got 'yes', expected one of \['none', 'rope'",
        ),
        ({"num_heads": 4, "dropout_rate": -0.1}, r"dropout_rate: got -0.1, expected a rate"),
    ],
)
def test_multi_head_arguments_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(8, **arguments, rngs=nnx.Rngs(0))


def test_projection_is_a_matrix_product_in_float32():
    projection = Projection((2, 3), (4, 5), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    limit = np.sqrt(6 / (6 + 20))
    kernel = np.asarray(projection.kernel[...])
    assert kernel.shape == (2, 3, 4, 5)
    assert 0.9 * limit < np.abs(kernel).max() <= limit
    x = jnp.asarray(normal(0, 7, 2, 3), jnp.bfloat16)
    out = projection(x)
    assert out.dtype == jnp.bfloat16
    rounded = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float64)
    exact = np.einsum("iab,abcd->icd", np.asarray(x, np.float64), rounded)
    # Summed in float32: all that is lost is the last rounding, at most 2^-8 of the value.
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=2**-8, atol=1e-6)
    with pytest.raises(ValueError, match=r"x: got shape \[7, 3\], expected \[..., 2, 3\]"):
        projection(x[:, 0])


def test_sinusoidal_by_the_paper():
    table = np.asarray(sinusoidal(jnp.arange(50), 6))
    for p, i in [(0, 0), (1, 0), (7, 1), (49, 2)]:
        angle = p / 10000 ** (2 * i / 6)
        np.testing.assert_allclose(table[p, 2 * i], np.sin(angle), atol=1e-5)
        np.testing.assert_allclose(table[p, 2 * i + 1], np.cos(angle), atol=1e-5)
    np.testing.assert_array_equal(sinusoidal(jnp.array([[3, 1]]), 6)[0], table[jnp.array([3, 1])])
    halves = sinusoidal(jnp.arange(50), 6, interleaved=False)
    np.testing.assert_array_equal(halves, np.concatenate([table[:, ::2], table[:, 1::2]], axis=1))
    with pytest.raises(ValueError, match="size: got 5, expected an even number"):
        sinusoidal(jnp.arange(3), 5)
    with pytest.raises(ValueError, match="positions: got dtype float32, expected an integer"):
        sinusoidal(jnp.ones(3), 6)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_is_a_complex_rotation(interleaved):
    x, positions = normal(0, 2, 5, 3, 4), np.array([0, 1, 2, 5, 9])
    turned = np.asarray(rotary(jnp.asarray(x), jnp.asarray(positions), interleaved=interleaved))

    def as_complex(x):
        pairs = (x[..., 0::2], x[..., 1::2]) if interleaved else np.split(x, 2, axis=-1)
        return pairs[0] + 1j * pairs[1]

    frequencies = 10000.0 ** (-np.array([0, 2]) / 4)
    rotation = np.exp(1j * positions[:, None, None] * frequencies)
    np.testing.assert_allclose(as_complex(turned), as_complex(x) * rotation, atol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_rotary_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"positions: got shape \[4\], expected \[T\] with T=5"):
        rotary(jnp.ones((2, 5, 3, 4)), jnp.arange(4))
    with pytest.raises(ValueError, match="head_size: got 3, expected an even number"):
        rotary(jnp.ones((2, 5, 3, 3)), jnp.arange(5))


def test_learned_positions():
    positions = LearnedPositions(4, 8, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(positions(3), positions.embedding[...][:3])
    with pytest.raises(ValueError, match="length: got 5, expected at most max_length=4"):
        positions(5)
    table, some = positions.embedding[...], positions.at(jnp.array([[3, 0], [1, 4]]))
    np.testing.assert_array_equal(some[0], table[jnp.array([3, 0])])
    np.testing.assert_array_equal(some[1, 0], table[1])
    assert np.isnan(some[1, 1]).all()


def test_added_positions_by_spec():
    build = functools.partial(build_added_positions, rngs=nnx.Rngs(0))
    halves = build("sinusoidal(interleaved=False, base=100)", 4, 6)
    expected = sinusoidal(jnp.arange(9), 6, base=100.0, interleaved=False)
    np.testing.assert_array_equal(halves(9), expected)
    np.testing.assert_array_equal(halves.at(jnp.array([[2, 8]]))[0], expected[jnp.array([2, 8])])
    assert build("learned", 4, 6).embedding.shape == (4, 6)
    assert build("none", 4, 6) is None
    with pytest.raises(ValueError, match=r"positions: got 'learnt', .*did you mean 'learned'"):
        build("learnt", 4, 6)
    with pytest.raises(ValueError, match=r"option 'length' in 'sinusoidal\(length=4\)'"):
        build("sinusoidal(length=4)", 4, 6)


@pytest.mark.parametrize(
    "options",
    [{}, {"positions": "rope", "qk_norm": True, "key_value_heads": 1, "gate": "headwise"}],
    ids=["plain", "rope"],
)
def test_a_prepared_memory_is_read_as_the_memory_itself(options):
    module = MultiHeadAttention(8, 2, memory_size=3, **options, rngs=nnx.Rngs(0))
    memory = jnp.asarray(normal(1, 2, 6, 3))
    places = [None, None] if not options else [jnp.arange(5) + 2, jnp.arange(6)]
    names = ("query_positions", "key_positions")
    mask, positions = masks.lengths(key=jnp.array([6, 2])), dict(zip(names, places, strict=True))
    expected = module(X, memory, mask=mask, return_weights=True, **positions)
    prepared = module.project_memory(memory, key_positions=places[1])
    for got, whole in zip(
        module.attend_memory(X, prepared, mask=mask, **positions), expected, strict=True
    ):
        np.testing.assert_allclose(got, whole, atol=1e-6)
    wrong = jnp.arange(6) if not options else None
    if options:
        got = "None, expected query and key positions because there is a memory"
    else:
        got = "positions, expected None because the module was built with positions='none'"
    with pytest.raises(ValueError, match=f"key_positions: got {got}"):
        module.project_memory(memory, key_positions=wrong)
    with pytest.raises(ValueError, match=r"memory: got shape \[2, 5, 8\], expected .* with M=3"):
        module.project_memory(X)


def test_norm_without_a_bias():
    norm = LayerNorm(8, use_bias=False)
    assert norm.bias is None
    np.testing.assert_array_equal(norm(X), LayerNorm(8)(X))
