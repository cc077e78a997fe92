"""NAIS and FISM: hand-computed values, smoothed softmax, excluded candidates, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import registry
from attention.collaborative.nais import (
    FISM,
    NAIS,
    item_similarity,
    length_factor,
    smoothed_softmax,
)
from attention.collaborative.valid import without_target
from tests.attention.compiled import compiled
from tests.attention.references import collaborative as references
from tests.attention.subjects import normal
from tests.attention.test_wrong_calls import told

item_similarity, compiled_softmax = compiled(item_similarity), compiled(smoothed_softmax)

B, I, S, D = 2, 3, 5, 4  # noqa: E741
CANDIDATES, HISTORY = normal(0, B, I, D) / 2, normal(1, B, S, D) / 2
NEGATIVE = -np.inf


def nais(form="prod", **options):
    return NAIS(D, form=form, **options, rngs=nnx.Rngs(0))


def params_of(module):
    pure = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pure)


def inputs_of(module):
    arrays = {"candidates": CANDIDATES, "history": HISTORY}
    return {k: v.astype(np.float64) for k, v in arrays.items()} | {"params": params_of(module)}


def test_smoothed_softmax_by_hand():
    logits = jnp.log(jnp.array([[1.0, 3.0, 5.0]]))
    np.testing.assert_allclose(compiled_softmax(logits, beta=0.5), [[1 / 3, 1, 5 / 3]], rtol=1e-6)
    np.testing.assert_allclose(
        compiled_softmax(logits, beta=1.0), [[1 / 9, 3 / 9, 5 / 9]], rtol=1e-6
    )
    np.testing.assert_allclose(compiled_softmax(logits, beta=0.0), [[1, 3, 5]], rtol=1e-6)
    masked = jnp.array([[0.0, NEGATIVE, jnp.log(3.0)]])
    np.testing.assert_allclose(compiled_softmax(masked, beta=0.5), [[0.5, 0, 1.5]], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.3, 0.5, 1.0])
def test_smoothed_softmax_does_not_overflow(beta):
    # exp(120) is more than float32 holds; with β = 0.3 the result, exp(84), is not.
    logits = jnp.array([120.0, 119.0, -50.0])
    wide = np.asarray(logits, np.float64)
    expected = np.exp(wide - beta * np.log(np.exp(wide).sum()))
    np.testing.assert_allclose(compiled_softmax(logits, beta=beta), expected, rtol=1e-4, atol=1e-30)
    slopes = jax.jit(jax.jacobian(lambda logits: smoothed_softmax(logits, beta)))(logits)
    weights = expected / expected.sum()
    expected_slopes = expected[:, None] * (np.eye(3) - beta * weights)
    np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-4, atol=1e-4 * expected.max())


def test_smoothed_softmax_of_nothing():
    logits = jnp.full((2, 3), NEGATIVE).at[1, 0].set(0.4)
    total = lambda logits: jnp.sum(smoothed_softmax(logits, 0.5))  # noqa: E731
    np.testing.assert_array_equal(compiled_softmax(logits, beta=0.5)[0], 0)
    gradient = jax.jit(jax.grad(total))(logits)
    np.testing.assert_array_equal(gradient[0], 0)
    # One item alone: exp(0.4)^(1 - 0.5), whose slope is half of it.
    np.testing.assert_allclose(gradient[1], [0.5 * np.exp(0.2), 0, 0], rtol=1e-6)


def test_two_items_by_hand():
    """D = A = 1: f = h relu(w p q + b), with everything a number."""
    module = NAIS(1, beta=0.5, alpha=0.5, rngs=nnx.Rngs(0))
    module.hidden.kernel[...], module.hidden.bias[...] = jnp.array([[2.0]]), jnp.array([0.5])
    module.score[...] = jnp.array([0.3])
    p, q = np.array([[[1.0]]], "f"), np.array([[[0.25], [-1.0]]], "f")
    # relu(2 · 0.25 + 0.5) = 1 and relu(-2 + 0.5) = 0.
    exponentials = np.exp([0.3, 0.0])
    a = exponentials / np.sqrt(exponentials.sum()) / np.sqrt(2)
    expected = 0.7 + a[0] * 0.25 - a[1] * 1.0
    scores, weights = compiled(module)(p, q, bias=np.array([[0.7]], "f"), return_weights=True)
    np.testing.assert_allclose(scores, [[expected]], rtol=1e-6)
    np.testing.assert_allclose(weights, a[None, None, None], rtol=1e-6)


@pytest.mark.parametrize("form", ["prod", "concat"])
def test_marks_for_each_candidate(form):
    module = nais(form, alpha=0.5, beta=0.7)
    valid = np.random.default_rng(0).random((B, I, S)) < 0.6
    valid[0, 1] = False
    scores, weights = jax.jit(lambda v: module(CANDIDATES, HISTORY, valid=v, return_weights=True))(
        valid
    )
    expected, expected_weights = references.nais(
        inputs_of(module), valid, form, beta=0.7, alpha=0.5
    )
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    assert scores[0, 1] == 0


def test_weights_take_similarities_to_scores():
    bias = normal(2, B, I)
    for module in (nais(), nais("concat", alpha=1.0), FISM(D, rngs=nnx.Rngs(0))):
        scores, weights = compiled(module)(CANDIDATES, HISTORY, bias=bias, return_weights=True)
        assert weights.shape == (B, 1, I, S)
        product = np.einsum("bis,bsd,bid->bi", weights[:, 0], HISTORY, CANDIDATES) + bias
        np.testing.assert_allclose(scores, product, atol=1e-6)
        np.testing.assert_allclose(
            item_similarity(CANDIDATES, HISTORY, weights[:, 0], bias), product, atol=1e-6
        )


def test_weights_sum_to_one_only_with_beta_one():
    def totals(beta):
        weigh = compiled(nais(beta=beta))
        return np.asarray(weigh(CANDIDATES, HISTORY, return_weights=True)[1]).sum(-1)

    np.testing.assert_allclose(totals(1.0), 1, atol=1e-6)
    # Five weights with each exp(f) at least 1, so their sum exceeds 5^(1 - β).
    assert (totals(0.5) >= np.sqrt(5) - 1e-6).all()


@pytest.mark.parametrize(("alpha", "factor"), [(0.0, 1.0), (0.5, 5**-0.5), (1.0, 0.2)])
def test_without_attention_it_is_fism(alpha, factor):
    """h = 0 and β = 0 give all items the weight 1."""
    module = nais(alpha=alpha, beta=0.0)
    module.score[...] = jnp.zeros(D)
    fism = compiled(FISM(D, alpha=alpha, rngs=nnx.Rngs(0)))(CANDIDATES, HISTORY)
    np.testing.assert_allclose(compiled(module)(CANDIDATES, HISTORY), fism, atol=1e-6)
    by_hand = factor * np.einsum("bid,bsd->bi", CANDIDATES, HISTORY)
    np.testing.assert_allclose(fism, by_hand, atol=1e-6)


def test_concat_is_one_matrix_over_both():
    """p's rows of the kernel are first."""
    module = nais("concat", hidden_size=6)
    pairs = np.concatenate(
        [
            np.broadcast_to(CANDIDATES[:, :, None], (B, I, S, D)),
            np.broadcast_to(HISTORY[:, None], (B, I, S, D)),
        ],
        axis=-1,
    )
    hidden = compiled(module.hidden)(pairs)
    split = compiled(module._hidden)(CANDIDATES, HISTORY)
    np.testing.assert_allclose(split, hidden, atol=1e-6)


