"""Tests of single mechanisms: hand-computed values, dependencies, and equivalent forms."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from attention import attend, masks
from attention.image.attention_gate import AttentionGate, resize
from attention.image.axial import Axial, along, between_positions
from attention.image.batch_norm import BatchNorm, batch_moments, batch_norm
from attention.image.cbam import CBAM, SpatialGate, spatial_descriptor
from attention.image.channel import EfficientChannel, SqueezeExcite, adaptive_kernel_size
from attention.image.coordinate import Coordinate
from attention.image.maps import convolve, maximum
from attention.image.non_local import NonLocal, non_local, non_local_weights
from attention.image.scse import ChannelAndSpatial
from attention.image.window import (
    ShiftedWindow,
    relative_bias,
    window_attention,
    window_indices,
    window_weights,
)
from attention.multi_head import MultiHeadAttention
from tests.attention.compiled import compiled
from tests.attention.subjects import normal
from tests.attention.test_wrong_calls import told

(
    attend,
    batch_moments,
    batch_norm,
    non_local,
    non_local_weights,
    window_attention,
    window_weights,
) = map(
    compiled,
    (
        attend,
        batch_moments,
        batch_norm,
        non_local,
        non_local_weights,
        window_attention,
        window_weights,
    ),
)

X = jnp.asarray(normal(0, 2, 5, 6, 8))


def with_zeros(module):
    """Returns all parameters 0."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, params), rest)


@pytest.mark.parametrize(
    ("kind", "gate"),
    [
        (SqueezeExcite, 0.5),
        (EfficientChannel, 0.5),
        (SpatialGate, 0.5),
        (CBAM, 0.25),
        (ChannelAndSpatial, 1.0),
        (Coordinate, 0.25),
    ],
)
def test_without_weights_each_gate_is_a_half(kind, gate):
    """Sigmoids of 0: one, the product of two, or the sum of two."""
    gate_of = compiled(with_zeros(kind(8, rngs=nnx.Rngs(0))))
    out, weights = gate_of(X, return_weights=True)
    np.testing.assert_allclose(weights, np.full(weights.shape, gate))
    np.testing.assert_allclose(out, gate * X, rtol=1e-6)


