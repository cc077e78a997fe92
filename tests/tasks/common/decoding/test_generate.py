"""Decoding compared with all possible sequences and with loops in Python."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, masks
from tasks.common.decoding.generate import DecodingConfig, generate
from tasks.common.keys import example_keys

V, H, PAD, END = 4, 5, 0, 3
RNG = np.random.RandomState(0)
# Strong enough that what came before matters, and that a likely token is not always the best one.
TURN, EMBEDDING = 1.2 * RNG.normal(size=(H, H)), 1.5 * RNG.normal(size=(V + 1, H))
CLASSIFY = 1.5 * RNG.normal(size=(H, V))
FIRST = RNG.normal(size=(6, H))
START = V


def cell(tokens, state):
    """Returns a recurrent network without training: logits, state, extras."""
    state = jnp.tanh(state @ TURN + jnp.asarray(EMBEDDING)[tokens])
    return state @ CLASSIFY, state, {"read": tokens, "state": state}


@functools.cache
def program(step, **options):
    """Returns a compiled decoder, shared by the tests."""
    return jax.jit(
        lambda state, keys, start: generate(step, state, keys=keys, start=start, **options)
    )


def run(config, T, *, B=6, step=cell, first=FIRST, end=END, forbidden=(), keys=None, start=START):
    options = {"config": config, "batch_size": B, "max_length": T, "end": end, "pad": PAD}
    decode = program(step, forbidden=forbidden, **options)
    return jax.device_get(decode(jnp.asarray(first[:B], jnp.float32), keys, start))


def path_of(b, tokens, forbidden=()):
    """Log-probabilities of the tokens, and the states, one by one in NumPy."""
    state, token, gained, states = FIRST[b], START, [], []
    for following in tokens:
        state = np.tanh(state @ TURN + EMBEDDING[token])
        logits = state @ CLASSIFY
        gained.append(logits[following] - np.log(np.sum(np.exp(logits))))
        states.append(state)
        token = following
    assert not set(tokens) & set(forbidden)
    return np.array(gained), np.array(states)


def everything(b, T, penalty, forbidden=()):
    """Returns all sequences of an example that end or are T long, best first: (score, tokens)."""
    allowed = [token for token in range(V) if token not in forbidden]
    found = []
    for length in range(1, T + 1):
        for tokens in itertools.product(allowed, repeat=length):
            if END not in tokens[:-1] and (tokens[-1] == END or length == T):
                gained = path_of(b, tokens, forbidden)[0]
                found.append((gained.sum() / length**penalty, tokens))
    return sorted(found, reverse=True)


def padded(tokens, T):
    return [*tokens, *[PAD] * (T - len(tokens))]


@pytest.mark.parametrize(
    ("penalty", "forbidden", "T"), [(1.0, (), 3), (0.0, (), 3), (2.0, (1,), 4), (-0.5, (), 3)]
)
def test_beam_search_with_room_for_all_prefixes_is_exhaustive_search(penalty, forbidden, T):
    # 3 · 3 · 4 continuations at the last step, or 2 · 2 · 2 · 3.
    K = 36 if T == 3 else 24
    config = DecodingConfig("beam", K, penalty, "exact", n_best=K)
    decoded = run(config, T, B=3, forbidden=forbidden)
    for b in range(3):
        best = everything(b, T, penalty, forbidden)[:K]
        np.testing.assert_allclose(decoded.scores[b, : len(best)], [s for s, _ in best], atol=1e-4)
        np.testing.assert_array_equal(
            decoded.tokens[b, : len(best)], [padded(tokens, T) for _, tokens in best]
        )


def test_sequences_that_do_not_exist_are_pad_with_score_minus_infinity():
    # Two tokens in at most two steps: end; a end; a a.
    config = DecodingConfig("beam", beam_size=5, n_best=5, stopping="exact")
    decoded = run(config, 2, forbidden=(1, 2))
    assert np.isfinite(decoded.scores[:, :3]).all()
    assert (decoded.scores[:, 3:] == -np.inf).all()
    assert (decoded.tokens[:, 3:] == PAD).all()
    assert not decoded.extras["state"][:, 3:].any()
    ours = {tuple(row) for row in decoded.tokens[0, :3].tolist()}
    assert ours == {(3, 0), (0, 3), (0, 0)}


def beam_by_lists(b, K, T, penalty, stopping):
    """Computes beam search of one example in plain Python: (score, tokens), best first."""
    running, finished = [(0.0, ())], []
    for length in range(1, T + 1):
        found = []
        for total, tokens in running:
            for token in range(V):
                gained = path_of(b, (*tokens, token))[0][-1]
                found.append((total + gained, (*tokens, token)))
        found = sorted(found, reverse=True)[: 2 * K]
        ended = [tokens[-1] == END or length == T for _, tokens in found]
        for (total, tokens), ends in list(zip(found, ended, strict=True))[:K]:
            if ends:
                finished.append((total / length**penalty, tokens))
        finished = sorted(finished, reverse=True)[:K]
        running = [each for each, ends in zip(found, ended, strict=True) if not ends][:K]
        farthest = T if stopping == "exact" and penalty > 0 else length
        if not running or (
            len(finished) == K and running[0][0] / farthest**penalty <= finished[-1][0]
        ):
            break
    return finished


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize(
    ("penalty", "stopping"), [(1.0, "heuristic"), (0.6, "exact"), (-1.0, "heuristic")]
)
def test_beam_search_equals_lists(K, penalty, stopping):
    T = 7
    decoded = run(DecodingConfig("beam", K, penalty, stopping, n_best=K), T)
    lengths = set()
    for b in range(6):
        expected = beam_by_lists(b, K, T, penalty, stopping)
        lengths |= {len(tokens) for _, tokens in expected}
        np.testing.assert_allclose(decoded.scores[b], [score for score, _ in expected], atol=1e-4)
        np.testing.assert_array_equal(
            decoded.tokens[b], [padded(tokens, T) for _, tokens in expected]
        )
    assert len(lengths) > 2


def test_greedy_decoding_equals_a_loop():
    T, lengths = 6, set()
    decoded = run(DecodingConfig(), T)
    for b in range(6):
        tokens = []
        while len(tokens) < T and END not in tokens:
            scores = [path_of(b, (*tokens, token))[0][-1] for token in range(V)]
            tokens.append(int(np.argmax(scores)))
        lengths.add(len(tokens))
        np.testing.assert_array_equal(decoded.tokens[b, 0], padded(tokens, T))
        np.testing.assert_allclose(decoded.scores[b, 0], path_of(b, tokens)[0].mean(), atol=1e-5)
    assert len(lengths) > 1
    one = run(DecodingConfig("beam"), T)
    np.testing.assert_array_equal(one.tokens, decoded.tokens)
    sure = run(DecodingConfig("sample", top_k=1), T, keys=example_keys(0, jnp.arange(6)))
    np.testing.assert_array_equal(sure.tokens, decoded.tokens)
    np.testing.assert_allclose(sure.scores, decoded.scores, atol=1e-6)


METHODS = {
    "greedy": DecodingConfig(),
    "beam": DecodingConfig("beam", beam_size=3, n_best=3),
    "sample": DecodingConfig("sample", n_best=3, temperature=1.5, top_k=3, top_p=0.9),
}


def keys_of(name, ids):
    return example_keys(7, jnp.asarray(ids)) if name == "sample" else None


@pytest.mark.parametrize("name", METHODS)
def test_extras_are_those_of_the_path_and_0_after_it(name):
    T = 6
    decoded = run(METHODS[name], T, keys=keys_of(name, range(6)))
    for b, n in np.ndindex(decoded.scores.shape):
        tokens = decoded.tokens[b, n].tolist()
        written = tokens.index(END) + 1 if END in tokens else T
        read, states = decoded.extras["read"][b, n], decoded.extras["state"][b, n]
        gained, expected = path_of(b, tokens[:written])
        np.testing.assert_array_equal(read[:written], [START, *tokens[: written - 1]])
        np.testing.assert_allclose(states[:written], expected, atol=1e-5)
        np.testing.assert_array_equal(states[written:], 0)
        np.testing.assert_allclose(decoded.scores[b, n], gained.mean(), atol=1e-5)
    assert (np.diff(decoded.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_neither_the_order_of_the_batch_nor_who_else_is_in_it_matters(name):
    # Examples 1 and 3 are left out, and others are there more than once.
    T, order = 6, np.array([4, 0, 5, 2, 5, 4])
    whole = run(METHODS[name], T, keys=keys_of(name, range(6)))
    some = run(METHODS[name], T, first=FIRST[order], keys=keys_of(name, order))
    np.testing.assert_array_equal(some.tokens, whole.tokens[order])
    np.testing.assert_allclose(some.scores, whole.scores[order], atol=1e-5)


def test_each_example_may_start_with_another_token():
    starts = jnp.array([0, 1, 2, 4, 4, 4])
    decoded = run(METHODS["beam"], 6, start=starts)
    np.testing.assert_array_equal(decoded.extras["read"][:, 0, 0], starts)
    np.testing.assert_array_equal(decoded.tokens[3:], run(METHODS["beam"], 6).tokens[3:])


@pytest.mark.parametrize("name", METHODS)
def test_without_an_end_all_go_on(name):
    decoded = run(METHODS[name], 5, end=None, keys=keys_of(name, range(6)))
    assert decoded.extras["state"].any(axis=-1).all()
    closed = run(METHODS[name], 5, end=END, forbidden=(END,), keys=keys_of(name, range(6)))
    assert (closed.tokens != END).all()
    assert closed.extras["state"].any(axis=-1).all()


@pytest.mark.parametrize("name", METHODS)
def test_one_step_and_more_beams_than_words(name):
    config = METHODS[name]
    if name == "beam":
        config = dataclasses.replace(config, beam_size=9, n_best=6)
    decoded = run(config, 1, keys=keys_of(name, range(6)))
    for b, n in np.ndindex(decoded.scores.shape):
        if n >= V and name == "beam":
            assert decoded.scores[b, n] == -np.inf
            continue
        expected = path_of(b, decoded.tokens[b, n])[0]
        np.testing.assert_allclose(decoded.scores[b, n], expected[0], atol=1e-5)
    if name == "beam":
        assert [set(row) for row in decoded.tokens[:, :V, 0]] == [set(range(V))] * 6


@pytest.mark.parametrize("name", METHODS)
def test_a_row_that_may_write_nothing_is_pad_and_the_others_stay(name):
    def first_closed(tokens, state):
        number, rest = state[:, :1], state[:, 1:]
        logits, rest, extras = cell(tokens, rest)
        return jnp.where(number == 1, -jnp.inf, logits), jnp.concatenate([number, rest], 1), extras

    numbered = np.concatenate([np.arange(6)[:, None], FIRST], axis=1)
    keys = keys_of(name, range(6))
    decoded = run(METHODS[name], 6, step=first_closed, first=numbered, keys=keys)
    whole = run(METHODS[name], 6, keys=keys)
    others = np.array([0, 2, 3, 4, 5])
    assert (decoded.scores[1] == -np.inf).all()
    assert (decoded.tokens[1] == PAD).all()
    assert not decoded.extras["state"][1].any()
    np.testing.assert_array_equal(decoded.tokens[others], whole.tokens[others])
    np.testing.assert_array_equal(decoded.scores[others], whole.scores[others])


def test_one_word_is_written_until_the_end():
    def step(tokens, state):
        return jnp.zeros((len(tokens), 1)), state, None

    for config in (DecodingConfig(), DecodingConfig("beam", beam_size=2)):
        decoded = run(config, 3, step=step, end=None)
        assert decoded.tokens.shape == (6, 1, 3)
        np.testing.assert_array_equal(decoded.scores, 0)
        assert decoded.extras is None


def test_no_step_is_made_after_all_have_ended():
    made = []

    def step(tokens, state):
        jax.debug.callback(lambda: made.append(1))
        logits, state, extras = cell(tokens, state)
        return logits.at[:, END].add(jnp.where(tokens == START, 0, 99.0)), state, extras

    for config in (DecodingConfig(), DecodingConfig("beam", 2, 0.0)):
        made.clear()
        run(config, 50, step=step)
        jax.effects_barrier()
        assert 2 <= len(made) <= 4


# ------------------------------------------------------------------------- caches


class Toy(nnx.Module):
    """One layer of attention over embeddings, with a cache and as a full pass."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embedding = nnx.Param(2 * jax.random.normal(rngs.params(), (V + 1, 8)))
        self.attention = MultiHeadAttention(8, 2, positions="rope", rngs=rngs)
        self.classify = nnx.Param(3 * jax.random.normal(rngs.params(), (8, V)))

    def cached(self, tokens, cache):
        x, cache = self.attention.decode(self.embedding[...][tokens][:, None], cache)
        return x[:, 0] @ self.classify[...], cache, None

    def whole(self, tokens, state):
        """Computes the same with all previous tokens and their number as the state."""
        past, length = state
        past = past.at[jnp.arange(len(past)), length].set(tokens)
        x = self.attention(self.embedding[...][past], mask=masks.causal())
        last = jnp.take_along_axis(x, length[:, None, None], axis=1)[:, 0]
        return last @ self.classify[...], (past, length + 1), None


