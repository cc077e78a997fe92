"""Location-aware alignment: earlier weights, smoothing and sharpening."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import AdditiveAlignment, LocationAwareAlignment
from attention.recurrent.location import location_features, smoothed
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

location_features, smoothed = map(compiled, (location_features, smoothed))

X = jnp.asarray(normal(0, 2, 6, 8))


def build(**options):
    return LocationAwareAlignment(
        8, 8, **{"num_filters": 2, "width": 3} | options, rngs=nnx.Rngs(0)
    )


def follower(sharpness=60.0, **options):
    """Returns an alignment that only depends on its previous weights and moves by one: f_s = α_(s -
    1)."""
    alignment = LocationAwareAlignment(
        8, 8, hidden_size=1, num_filters=1, width=3, **options, rngs=nnx.Rngs(0)
    )
    for kernel in (alignment.query.kernel, alignment.key.kernel):
        kernel[...] = jnp.zeros_like(kernel[...])
    filters = np.zeros(alignment.filters[...].shape, np.float32)
    filters[0, 0] = 1
    alignment.filters[...] = jnp.asarray(filters)
    alignment.location.kernel[...] = jnp.ones((1, 1))
    alignment.score[...] = jnp.array([sharpness])
    return alignment


def test_features_by_hand():
    looked = jnp.array([[[1.0], [2.0], [4.0], [8.0]]])
    # F = (1, 10, 100) on s - 1, s, s + 1; a second filter that sees s alone.
    kernel = jnp.array([[[1.0, 0.0]], [[10.0, 1.0]], [[100.0, 0.0]]])
    expected = [[210, 1], [421, 2], [842, 4], [84, 8]]
    np.testing.assert_allclose(location_features(looked, kernel), [expected])
    with pytest.raises(ValueError, match="width: got 2, expected an odd number"):
        location_features(looked, kernel[:2])
    with pytest.raises(ValueError, match=r"kernel: got shape \[3, 1, 2\], expected .* with L=2"):
        location_features(jnp.ones((1, 4, 2)), kernel)


def test_it_can_walk_along_the_memory():
    alignment = follower()
    memory = alignment.prepare(X)
    state = alignment.initial_state(memory)
    state = state._replace(previous=jnp.eye(6)[jnp.array([0, 2])])
    seen = []
    for _ in range(3):
        _, weights, state = alignment.step(X[:, 0], memory, state)
        seen.append(np.argmax(weights, axis=1))
    np.testing.assert_array_equal(np.transpose(seen), [[1, 2, 3], [3, 4, 5]])
    np.testing.assert_allclose(state.cumulative.sum(axis=1), 3, rtol=1e-5)


def test_it_walks_over_padding():
    alignment = follower()
    valid = jnp.array(
        [[True, False, True, False, False, True], [False, True, True, True, True, True]]
    )
    memory = alignment.prepare(X, valid=valid)
    state = alignment.initial_state(memory)
    state = state._replace(previous=jnp.eye(6)[jnp.array([0, 0])])
    seen = []
    for _ in range(2):
        _, weights, state = alignment.step(X[:, 0], memory, state)
        seen.append(np.argmax(weights, axis=1))
        np.testing.assert_array_equal(weights[~valid], 0)
    np.testing.assert_array_equal(np.transpose(seen), [[2, 5], [2, 3]])


def test_the_first_step_is_additive():
    alignment, additive = build(), AdditiveAlignment(8, 8, rngs=nnx.Rngs(1))
    for name in ("query", "key"):
        getattr(additive, name).kernel[...] = getattr(alignment, name).kernel[...]
    additive.score[...] = alignment.score[...]
    memory = alignment.prepare(X)
    context, weights, state = alignment.step(X[:, 0], memory, alignment.initial_state(memory))
    expected, shares, _ = additive.step(X[:, 0], additive.prepare(X))
    np.testing.assert_allclose(weights, shares, atol=1e-6)
    np.testing.assert_allclose(context, expected, atol=1e-6)
    # The second is not: it knows the first.
    second = alignment.step(X[:, 0], memory, state)[1]
    assert np.abs(second - weights).max() > 1e-4


def test_cumulative_weights_are_looked_at_where_asked():
    for cumulative in (False, True):
        alignment = build(cumulative=cumulative)
        memory = alignment.prepare(X)
        state = alignment.initial_state(memory)
        other = state._replace(cumulative=jnp.eye(6)[jnp.array([0, 2])])
        weights = [alignment.step(X[:, 0], memory, s)[1] for s in (state, other)]
        assert (np.abs(weights[0] - weights[1]).max() > 1e-3) == cumulative


def test_smoothing_by_hand_and_far_out():
    # Sigmoids 1/2 and 3/4: shares 2/5 and 3/5.
    scores = jnp.array([[0.0, np.log(3.0), 5.0], [-500.0, -500.0, 0.0]])
    valid = jnp.array([[True, True, False]] * 2)
    np.testing.assert_allclose(smoothed(scores, valid), [[0.4, 0.6, 0], [0.5, 0.5, 0]], rtol=1e-6)
    assert (smoothed(scores, jnp.zeros((2, 3), bool)) == 0).all()
    # A wider look than the softmax of the same scores.
    plain, smooth = build(), build(smooth=True)
    for alignment in (plain, smooth):
        alignment.score[...] = 5 * alignment.score[...]
    memory = plain.prepare(X)
    state = plain.initial_state(memory)
    highest = [a.step(X[:, 0], memory, state)[1].max(axis=1) for a in (plain, smooth)]
    assert (highest[1] < highest[0]).all()


def test_sharpening():
    memory = build().prepare(X)
    state = build().initial_state(memory)
    shares = [build(sharpening=b).step(X[:, 0], memory, state)[1] for b in (1.0, 2.0, 200.0)]
    squares = np.square(shares[0])
    np.testing.assert_allclose(shares[1], squares / squares.sum(-1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(shares[2].max(axis=1), 1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 4}, "width: got 4, expected an odd number, at least 1"),
        ({"width": -1}, "width: got -1"),
        ({"num_filters": 0}, "num_filters: got 0, expected at least 1"),
        ({"hidden_size": 0}, "hidden_size: got 0, expected at least 1"),
        ({"sharpening": 0.0}, "sharpening: got 0.0, expected a positive number"),
        ({"sharpening": 2.0, "smooth": True}, "sharpening: got 2.0, expected 1 with smooth=True"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(**options)