def test_squeeze_excite_by_hand():
    # Means 2 and -1; hidden relu(2 - (-1)) = 3; logits 3 ln(3)/3 and 0: gates 3/4 and 1/2.
    x = jnp.array([[[[1.0, -1.0]], [[3.0, -1.0]]]])
    module = SqueezeExcite(2, reduction=2, rngs=nnx.Rngs(0))
    module.reduce.kernel[...] = jnp.array([[1.0], [-1.0]])
    module.expand.kernel[...] = jnp.array([[np.log(3.0) / 3, 0.0]])
    out, gate = module(x, return_weights=True)
    np.testing.assert_allclose(gate[0, 0, 0], [0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(out[0, :, 0], [[0.75, -0.5], [2.25, -0.5]], rtol=1e-6)


# The paper's figure 5 and table: 3 at 64 to 128 channels or so, 5 at 256 and above.
@pytest.mark.parametrize(("channels", "size"), [(1, 1), (8, 3), (64, 3), (256, 5), (2048, 7)])
def test_how_far_eca_looks(channels, size):
    assert adaptive_kernel_size(channels) == size
    assert adaptive_kernel_size(channels) % 2 == 1


def test_the_spatial_descriptor_has_the_maximum_first():
    described = spatial_descriptor(jnp.array([[[[1.0, 2.0, 9.0], [-4.0, -1.0, -1.0]]]]))
    np.testing.assert_allclose(described, [[[[9.0, 4.0], [-1.0, -2.0]]]])


def test_a_maximum_has_all_the_gradient():
    """A shift of all channels shifts the maximum equally: the gradient is 1 at all 248 positions.

    The gradient of jnp.max is smaller: when compiled, it compares with a normalized map that was
    recomputed with different rounding.
    """
    keys = [jax.random.key(number) for number in (0, 2, 3)]
    z = jax.random.normal(keys[0], (62, 2, 2, 128))
    scale, start = 1 + 0.1 * jax.random.normal(keys[1], (128,)), jax.random.normal(keys[2], (128,))

    def total(bias, z):
        moments = batch_moments(z)[:2]
        x = jax.nn.relu(batch_norm(z, *moments, scale, bias))
        return jnp.sum(spatial_descriptor(x)[..., 0])

    as_users_have_it = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
    }
    # XLA of jaxlib 0.12 has no such option; where it has, conftest.py may have set it.
    if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
        as_users_have_it["xla_cpu_use_fusion_emitters"] = True
    gradient = jax.jit(jax.grad(total), compiler_options=as_users_have_it)(0.1 * start, z)
    assert float(gradient.sum()) == 248


@pytest.mark.parametrize("axis", [1, -1])
def test_maximum_by_hand(axis):
    x = jnp.array([[[1.0, 5.0], [3.0, 3.0]]])
    np.testing.assert_array_equal(maximum(x, axis), [[3.0, 5.0]] if axis == 1 else [[5.0, 3.0]])
    # Of equal ones the first has the gradient.
    gradient = jax.grad(lambda x: jnp.sum(maximum(x, axis)))(x)
    np.testing.assert_array_equal(gradient, [[[0, 1], [1, 0]]])


def test_the_spatial_gate_moves_with_the_map():
    """The gate is translation equivariant away from the edges."""
    module = SpatialGate(3, kernel_size=3, rngs=nnx.Rngs(0))
    x = jnp.zeros((1, 9, 9, 3)).at[0, 3:5, 3:5].set(normal(1, 2, 2, 3))
    moved = jnp.roll(x, (1, 2), axis=(1, 2))
    np.testing.assert_allclose(jnp.roll(module(x), (1, 2), (1, 2)), module(moved), atol=1e-6)


def test_coordinate_tells_rows_from_columns():
    """A row of ones has a different gate in that row, unlike a column of ones."""
    module = Coordinate(4, rngs=nnx.Rngs(0))
    row = jnp.zeros((1, 5, 5, 4)).at[:, 2].set(1.0)
    _, gate = module(row, return_weights=True)
    inside, outside = gate[0, 2], gate[0, 1]
    assert np.abs(inside - outside).max() > 1e-3
    np.testing.assert_allclose(gate[0, 2, 0], gate[0, 2, 4], rtol=1e-6)


def test_convolution_equals_scipys():
    image, kernel = normal(1, 5, 6), normal(2, 3, 3)
    found = convolve(jnp.asarray(image)[None, ..., None], jnp.asarray(kernel)[..., None, None])
    expected = scipy.ndimage.correlate(image.astype(np.float64), kernel, mode="constant")
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=1e-5)


# ---------------------------------------------------------------- batch norm


def test_batch_norm_by_hand():
    # Values 1, 3, 5, 7: mean 4, variance 5, unbiased 20 / 3.
    norm = BatchNorm(1, momentum=0.25, epsilon=0.0)
    x = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])
    np.testing.assert_allclose(norm(x, training=True), (x - 4) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [1.0], rtol=1e-6)
    np.testing.assert_allclose(norm.variance[...], [0.75 + 5 / 3], rtol=1e-6)
    np.testing.assert_allclose(norm(x), (x - 1) / np.sqrt(0.75 + 5 / 3), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [1.0], rtol=1e-6)


def test_moments_of_valid_examples_alone():
    x = jnp.array([[[1.0], [3.0]], [[np.nan], [np.inf]]])
    mean, variance, n = batch_moments(x, jnp.array([True, False]))
    np.testing.assert_allclose((mean[0], variance[0], n), (2.0, 1.0, 2.0))


def test_running_statistics_are_no_parameters_and_have_no_gradient():
    norm = BatchNorm(3)
    assert set(nnx.to_pure_dict(nnx.state(norm, nnx.Param))) == {"scale", "bias"}
    graphdef, params, statistics = nnx.split(norm, nnx.Param, ...)

    def moved(x):
        module = nnx.merge(graphdef, params, statistics, copy=True)
        module(x, training=True)
        return jnp.sum(module.mean[...]) + jnp.sum(module.variance[...])

    np.testing.assert_array_equal(jax.grad(moved)(jnp.asarray(normal(0, 4, 3))), np.zeros((4, 3)))


# ---------------------------------------------------------------- between positions


