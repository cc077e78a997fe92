"""Attentive collaborative filtering: attention over the items of a user and their components.

Chen et al. 2017, "Attentive Collaborative Filtering: Multimedia Recommendation with Item- and
Component-Level Attention". The two modules can also be used separately:

    content = component_attention(user, components, valid=parts)        # for each item
    profile = item_attention(user, items, auxiliary, content=content, valid=history)
    scores = profile_scores(user, profile, candidates)

B users, S items of a history, M components of an item (regions of an image, frames of a video), C
size of a component, I candidates, D size of the vectors of users and items, A hidden size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.numerics import accumulator, product, softmax
from attention.projection import Projection

Array = jax.Array


def attend_components(
    logits: Array, components: Array, valid: Array | None = None
) -> tuple[Array, Array]:
    """Computes the content of each item by attention over its components (Chen et al. 2017).

        x̄_l = Σ_m β_lm x_lm,   β_l = softmax_m(b_l)

    Args:
      logits: b, [B, S, M].
      components: x, [B, S, M, C].
      valid: bool [B, S, M], real components; all if None.

    Returns:
      x̄, [B, S, C] in the components' dtype, and β, [B, S, M] in at least float32. Both are 0 for
      an item without components.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = shapes.expect_arrays({"components": (components, "B S M C")})
    weights = _masked_softmax(logits, valid, "B S M", sizes)
    return product("BSM,BSMC->BSC", weights, components), weights


def attend_items(
    logits: Array, auxiliary: Array, valid: Array | None = None
) -> tuple[Array, Array]:
    """Computes the profile of a user by attention over the items (Chen et al. 2017).

        s = Σ_l α_l p_l,   α = softmax_l(a)

    Args:
      logits: a, [B, S].
      auxiliary: p, [B, S, D].
      valid: bool [B, S], real items; all if None.

    Returns:
      s, [B, D] in the dtype of p, and α, [B, S] in at least float32. Both are 0 for an empty
      history.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = shapes.expect_arrays({"auxiliary": (auxiliary, "B S D")})
    weights = _masked_softmax(logits, valid, "B S", sizes)
    return product("BS,BSD->BD", weights, auxiliary), weights


def profile_scores(
    user: Array, profile: Array, candidates: Array, bias: Array | None = None
) -> Array:
    """Computes scores of items for a user with a profile (Chen et al. 2017).

        y_i = (u + s)ᵀ v_i + b_i

    Args:
      user: u, [B, D].
      profile: s, [B, D], from `attend_items`.
      candidates: v, [B, I, D].
      bias: b, [B, I]; 0 if None, as in the paper.

    Returns:
      y, [B, I] in the candidates' dtype, summed in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    named = {"user": (user, "B D"), "profile": (profile, "B D")}
    named |= {"candidates": (candidates, "B I D")}
    shapes.expect_arrays(named | ({} if bias is None else {"bias": (bias, "B I")}))
    sums = accumulator(candidates)
    whole = (user + profile).astype(candidates.dtype)
    scores = jnp.einsum("BD,BID->BI", whole, candidates, preferred_element_type=sums)
    return (scores if bias is None else scores + bias).astype(candidates.dtype)