PROMPTS, LENGTHS = jnp.array([[1, 2, 0], [2, 0, 0], [4, 0, 1], [0, 1, 1]]), jnp.array([3, 1, 2, 3])


@pytest.mark.parametrize("name", METHODS)
def test_with_a_cache_and_prompts_of_several_lengths_as_without(name):
    toy, B, T = Toy(), 4, 5
    options = {
        "config": METHODS[name],
        "batch_size": B,
        "max_length": T,
        "end": END,
        "pad": PAD,
        "start": PROMPTS[jnp.arange(B), LENGTHS - 1],
        "keys": keys_of(name, range(B)),
    }

    @jax.jit
    def cached():
        cache = toy.attention.init_cache(B, 3 + T)
        # All but the last token of each prompt.
        _, cache = toy.attention.decode(toy.embedding[...][PROMPTS], cache, lengths=LENGTHS - 1)
        return generate(toy.cached, cache, **options)

    @jax.jit
    def whole():
        past = jnp.pad(PROMPTS, ((0, 0), (0, T)))
        return generate(toy.whole, (past, LENGTHS - 1), **options)

    one, other = cached(), whole()
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert len(np.unique(one.tokens, axis=0)) > 1


# ------------------------------------------------------------------------- samples


@functools.cache
def drawn(**options):
    """Shares of V tokens among 6,000 samples, and their logits."""
    logits = np.array([0.5, 2.0, 1.0, -1.0], np.float32)
    B = 2000

    def step(tokens, state):
        return jnp.broadcast_to(logits, (len(tokens), V)), state, None

    config = DecodingConfig("sample", n_best=3, **options)
    keys = example_keys(3, jnp.arange(B))
    decoded = run(config, 1, B=B, step=step, first=np.zeros((B, 1)), end=None, keys=keys)
    return np.bincount(decoded.tokens.ravel(), minlength=V) / decoded.tokens.size, logits


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, (0, 1, 2, 3)),
        ({"temperature": 0.5}, (0, 1, 2, 3)),
        ({"top_k": 2}, (1, 2)),
        ({"top_k": 9}, (0, 1, 2, 3)),
        # Shares 0.13, 0.60, 0.22, 0.03: the second crosses 0.7, and 0.6 alone is not enough for it.
        ({"top_p": 0.7}, (1, 2)),
        ({"top_p": 0.5}, (1,)),
        ({"top_p": 0.9}, (0, 1, 2)),
        # At temperature 2 they are 0.22, 0.46, 0.28, 0.10; of the first three 0.48, 0.29, 0.23.
        ({"temperature": 2.0, "top_k": 3, "top_p": 0.8}, (0, 1, 2)),
        ({"temperature": 2.0, "top_k": 3, "top_p": 0.7}, (1, 2)),
    ],
)
def test_samples_have_the_shares_of_what_is_kept(options, kept):
    shares, logits = drawn(**options)
    expected = np.where(
        np.isin(np.arange(V), kept), np.exp(logits / options.get("temperature", 1)), 0
    )
    expected /= expected.sum()
    assert (shares[expected == 0] == 0).all()
    # Five standard deviations of 6,000 draws.
    np.testing.assert_array_less(
        np.abs(shares - expected), 5 * np.sqrt(expected * (1 - expected) / 6000) + 1e-9
    )