@pytest.mark.parametrize("norm", [True, False])
def test_non_local_is_the_identity_at_the_start(norm):
    module = NonLocal(8, norm=norm, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(compiled(module)(X), X)
    total = jax.jit(jax.grad(lambda kernel: _with_kernel(module, kernel, norm)))
    gradient = total(jnp.zeros(8))
    assert np.abs(gradient).max() > 0


def _with_kernel(module, change, norm):
    graphdef, state = nnx.split(module)
    module = nnx.merge(graphdef, state, copy=True)
    place = module.norm.scale if norm else module.out.kernel
    place[...] = place[...] + change
    return jnp.sum(jnp.square(module(X)))


@pytest.mark.parametrize("similarity", ["embedded_gaussian", "dot_product"])
def test_non_local_weights_take_the_values_to_the_result(similarity):
    query, key, value = (jnp.asarray(normal(i, 2, 7, 3, 4)) for i in range(3))
    out = non_local(query, key, value, similarity=similarity)
    weights = non_local_weights(query, key, similarity=similarity)
    expected = np.einsum("bnpq,bqnh->bpnh", weights, value)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_axial_is_a_mixer_along_rows_and_then_along_columns():
    module = Axial(8, num_heads=2, positions="shaw", residual=False, rngs=nnx.Rngs(0))
    mix_row, mix_column = compiled(module.rows), compiled(module.columns)
    rows = np.stack([mix_row(X[:, y]) for y in range(5)], axis=1)
    expected = np.stack([mix_column(rows[:, :, x]) for x in range(6)], axis=2)
    np.testing.assert_allclose(compiled(module)(X), expected, atol=1e-5)


def influence(run, x, place):
    """Returns the mask of positions that the result at one position depends on, bool [Y, X]."""
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x)[0, place[0], place[1]])))(x)
    return np.abs(gradient[0]).max(axis=-1) > 0


def test_axial_sees_a_cross_in_one_pass_and_all_in_two():
    mixer = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    row = influence(lambda x: along(x, "row", mixer), X[:1], (1, 2))
    assert row[1].all()
    assert not np.delete(row, 1, axis=0).any()
    assert influence(Axial(8, rngs=nnx.Rngs(0)), X[:1], (1, 2)).all()


def test_weights_of_lines_between_positions():
    # Two rows of two: within a row as given, 0 across.
    weights = jnp.arange(8.0).reshape(2, 1, 2, 2)
    of_rows = between_positions(weights, 2, 2, "row")[0, 0]
    np.testing.assert_array_equal(of_rows, [[0, 1, 0, 0], [2, 3, 0, 0], [0, 0, 4, 5], [0, 0, 6, 7]])
    of_columns = between_positions(weights, 2, 2, "column")[0, 0]
    np.testing.assert_array_equal(
        of_columns, [[0, 0, 1, 0], [0, 4, 0, 5], [2, 0, 3, 0], [0, 6, 0, 7]]
    )
    told("axis: got 'rows', expected 'row' or 'column'", between_positions, weights, 2, 2, "rows")
    told("axis: got 'rows', expected 'row' or 'column'", along, X, "rows", lambda x: x)


# ---------------------------------------------------------------- windows


def test_windows_by_hand():
    """A 4 x 4 map with windows of 2, shifted by 1, has nine regions; the middle one is a window."""
    places, regions = window_indices(4, 4, 2, 1)
    np.testing.assert_array_equal(
        places, [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]]
    )
    np.testing.assert_array_equal(regions, [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 2, 2], [0, 1, 2, 3]])
    # A side with a single window is not shifted, and padding belongs to no region.
    places, regions = window_indices(1, 3, 2, 1)
    np.testing.assert_array_equal(places, [[1, 2, 3, 3], [3, 0, 3, 3]])
    np.testing.assert_array_equal(regions, [[0, 0, -1, -1], [-1, 1, -1, -1]])


@pytest.mark.parametrize(("Y", "X", "size", "shift"), [(5, 7, 3, 1), (8, 8, 4, 2), (1, 1, 4, 2)])
def test_every_position_stands_in_one_window(Y, X, size, shift):
    places, regions = window_indices(Y, X, size, shift)
    real = places[places < Y * X]
    np.testing.assert_array_equal(np.sort(real), np.arange(Y * X))
    np.testing.assert_array_equal(regions == -1, places == Y * X)
    told("shift: got 3, expected an int in", window_indices, 5, 5, 3, 3)
    told("size: got 0, expected at least 1", window_indices, 5, 5, 0)


