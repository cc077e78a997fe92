"""Attentive collaborative filtering: both levels by brute force, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention.collaborative.acf import (
    ComponentAttention,
    ItemAttention,
    attend_components,
    attend_items,
    profile_scores,
)
from tests.attention.compiled import compiled
from tests.attention.subjects import normal
from tests.attention.test_wrong_calls import told

attend_components, attend_items, profile_scores = map(
    compiled, (attend_components, attend_items, profile_scores)
)

B, S, M, D, C, A, I = 2, 3, 4, 5, 6, 7, 2  # noqa: E741
USER, ITEMS, AUXILIARY = normal(0, B, D), normal(1, B, S, D), normal(2, B, S, D)
COMPONENTS, CANDIDATES = normal(3, B, S, M, C), normal(4, B, I, D)
# The first user's second item has no components, the second user's last item is padding.
PARTS = np.array([[[1, 1, 1, 0], [0] * 4, [1] * 4], [[1, 0, 1, 0], [1] * 4, [1] * 4]], bool)
HISTORY = np.array([[1, 1, 1], [1, 1, 0]], bool)


def modules():
    options = {"hidden_size": A, "rngs": nnx.Rngs(0)}
    return ComponentAttention(D, C, **options), ItemAttention(D, content_size=C, **options)


def test_both_levels_by_brute_force():
    """R_i = (u + Σ_l α_l p_l)·v_i, with the sums written out."""
    component, item = modules()

    @jax.jit
    def run():
        content = component(USER, COMPONENTS, valid=PARTS)
        profile = item(USER, ITEMS, AUXILIARY, content=content, valid=HISTORY)
        return profile_scores(USER, profile, CANDIDATES)

    def network(module, parts):
        hidden = np.asarray(module.user.bias[...], np.float64)
        for name, part in parts.items():
            hidden = hidden + part @ np.asarray(getattr(module, name).kernel[...], np.float64)
        return np.exp(np.maximum(hidden, 0) @ np.asarray(module.score[...], np.float64))

    expected = np.zeros((B, I))
    for b in range(B):
        over, under = np.zeros(D), 0.0
        for s in np.flatnonzero(HISTORY[b]):
            seen, total = np.zeros(C), 0.0
            for m in np.flatnonzero(PARTS[b, s]):
                e = network(component, {"user": USER[b], "components": COMPONENTS[b, s, m]})
                seen, total = seen + e * COMPONENTS[b, s, m], total + e
            content = seen / total if total else seen
            parts = {"user": USER[b], "items": ITEMS[b, s], "auxiliary": AUXILIARY[b, s]}
            e = network(item, parts | {"content": content})
            over, under = over + e * AUXILIARY[b, s], under + e
        expected[b] = CANDIDATES[b] @ (USER[b] + over / under)
    np.testing.assert_allclose(run(), expected, atol=2e-6, rtol=2e-6)


def test_an_item_without_components_has_no_content():
    component, _ = modules()
    content, weights = compiled(component)(USER, COMPONENTS, valid=PARTS, return_weights=True)
    assert weights.shape == (B, 1, S, M)
    np.testing.assert_array_equal(content[0, 1], 0)
    np.testing.assert_array_equal(weights[~PARTS[:, None]], 0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(component(USER, x, valid=PARTS))))(COMPONENTS)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~PARTS], 0)


def test_weights_of_both_levels():
    component, item = map(compiled, modules())
    content, parts = component(USER, COMPONENTS, return_weights=True)
    np.testing.assert_allclose(np.sum(parts, -1), 1, atol=1e-6)
    np.testing.assert_allclose(
        content, np.einsum("bsm,bsmc->bsc", parts[:, 0], COMPONENTS), atol=1e-6
    )
    profile, weights = item(USER, ITEMS, AUXILIARY, content=content, return_weights=True)
    assert weights.shape == (B, 1, 1, S)
    np.testing.assert_allclose(
        profile, np.einsum("bs,bsd->bd", weights[:, 0, 0], AUXILIARY), atol=1e-6
    )


def test_weights_depend_on_the_user():
    component, item = map(compiled, modules())
    seen = [
        (
            component(user, COMPONENTS, return_weights=True)[1],
            item(user, ITEMS, AUXILIARY, content=COMPONENTS[:, :, 0], return_weights=True)[1],
        )
        for user in (USER, -USER)
    ]
    for one, other in zip(*seen, strict=True):
        assert np.abs(one - other).max() > 1e-2


def test_a_number_added_to_the_logits_changes_nothing():
    """Why there is no c_1 and c_2 of the paper."""
    logits = normal(5, B, S)
    for array, attend in ((AUXILIARY, attend_items), (COMPONENTS, attend_components)):
        raw = logits if array is AUXILIARY else normal(5, B, S, M)
        one, other = attend(raw, array)[0], attend(raw + 3, array)[0]
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_equal_logits_give_the_mean():
    profile, _ = attend_items(np.zeros((B, S), "f"), AUXILIARY, HISTORY)
    np.testing.assert_allclose(profile[0], AUXILIARY[0].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(profile[1], AUXILIARY[1, :2].mean(axis=0), atol=1e-6)
    content, _ = attend_components(np.zeros((B, S, M), "f"), COMPONENTS, PARTS)
    np.testing.assert_allclose(content[0, 0], COMPONENTS[0, 0, :3].mean(axis=0), atol=1e-6)


def test_who_has_no_items_is_scored_by_the_user_alone():
    _, item = modules()
    nothing = np.zeros((B, S), bool)
    content = COMPONENTS[:, :, 0]
    profile = compiled(item)(USER, ITEMS, AUXILIARY, content=content, valid=nothing)
    np.testing.assert_array_equal(profile, 0)
    bias = normal(6, B, I)
    np.testing.assert_allclose(
        profile_scores(USER, profile, CANDIDATES, bias),
        np.einsum("bd,bid->bi", USER, CANDIDATES) + bias,
        atol=1e-6,
    )


def component_call(**arguments):
    return lambda: modules()[0](**({"user": USER, "components": COMPONENTS} | arguments))


def item_call(**arguments):
    plain = {"user": USER, "items": ITEMS, "auxiliary": AUXILIARY}
    plain["content"] = COMPONENTS[:, :, 0]
    return lambda: modules()[1](**(plain | arguments))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"user: got shape \[2, 4\], expected \[B, D\]", component_call(user=USER[:, 1:])),
        (r"components: got shape \[2, 3, 4, 5\]", component_call(components=COMPONENTS[..., 1:])),
        (r"components: got shape \[2, 4, 6\], exp", component_call(components=COMPONENTS[:, 0])),
        (r"valid: got shape \[2, 3\], expected \[B, S, M\]", component_call(valid=HISTORY)),
        (r"valid: got dtype float32, expected bool", component_call(valid=PARTS.astype("f"))),
        (r"items: got shape \[2, 5\], expected \[B, S, D\]", item_call(items=ITEMS[:, 0])),
        (r"auxiliary: got shape \[2, 2, 5\], expected", item_call(auxiliary=AUXILIARY[:, 1:])),
        (r"auxiliary: got dtype int32", item_call(auxiliary=np.ones((B, S, D), np.int32))),
        (
            r"content: got None, expected \[B, S, C\] because the module has content_size=6",
            item_call(content=None),
        ),
        (r"content: got shape \[2, 3, 5\], expected", item_call(content=ITEMS)),
        (
            r"content: got an array, expected None because the module was built without content",
            lambda: ItemAttention(D, rngs=nnx.Rngs(0))(USER, ITEMS, AUXILIARY, content=ITEMS),
        ),
        (r"valid: got shape \[2, 3, 4\], expected \[B, S\]", item_call(valid=PARTS)),
        (r"hidden_size: got 0, ex", lambda: ItemAttention(D, hidden_size=0, rngs=nnx.Rngs(0))),
        (r"content_size: got 0, ex", lambda: ItemAttention(D, content_size=0, rngs=nnx.Rngs(0))),
        (
            r"hidden_size: got -1, expected",
            lambda: ComponentAttention(D, C, hidden_size=-1, rngs=nnx.Rngs(0)),
        ),
        (
            r"candidates: got shape \[2, 5\], expected \[B, I, D\]",
            lambda: profile_scores(USER, USER, CANDIDATES[:, 0]),
        ),
    ],
)
def test_mistakes_are_told(message, call):
    told(message, call)