class ItemAttention(nnx.Module):
    """Item-level attention: a user profile computed from the items of a history (Chen et al. 2017).

        s = Σ_l α_l p_l,   α = softmax_l(w·relu(W_u u + W_v v_l + W_p p_l + W_x x̄_l + b))

    v_l is the item's vector as a candidate, and p_l (auxiliary) its vector as part of a user's
    history. x̄_l is the item's content, if any. The paper adds a constant to the logits; it is
    omitted because it has no effect on the softmax.

    Parameters: user/kernel [D, A] (W_u) with user/bias [A] (b), items/kernel and auxiliary/kernel
    [D, A] (W_v, W_p), content/kernel [C, A] (W_x), score [A] (w).

    Args:
      model_size: D, size of the vectors of users and items.
      content_size: C, size of an item's content; no content if None.
      hidden_size: A, size of the hidden layer; D if None.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: a size is below 1.
    """

    def __init__(
        self,
        model_size: int,
        *,
        content_size: int | None = None,
        hidden_size: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        A = model_size if hidden_size is None else hidden_size
        shapes.expect_positive(content_size=content_size, hidden_size=A)
        self.model_size, self.content_size, self.dtype = model_size, content_size, dtype
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.user = Projection((model_size,), (A,), dtype=dtype, rngs=rngs)
        self.items = Projection((model_size,), (A,), **options)
        self.auxiliary = Projection((model_size,), (A,), **options)
        self.content = (
            None if content_size is None else Projection((content_size,), (A,), **options)
        )
        self.score = nnx.Param(jax.random.normal(rngs.params(), (A,)) * A**-0.5)

    def __call__(
        self,
        user: Array,
        items: Array,
        auxiliary: Array,
        *,
        content: Array | None = None,
        valid: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Computes the profile of a user.

        Args:
          user: u, [B, D].
          items: v, [B, S, D].
          auxiliary: p, [B, S, D].
          content: x̄, [B, S, C]; only with `content_size`.
          valid: bool [B, S], False for padding; if None, no item is padding.
          return_weights: whether to return α too.

        Returns:
          s, [B, D] in `dtype`, 0 for an empty history; with `return_weights`, also α,
          [B, 1, 1, S].

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        sizes = {"D": self.model_size}
        named = {"user": (user, "B D"), "items": (items, "B S D")}
        named |= {"auxiliary": (auxiliary, "B S D")}
        if (content is None) != (self.content_size is None):
            got, expected = "an array", "None because the module was built without content_size"
            if content is None:
                got = "None"
                expected = f"[B, S, C] because the module has content_size={self.content_size}"
            raise ValueError(f"content: got {got}, expected {expected}")
        if content is not None and self.content_size is not None:
            sizes["C"] = self.content_size
            named |= {"content": (content, "B S C")}
        shapes.expect_arrays(named, sizes)
        parts = {name: array.astype(self.dtype) for name, (array, _) in named.items()}
        seen = {name: getattr(self, name)(array) for name, array in parts.items()}
        asked = seen.pop("user")[:, None]
        logits = _logits([asked, *seen.values()], self.score[...])
        profile, weights = attend_items(logits, parts["auxiliary"], valid)
        profile = recording.record_result(
            profile,
            lambda: weights[:, None, None],
            mix=lambda w: product("BS,BSD->BD", w[:, 0, 0], parts["auxiliary"]),
        )
        return (profile, weights[:, None, None]) if return_weights else profile


class ComponentAttention(nnx.Module):
    """Component-level attention: the content of each item for a user (Chen et al. 2017).

        x̄_l = Σ_m β_lm x_lm,   β_l = softmax_m(w·relu(W_u u + W_x x_lm + b))

    Parameters: user/kernel [D, A] (W_u) with user/bias [A] (b), components/kernel [C, A] (W_x),
    score [A] (w).

    Args:
      model_size: D of the user's vector.
      component_size: C, size of a component.
      hidden_size: A, size of the hidden layer; D if None.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: hidden_size is below 1.
    """

    def __init__(
        self,
        model_size: int,
        component_size: int,
        *,
        hidden_size: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        A = model_size if hidden_size is None else hidden_size
        shapes.expect_positive(hidden_size=A)
        self.model_size, self.component_size, self.dtype = model_size, component_size, dtype
        self.user = Projection((model_size,), (A,), dtype=dtype, rngs=rngs)
        self.components = Projection(
            (component_size,), (A,), use_bias=False, dtype=dtype, rngs=rngs
        )
        self.score = nnx.Param(jax.random.normal(rngs.params(), (A,)) * A**-0.5)

    def __call__(
        self,
        user: Array,
        components: Array,
        *,
        valid: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Computes the content of each item for a user.

        Args:
          user: u, [B, D].
          components: x, [B, S, M, C].
          valid: bool [B, S, M], False for padding; if None, no component is padding.
          return_weights: whether to return β too.

        Returns:
          x̄, [B, S, C] in `dtype`, 0 for an item without components; with `return_weights`, also
          β [B, 1, S, M].

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        sizes = {"D": self.model_size, "C": self.component_size}
        named = {"user": (user, "B D"), "components": (components, "B S M C")}
        shapes.expect_arrays(named, sizes)
        user, components = user.astype(self.dtype), components.astype(self.dtype)
        parts = [self.user(user)[:, None, None], self.components(components)]
        content, weights = attend_components(_logits(parts, self.score[...]), components, valid)
        content = recording.record_result(
            content,
            lambda: weights[:, None],
            mix=lambda w: product("BSM,BSMC->BSC", w[:, 0], components),
        )
        return (content, weights[:, None]) if return_weights else content


def _logits(parts: list[Array], score: Array) -> Array:
    """Returns w·relu(Σ parts) over the last axis, in float32."""
    return jax.nn.relu(sum(part.astype(jnp.float32) for part in parts)) @ score


def _masked_softmax(
    logits: Array, valid: Array | None, letters: str, sizes: dict[str, int]
) -> Array:
    """Returns a softmax over the last axis in at least float32, 0 where not valid."""
    shapes.expect("logits", logits, letters, sizes)
    wide = logits.astype(accumulator(logits))
    if valid is not None:
        shapes.expect_boolean("valid", valid, true_means="real")
        shapes.expect("valid", valid, letters, sizes)
        wide = jnp.where(valid, wide, -jnp.inf)
    return softmax(wide)