def heads(seed, Y, X):
    return jnp.asarray(normal(seed, 2, Y, X, 2, 4))


def test_a_window_as_large_as_the_map_is_attention():
    query, key, value = (heads(i, 3, 5) for i in range(3))
    table = jnp.asarray(normal(4, 9, 9, 2))
    out = window_attention(query, key, value, size=5, shift=2, bias=relative_bias(table, 5))
    bias = np.zeros((1, 2, 15, 15), np.float32)
    for p, q in np.ndindex(15, 15):
        bias[0, :, p, q] = table[p // 5 - q // 5 + 4, p % 5 - q % 5 + 4]
    flat = [array.reshape(2, 15, 2, 4) for array in (query, key, value)]
    expected = attend(*flat, bias=jnp.asarray(bias))
    np.testing.assert_allclose(out.reshape(2, 15, 2, 4), expected, atol=1e-5)


def test_windows_equal_a_dense_mask():
    Y, X, size, shift = 7, 8, 4, 2
    query, key, value = (heads(i, Y, X) for i in range(3))
    rows, columns = (np.arange(Y) - shift) // size, (np.arange(X) - shift) // size
    part = (rows[:, None] * 100 + columns).ravel()
    mask = masks.dense((part[:, None] == part)[None, None])
    flat = [array.reshape(2, Y * X, 2, 4) for array in (query, key, value)]
    out = window_attention(query, key, value, size=size, shift=shift)
    np.testing.assert_allclose(out.reshape(flat[0].shape), attend(*flat, mask=mask), atol=1e-5)
    weights = window_weights(query, key, size=size, shift=shift)
    seen = np.broadcast_to(part[:, None] == part, weights.shape)
    np.testing.assert_array_equal(np.asarray(weights) > 0, seen)


def test_two_windows_shifted_reach_beyond_one():
    first = ShiftedWindow(8, window=2, shift=0, rngs=nnx.Rngs(0))
    second = ShiftedWindow(8, window=2, rngs=nnx.Rngs(1))
    alone = influence(first, X[:1], (2, 2))
    assert alone.sum() == 4
    both = influence(lambda x: second(first(x)), X[:1], (2, 2))
    # The shifted window's four positions, one of each of the four windows there.
    assert both.sum() == 16
    assert both[:4, :4].all()


def test_biases_that_do_not_fit_are_refused():
    told(r"table: got shape \[3, 3, 2\], expected", relative_bias, jnp.ones((3, 3, 2)), 3)


# ---------------------------------------------------------------- the gate of a coarser map


def test_resize_by_hand():
    line = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize(line, 1, 4)[0, 0, :, 0], [0, 1, 3, 4])
    np.testing.assert_allclose(resize(line, 2, 3)[0, :, :, 0], [[0, 2, 4], [0, 2, 4]])
    np.testing.assert_array_equal(resize(line, 1, 2), line)


def test_the_gate_opens_where_the_signal_is():
    """The gate depends only on the signal, which is 1 in its upper left quarter, and not on x."""
    gate = AttentionGate(3, 1, hidden_size=1, rngs=nnx.Rngs(0))
    gate.kernel[...] = jnp.zeros_like(gate.kernel[...])
    gate.signal.kernel[...] = jnp.ones((1, 1))
    gate.score.kernel[...] = jnp.full((1, 1), 20.0)
    gate.score.bias[...] = jnp.array([-10.0])
    signal = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0].set(1.0)
    x = jnp.asarray(normal(0, 1, 8, 8, 3))
    out, weights = gate(x, signal, return_weights=True)
    assert weights.shape == (1, 8, 8, 1)
    np.testing.assert_allclose(out[0, 0, 0], x[0, 0, 0], rtol=1e-3)
    np.testing.assert_allclose(weights[0, 6:, 6:], 0, atol=1e-3)
    assert (np.diff(weights[0, :, :, 0], axis=0) <= 0).all()