def test_samples_differ_by_example_and_number_and_are_the_same_again():
    config = DecodingConfig("sample", n_best=4, temperature=3.0)
    same = np.repeat(FIRST[:1], 6, axis=0)
    decoded = run(config, 6, first=same, keys=keys_of("sample", range(6)))
    assert len({tuple(row) for row in decoded.tokens.reshape(24, 6).tolist()}) > 12
    again = run(config, 6, first=same, keys=keys_of("sample", range(6)))
    np.testing.assert_array_equal(decoded.tokens, again.tokens)
    # The samples there are do not depend on how many are asked for.
    two = run(
        dataclasses.replace(config, n_best=2), 6, first=same, keys=keys_of("sample", range(6))
    )
    for b in range(6):
        assert {*map(tuple, two.tokens[b])} <= {*map(tuple, decoded.tokens[b])}


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "viterbi"},
            "method: got 'viterbi', expected one of 'greedy', 'beam'",
        ),
        ({"method": "beam", "stopping": "soon"}, "stopping: got 'soon', expected one of"),
        ({"beam_size": 0}, "beam_size: got 0, expected at least 1"),
        ({"beam_size": 5}, "beam_size: got 5, expected 1, or method 'beam'"),
        ({"method": "sample", "stopping": "exact"}, "stopping: got 'exact', expected 'heuristic'"),
        ({"temperature": 0.5}, "temperature: got 0.5, expected 1.0, or method 'sample'"),
        ({"method": "sample", "temperature": 0.0}, "temperature: got 0.0, expected a finite"),
        ({"method": "sample", "top_p": 0.0}, r"top_p: got 0.0, expected a probability in \(0, 1\]"),
        ({"method": "beam", "beam_size": 2, "top_k": 3}, "top_k: got 3, expected 0, or method"),
        ({"method": "beam", "beam_size": 2, "n_best": 3}, "n_best: got 3, expected at most 2"),
        ({"n_best": 2}, "n_best: got 2, expected at most 1 with method 'greedy'"),
        ({"length_penalty": float("nan")}, "length_penalty: got nan, expected a finite number"),
    ],
)
def test_configs_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DecodingConfig(**options)