class TestTheCandidateIsLeftOut:
    candidates = np.array([[7, 2, 9], [4, 4, 1]])
    history = np.array([[2, 7, 5, 3, 2], [1, 4, 8, 0, 0]])
    valid = np.array([[True] * 5, [True, True, True, False, False]])

    def test_by_hand(self):
        seen = without_target(self.candidates, self.history, self.valid)
        expected = [
            [[1, 0, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
            [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [0, 1, 1, 0, 0]],
        ]
        np.testing.assert_array_equal(seen, np.array(expected, bool))
        everything = without_target(self.candidates, self.history)
        assert everything[1, :, 3:].all()

    @pytest.mark.parametrize("form", ["prod", "concat", "fism"])
    def test_an_item_does_not_score_itself(self, form):
        """The candidate's own q in the history and its count do not affect the score."""
        module = FISM(D, rngs=nnx.Rngs(0)) if form == "fism" else nais(form, alpha=0.5)
        source, target = normal(3, 10, D) / 2, normal(4, 10, D) / 2
        seen = without_target(self.candidates, self.history, self.valid)

        @jax.jit
        def scores(source):
            return module(target[self.candidates], source[self.history], valid=seen)

        plain = scores(source)
        for b, i in np.ndindex(B, I):
            changed = source.copy()
            changed[self.candidates[b, i]] = 1e3
            np.testing.assert_array_equal(scores(changed)[b, i], plain[b, i])
        # As if the item were not in the history at all.
        alone = compiled(module)(
            target[self.candidates[:1, :1]], source[self.history[:1][:, [0, 2, 3, 4]]]
        )
        np.testing.assert_allclose(alone[0, 0], plain[0, 0], atol=1e-6)

    def test_a_history_of_itself_alone_is_empty(self):
        seen = without_target(np.array([[3]]), np.array([[3, 3]]))
        bias = np.array([[0.25]], "f")
        score = compiled(nais())(CANDIDATES[:1, :1], HISTORY[:1, :2], bias=bias, valid=seen)
        np.testing.assert_array_equal(score, bias)


def test_length_factor():
    valid = np.array([[[True, True, True, True]], [[False] * 4]])
    np.testing.assert_allclose(length_factor(valid, 0.5), [[[0.5]], [[1.0]]])
    np.testing.assert_allclose(length_factor(valid, 0.0), 1)


def test_built_by_a_spec():
    module = registry.build("history", "nais(form=concat, beta=0.7)", D, rngs=nnx.Rngs(0))
    assert (module.form, module.beta, module.hidden.kernel.shape) == ("concat", 0.7, (2 * D, D))
    with pytest.raises(ValueError, match="did you mean 'beta'"):
        registry.build("history", "nais(betta=0.7)", D, rngs=nnx.Rngs(0))


def built(**options):
    return lambda: NAIS(D, **options, rngs=nnx.Rngs(0))


def called(**arguments):
    return lambda: nais()(**({"candidates": CANDIDATES, "history": HISTORY} | arguments))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"form: got 'sum', expected 'prod' or 'concat'", built(form="sum")),
        (r"beta: got 1.5, expected a number in \[0, 1\]", built(beta=1.5)),
        (r"alpha: got -0.1, expected a number in \[0, 1\]", built(alpha=-0.1)),
        (r"hidden_size: got 0, expected at least 1", built(hidden_size=0)),
        (r"alpha: got 2.0, exp", lambda: FISM(D, alpha=2.0, rngs=nnx.Rngs(0))),
        (r"beta: got -1.0, exp", lambda: smoothed_softmax(jnp.zeros(3), -1.0)),
        (r"candidates: got shape \[2, 3, 3\], ", called(candidates=CANDIDATES[..., 1:])),
        (r"history: got shape \[1, 5, 4\], expected \[B, S, D\]", called(history=HISTORY[:1])),
        (r"history: got dtype int32", called(history=np.ones((B, S, D), np.int32))),
        (r"bias: got shape \[3\], expected \[B, I\]", called(bias=np.ones(I, "f"))),
        (r"valid: got dtype int32, expected bool", called(valid=np.ones((B, S), np.int32))),
        (r"valid: got shape \[2, 4\], expected \[B, S\]", called(valid=np.ones((B, 4), bool))),
        (r"valid: got shape \[2, 5, 3\]", called(valid=np.ones((B, S, I), bool))),
        (r"candidates: got dtype float32", lambda: without_target(CANDIDATES[..., 0], np.ones(3))),
        (
            r"valid: got shape \[2, 3, 5\], expected \[B, S\]",
            lambda: without_target(
                np.ones((B, I), int), np.ones((B, S), int), np.ones((B, I, S), bool)
            ),
        ),
    ],
)
def test_mistakes_are_told(message, call):
    told(message, call)
