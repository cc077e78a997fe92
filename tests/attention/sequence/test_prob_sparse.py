"""ProbSparse: all queries active is attention, how many are, and what it cannot do."""

import numpy as np
import pytest
from flax import nnx

from attention import attend, masks
from attention.sequence.prob_sparse import ProbSparse, prob_sparse

B, T, N, H = 2, 6, 2, 4
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (RNG.normal(size=(B, T, N, H)).astype(np.float32) for _ in range(3))
SAMPLES = RNG.integers(T, size=(T, 3))


def test_all_queries_active_is_attention():
    mask = masks.lengths(key=np.array([T, 4]))
    # All keys are tried, so that no query tries hidden ones alone.
    every = np.broadcast_to(np.arange(T), (T, T))
    out = prob_sparse(QUERY, KEY, VALUE, every, num_active=T, mask=mask)
    expected = attend(QUERY, KEY, VALUE, mask=mask)
    np.testing.assert_allclose(out[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[1, :4], expected[1, :4], rtol=1e-5, atol=1e-6)
    # Hidden positions are no active queries.
    mean = VALUE[1, :4].mean(axis=0)
    np.testing.assert_allclose(out[1, 4:], np.stack([mean, mean]), rtol=1e-5, atol=1e-6)


def test_the_number_of_active_queries_grows_with_the_logarithm():
    module = ProbSparse(8, 2, rngs=nnx.Rngs(0))
    assert [module.num_active(length) for length in (1, 5, 20, 336, 720)] == [1, 5, 20, 30, 35]
    np.testing.assert_array_equal(module.samples(20), module.samples(20))
    assert module.samples(336).shape == (336, 30)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_active": 7}, ValueError, "num_active: got 7, expected a number from 1 to T=6"),
        ({"samples": SAMPLES[:4]}, ValueError, "samples: got shape"),
        ({"samples": SAMPLES.astype(np.float32)}, ValueError, "samples: got dtype float32"),
        ({"key": KEY[:, :4], "value": VALUE[:, :4]}, ValueError, "key: got shape"),
        ({"mask": masks.causal()}, NotImplementedError, "mask: got .* for prob_sparse"),
    ],
)
def test_mistakes_are_named(change, error, message):
    given = {"query": QUERY, "key": KEY, "value": VALUE, "samples": SAMPLES, "num_active": 2}
    with pytest.raises(error, match=message):
        prob_sparse(**given | change)
    with pytest.raises(ValueError, match="factor: got 0, expected at least 1"):
        ProbSparse(8, 2, factor=0, rngs=nnx.Rngs(0))