def wrong_state(tokens, state):
    return cell(tokens, state)[0], state.astype(jnp.bfloat16), None


def wrong_extras(tokens, state):
    return *cell(tokens, state)[:2], jnp.zeros(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"T": 0}, "max_length: got 0, expected at least 1"),
        (
            {"B": 5, "first": FIRST[:4]},
            r"state: got a leaf of shape \[4, 5\], expected a lead",
        ),
        ({"end": 4}, "end: got token 4, expected a token from 0 to 3"),
        ({"forbidden": (-1,)}, "forbidden: got token -1, expected a token from 0 to 3"),
        ({"start": jnp.zeros(3, jnp.int32)}, r"start: got shape \[3\], expected \[B\] with B=6"),
        ({"keys": example_keys(0, jnp.arange(6))}, "keys: got keys, expected none with method 'g"),
        (
            {"config": METHODS["sample"]},
            r"keys: got none, expected keys \[6\] with method",
        ),
        (
            {"config": METHODS["sample"], "keys": example_keys(0, jnp.arange(5))},
            r"keys: got shape \[5\], expected \[B\] with B=6",
        ),
        (
            {"step": wrong_state},
            r"state: got bfloat16 \[6, 5\] at the top after a step, exp",
        ),
        (
            {"step": wrong_extras},
            r"extras: got a leaf of shape \[3\], expected a leading axis",
        ),
    ],
)
def test_calls_that_cannot_be(options, message):
    options = {"config": DecodingConfig(), "T": 3} | options
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        run(**options)
    assert "\n" not in str(caught.value)
