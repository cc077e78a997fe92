"""Each model on a tiny catalogue: what it sees, what it points at, and that nothing leaks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx

from launch.engine.state import merge_model, split_model
from tasks.recommendation.models import MODEL_CONFIGS, build, cooccurrence
from tasks.recommendation.models.item_attention import ACFConfig, NAISConfig
from tasks.recommendation.models.losses import LossConfig
from tasks.recommendation.models.sequential import BERT4RecConfig, SASRecConfig

USERS, ITEMS, S, R = 7, 12, 5, 3
RNG = np.random.default_rng(0)
SMALL = {"model_size": 8, "feedforward_size": 8, "num_layers": 1, "num_heads": 2, "max_length": S}
CONFIGS = {
    "user_neighbours": {"neighbours": 3, "positions_per_step": 2},
    "nais": {"model_size": 4, "hidden_size": 3, "positions_per_step": 2, "negatives": 3},
    "acf": {"model_size": 4, "component_size": 3, "hidden_size": 3, "positions_per_step": 2},
    "sasrec": {**SMALL, "objective": LossConfig("gbce", negatives=4)},
    "bert4rec": SMALL,
    "hybrid": {
        **SMALL,
        "sequence": True,
        "transition_window": 0,
        "neighbours": 0,
        "positions_per_step": 2,
    },
}


def histories():
    """Returns histories of 2 to S + 1 items; the first user has one item."""
    lengths = [1, *RNG.integers(2, S + 2, USERS - 1)]
    return [RNG.permutation(ITEMS)[:length] for length in lengths]


def matrix_of(histories):
    places = [(u, i, p + 1) for u, own in enumerate(histories) for p, i in enumerate(own)]
    users, items, entries = (np.array(column) for column in zip(*places, strict=True))
    matrix = sp.csr_matrix((entries.astype(np.float32), (users, items)), (USERS, ITEMS))
    matrix.sort_indices()
    return matrix


HISTORIES = histories()
MATRIX = matrix_of(HISTORIES)
FEATURES = (RNG.random((ITEMS, 4)) < 0.5).astype(np.float32)


def batch_of(histories, users=None, ages=None):
    """Returns train examples whose last event is `next` alone."""
    B = len(histories)
    users = np.arange(B) if users is None else users
    fields = {name: np.full((B, S), -1, np.int32) for name in ("items", "next")}
    seen = np.full((B, S + 1), -1, np.int32)
    for row, own in enumerate(histories):
        fields["items"][row, : len(own) - 1] = own[:-1]
        fields["next"][row, : len(own) - 1] = own[1:]
        seen[row, : len(own)] = own
    ages = np.tile(np.arange(S)[::-1].astype(np.float32), (B, 1)) if ages is None else ages
    fields |= {"seen": seen, "ages": ages, "user": np.asarray(users, np.int32)}
    return {**fields, "weight": np.ones(B, np.float32)}


TRAIN = batch_of(HISTORIES)
# A user who is known, one who is not, and one of whom nothing is known.
ASKED = {name: value[[1, 2, 0]] for name, value in TRAIN.items()}
ASKED["user"] = np.array([1, -1, -1], np.int32)
TOP = np.array([[0, 5, 11]] * 3)


@pytest.fixture(scope="module", params=MODEL_CONFIGS)
def found(request):
    """Returns all outputs of a model, from one compiled function."""
    config = MODEL_CONFIGS[request.param](**CONFIGS[request.param])
    model = build(config, ITEMS, FEATURES, MATRIX, nnx.Rngs(0))
    graph, params, kept = split_model(model)

    @jax.jit
    def answer(params, batches, asked):
        def losses(params):
            model = merge_model(graph, params, kept)
            values = jax.lax.map(lambda batch: model.loss(batch, jax.random.key(1))[0], batches)
            return values[0], values

        (_, values), gradients = jax.value_and_grad(losses, has_aux=True)(params)
        model = merge_model(graph, params, kept)
        scores = jax.lax.map(model.scores, asked)
        first = jax.tree.map(lambda x: x[0], asked)
        return {
            "losses": values,
            "gradients": gradients,
            "scores": scores,
            "reasons": model.attributions(first, TOP),
            "parts": model.score_parts(first, TOP),
        }

    # With a row of weight 0, and with another content of that row.
    heavy = {**TRAIN, "weight": np.array([*[1.0] * (USERS - 1), 0.0], np.float32)}
    other = {**heavy, "next": np.concatenate([TRAIN["next"][:-1], TRAIN["next"][1:2]])}
    # With another item in the first history.
    changed = {**ASKED, "items": ASKED["items"].copy()}
    changed["items"][0, 0] = (changed["items"][0, 0] + 1) % ITEMS
    return request.param, answer(params, stacked(TRAIN, heavy, other), stacked(ASKED, changed))


def stacked(*batches):
    return {name: jnp.stack([batch[name] for batch in batches]) for name in batches[0]}


def test_scores_are_of_the_history(found):
    _, answers = found
    scores, changed = np.asarray(answers["scores"])
    assert scores.shape == (3, ITEMS)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert np.isfinite(answers["losses"]).all()
    assert np.abs(scores[0] - changed[0]).max() > 1e-6
    np.testing.assert_allclose(scores[1:], changed[1:], rtol=1e-5, atol=1e-6)


PARTS = {
    "hybrid": {"popularity", "similar_items", "sequence"},
    "user_neighbours": {"popularity", "similar_users"},
    "acf": {"popularity", "user", "history"},
}


def test_terms_sum_to_the_scores(found):
    name, answers = found
    parts, scores = answers["parts"], np.asarray(answers["scores"])[0]
    assert parts.keys() == PARTS.get(name, set())
    if parts:
        expected = np.take_along_axis(scores, TOP, axis=1)
        np.testing.assert_allclose(sum(parts.values()), expected, rtol=1e-4, atol=1e-5)


def test_padding_rows_count_for_nothing(found):
    np.testing.assert_allclose(*found[1]["losses"][1:], rtol=1e-5)


def test_every_weight_learns(found):
    name, answers = found
    gradients = jax.tree_util.tree_leaves_with_path(answers["gradients"])
    assert all(np.isfinite(leaf).all() for _, leaf in gradients)
    still = {jax.tree_util.keystr(p) for p, leaf in gradients if not np.any(leaf)}
    # The softmax over the history is invariant to terms that are equal at all positions.
    assert all("key" in path and "bias" in path for path in still), (name, still)


def test_reasons_are_shares(found):
    name, answers = found
    reasons = {key: np.asarray(value) for key, value in answers["reasons"].items()}
    kind = "neighbours" if name == "user_neighbours" else "items"
    assert reasons[kind].shape[:2] == (3, R)
    assert (reasons[kind] >= 0).all()
    sums = reasons[kind].sum(axis=-1)
    assert np.all(np.isclose(sums, 1, atol=1e-5) | np.isclose(sums, 0, atol=1e-5))
    # Nothing to point at where there is no history.
    assert not reasons[kind][2].any()
    if kind == "items":
        empty = ASKED["items"] < 0
        assert not np.swapaxes(reasons["items"], 1, 2)[empty].any()
    else:
        had = MATRIX.toarray() > 0
        for row in range(2):
            for place, item in enumerate(TOP[row]):
                for share, user in zip(
                    reasons["neighbours"][row, place], reasons["neighbour_ids"][row], strict=True
                ):
                    assert share == 0 or had[user, item]


def test_sasrec_does_not_look_ahead():
    model = build(SASRecConfig(**SMALL), ITEMS, None, MATRIX, nnx.Rngs(0))
    items = jnp.asarray(RNG.integers(0, ITEMS, (2, S)), jnp.int32)
    hidden = jax.jit(lambda: model.hidden(jnp.concatenate([items, items.at[:, -1].set(0)])))()
    np.testing.assert_allclose(hidden[:2, :-1], hidden[2:, :-1], atol=1e-6)


def test_lists_are_the_matrix_where_none_is_cut(monkeypatch):
    counted = {"ridge": 0, "neighbours": 3, "cooccurrence_window": 3, "top_k_entries": ITEMS}
    config = MODEL_CONFIGS["hybrid"](**SMALL, **counted, positions_per_step=2)
    batch = {name: jnp.asarray(value) for name, value in ASKED.items()}

    def scores():
        model = build(config, ITEMS, None, MATRIX, nnx.Rngs(0))
        train = {name: jnp.asarray(value) for name, value in TRAIN.items()}
        return jax.jit(lambda: (model.scores(batch), model.loss(train, jax.random.key(0))[0]))()

    whole = scores()
    monkeypatch.setattr(cooccurrence, "DENSE", 0)
    listed = scores()
    np.testing.assert_allclose(listed[0], whole[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(listed[1], whole[1], rtol=1e-4)


@pytest.mark.parametrize("most", [0, cooccurrence.DENSE])
def test_a_restored_model_has_the_shapes_of_the_trained(monkeypatch, most):
    """It is made with a matrix without entries, and filled from the checkpoint."""
    monkeypatch.setattr(cooccurrence, "DENSE", most)
    config = MODEL_CONFIGS["hybrid"](neighbours=3, cooccurrence_window=2)

    def shapes(matrix):
        model = jax.eval_shape(
            lambda: split_model(build(config, ITEMS, None, matrix, nnx.Rngs(0)))[1:]
        )
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model)

    assert shapes(MATRIX) == shapes(sp.csr_matrix(MATRIX.shape, dtype=np.float32))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SASRecConfig, {"mixer": "fourier"}, "mixer: got 'fourier', which cannot be causal"),
        (SASRecConfig, {"embedding_scale": 0.0}, "embedding_scale: got 0.0"),
        (BERT4RecConfig, {"mask_rate": 1.0}, "mask_rate: got 1.0"),
        (NAISConfig, {"beta": 2.0}, "beta: got 2.0"),
        (NAISConfig, {"calibration": 2.0}, "calibration: got 2.0"),
        (ACFConfig, {"positions_per_step": 0}, "positions_per_step: got 0"),
        (LossConfig, {"name": "bpr"}, "name: got 'bpr', expected one of"),
        (MODEL_CONFIGS["hybrid"], {"decay": 0.0}, "decay: got 0.0"),
        (MODEL_CONFIGS["hybrid"], {"neighbours": -1}, f"{'neighbours'}: got -1"),
        (MODEL_CONFIGS["user_neighbours"], {"neighbours": 0}, f"{'neighbours'}: got 0"),
        (
            MODEL_CONFIGS["hybrid"],
            {"ridge": 0.0, "transition_window": 0, "neighbours": 0},
            "ridge: got 0.0, expected a number above 0",
        ),
    ],
)
def test_mistakes_are_named(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_configs_are_frozen_and_named():
    for name, config in MODEL_CONFIGS.items():
        assert config().name == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            config().name = "other"
