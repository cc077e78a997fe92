"""Attention over users who are alike: what they thought of an item, by how much they count.

User-based collaborative filtering (Resnick et al. 1994, "GroupLens") in which each neighbour has a
learned weight beside its similarity. Two forms of the same sum:

* a list of neighbours for each user, [B, S], such as `top_neighbors` gives: `neighbor_scores`;
* all U users for each user: `dense_neighbor_scores`, two matrix products.

B users who ask, S neighbours, U users that there are, I candidate items, D size of a user's vector.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.collaborative.valid import validate_valid
from attention.numerics import accumulator
from attention.projection import Projection

Array = jax.Array

# softplus of this is 1.
_ONE = math.log(math.expm1(1.0))


def cosine_similarity(user: Array, neighbours: Array) -> Array:
    """How alike users are (Breese et al. 1998, "Vector Similarity").

        sim(u, v) = e_u · e_v / (|e_u| |e_v|)

    Args:
      user: e_u, [B, D].
      neighbours: e_v, [B, S, D], or [U, D] where all users ask the same.

    Returns:
      [B, S] or [B, U] in at least float32; 0, with finite gradients, where a vector is 0.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("user", user)
    shapes.expect_floating("neighbours", neighbours)
    shapes.expect("user", user, "B D", sizes)
    dense = jnp.ndim(neighbours) == 2
    shapes.expect("neighbours", neighbours, "U D" if dense else "B S D", sizes)
    equation = "BD,UD->BU" if dense else "BD,BSD->BS"
    return jnp.einsum(equation, _unit(user), _unit(neighbours))


def top_neighbors(similarity: Array, k: int, valid: Array | None = None) -> tuple[Array, Array]:
    """The k users most alike (Herlocker et al. 1999: best-n neighbours).

        N(u) = the k users v ≠ u with the largest sim(u, v) -> indices

    Who asks is left out by `valid`, where it is among those who are asked.

    Args:
      similarity: [B, U].
      k: how many, 1 to U.
      valid: bool [B, U], who may be chosen; all if None.

    Returns:
      int [B, k], most alike first, and bool [B, k]: False where fewer than k may be chosen.

    Raises:
      ValueError: shapes or dtypes do not fit, or k is out of range.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("similarity", similarity)
    shapes.expect("similarity", similarity, "B U", sizes)
    if not 1 <= k <= sizes["U"]:
        raise ValueError(f"k: got {k}, expected 1 to U={sizes['U']}")
    if valid is not None:
        shapes.expect_boolean("valid", valid, true_means="may be chosen")
        shapes.expect("valid", valid, "B U", sizes)
        similarity = jnp.where(valid, similarity, -jnp.inf)
    best, indices = jax.lax.top_k(similarity, k)
    return indices, best > -jnp.inf


def neighbour_shares(similarity: Array, weight: Array | None, valid: Array | None) -> Array:
    """How much each neighbour counts, with its sign (Resnick et al. 1994).

        α_uv = w_v sim(u, v) / Σ_v' |w_v' sim(u, v')|

    Args:
      similarity: sim(u, v), [B, S].
      weight: w_v, [B, S]; 1 if None.
      valid: bool [B, S], or [B, I, S] where it depends on the item, as when not all have rated all;
        all count if None.

    Returns:
      α, [B, 1 or I, S] in at least float32: the sum of |α| is 1, or 0 where nobody counts.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("similarity", similarity)
    shapes.expect("similarity", similarity, "B S", sizes)
    products = similarity.astype(accumulator(similarity))
    if weight is not None:
        shapes.expect_floating("weight", weight)
        shapes.expect("weight", weight, "B S", sizes)
        products = products * weight
    products = jnp.where(validate_valid(valid, sizes), products[:, None], 0)
    return _ratio(products, jnp.sum(jnp.abs(products), axis=-1, keepdims=True))


def neighbor_scores(
    similarity: Array,
    ratings: Array,
    weight: Array | None = None,
    valid: Array | None = None,
) -> Array:
    """What a user's neighbours thought of items (Resnick et al. 1994).

        score(u, i) = Σ_v w_v sim(u, v) r(v, i) / Σ_v |w_v sim(u, v)|

    over a list of neighbours v for each user. This formula is often printed with a similarity
    between a user and an item in place of r(v, i); users and items are not compared here, and such
    a number would have no meaning: what is averaged is what neighbours v thought of i.

    Resnick et al. average deviations from each neighbour's own mean and add the mean of u: for that
    give r(v, i) less the mean of v.

    Args:
      similarity: [B, S].
      ratings: r(v, i), [B, S, I].
      weight, valid: as for `neighbour_shares`.

    Returns:
      [B, I] in the ratings' dtype; 0 where nobody counts.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    _expect_ratings(similarity, ratings, "B S I")
    if valid is not None and jnp.ndim(valid) == 3:
        shapes.expect("valid", valid, "B I S", {"I": ratings.shape[2]})
    return _weighted(neighbour_shares(similarity, weight, valid), ratings)


def dense_neighbor_scores(
    similarity: Array,
    ratings: Array,
    weight: Array | None = None,
    valid: Array | None = None,
    rated: Array | None = None,
) -> Array:
    """`neighbor_scores` with all users as neighbours (Resnick et al. 1994).

        score = (W ∘ Sim) R / (|W ∘ Sim| Rated)

    Args:
      similarity: [B, U].
      ratings: [U, I].
      weight: w_v, [U]; 1 if None.
      valid: bool [B, U]: who is a neighbour of whom; all if None, who asks included.
      rated: bool [U, I]: what was rated; all if None, as in implicit feedback.

    Returns:
      [B, I] in the ratings' dtype; 0 where nobody counts.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = _expect_ratings(similarity, ratings, "U I")
    products = similarity.astype(accumulator(similarity))
    if weight is not None:
        shapes.expect_floating("weight", weight)
        shapes.expect("weight", weight, "U", sizes)
        products = products * weight
    if valid is not None:
        shapes.expect_boolean("valid", valid, true_means="a neighbour")
        shapes.expect("valid", valid, "B U", sizes)
        products = jnp.where(valid, products, 0)
    wide = ratings.astype(products.dtype)
    if rated is None:
        total = jnp.sum(jnp.abs(products), axis=-1, keepdims=True)
    else:
        shapes.expect_boolean("rated", rated, true_means="rated")
        shapes.expect("rated", rated, "U I", sizes)
        wide = jnp.where(rated, wide, 0)
        total = jnp.abs(products) @ jnp.asarray(rated, products.dtype)
    return _ratio(products @ wide, total).astype(ratings.dtype)


class UserNeighbors(nnx.Module):
    """Attention over users who are alike, each with a learned weight (after Resnick et al. 1994).

        score(u, i) = Σ_v w_v sim(u, v) r(v, i) / Σ_v |w_v sim(u, v)|,   sim = cos(e_u, e_v)

    How much a neighbour is worth whoever asks, w_v = softplus(a·e_v + c), is read from its vector;
    or with `num_users`, w_v = softplus(c_v) is a number for each user. It is above 0, so that the
    sign is the similarity's, and grows no faster than its logit, so that one neighbour does not
    silence all others at once. At the start all are 1: the plain average over neighbours.

    See `neighbor_scores` for what the formula is not. Attentive collaborative filtering by the
    items that a user had is `attention.collaborative.acf`.

    Weights: weight/kernel [D, 1] and weight/bias [1] (a, c), or weight [U] (c_v).

    Args:
      model_size: D.
      num_users: U; the weight is of the neighbour's vector if None.
      dtype: of vectors and ratings; similarities and weights are float32.

    Raises:
      ValueError: num_users is below 1.
    """

    def __init__(
        self,
        model_size: int,
        *,
        num_users: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_users is not None and num_users < 1:
            raise ValueError(f"num_users: got {num_users}, expected at least 1, or None")
        self.model_size, self.num_users, self.dtype = model_size, num_users, dtype
        if num_users is None:
            self.weight = Projection((model_size,), (1,), rngs=rngs)
            self.weight.kernel[...] = jnp.zeros((model_size, 1))
            self.weight.bias[...] = jnp.full((1,), _ONE)
        else:
            self.weight = nnx.Param(jnp.full((num_users,), _ONE))

    def __call__(
        self,
        user: Array,
        neighbours: Array,
        ratings: Array,
        *,
        ids: Array | None = None,
        similarity: Array | None = None,
        valid: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Scores items by what neighbours thought of them.

        Args:
          user: e_u, [B, D].
          neighbours: e_v, [B, S, D].
          ratings: r(v, i), [B, S, I].
          ids: int [B, S], the neighbours' numbers; with `num_users`, and only then.
          similarity: [B, S], in place of the cosine.
          valid: bool [B, S], or [B, I, S] where it depends on the item; all count if None.
          return_weights: also return α.

        Returns:
          [B, I] in `dtype`, 0 where nobody counts; or that and α [B, 1, I, S].

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        sizes = {"D": self.model_size}
        for name, array, letters in (
            ("user", user, "B D"),
            ("neighbours", neighbours, "B S D"),
            ("ratings", ratings, "B S I"),
        ):
            shapes.expect_floating(name, array)
            shapes.expect(name, array, letters, sizes)
        weight = self._weight(neighbours, ids, sizes)
        if similarity is None:
            similarity = cosine_similarity(user.astype(self.dtype), neighbours.astype(self.dtype))
        shapes.expect("similarity", similarity, "B S", sizes)
        validate_valid(valid, sizes)
        shares = neighbour_shares(similarity, weight, valid)

        def weights() -> Array:
            size = (sizes["B"], 1, sizes["I"], sizes["S"])
            return jnp.broadcast_to(shares[:, None], size)

        recording.record(weights)
        scores = _weighted(shares, ratings.astype(self.dtype))
        return (scores, weights()) if return_weights else scores

    def _weight(self, neighbours: Array, ids: Array | None, sizes: dict[str, int]) -> Array:
        """w_v, [B, S] in float32."""
        if self.num_users is None:
            if ids is not None:
                raise ValueError("ids: got some, expected none without num_users")
            return jax.nn.softplus(self.weight(neighbours.astype(self.dtype))[..., 0])
        if ids is None:
            raise ValueError(f"ids: got none, expected [B, S] with num_users={self.num_users}")
        shapes.expect_integer("ids", ids)
        shapes.expect("ids", ids, "B S", sizes)
        return jax.nn.softplus(self.weight[...])[ids]


def _unit(x: Array) -> Array:
    """x over its length, 0 where that is 0, in at least float32."""
    wide = x.astype(accumulator(x))
    squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return jnp.where(squares > 0, wide * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)


def _ratio(over: Array, under: Array) -> Array:
    """0 where both are 0."""
    return over / jnp.where(under == 0, 1, under)


def _weighted(shares: Array, ratings: Array) -> Array:
    """[B, 1 or I, S], [B, S, I] -> [B, I] in the ratings' dtype, summed in at least float32."""
    wide = ratings.astype(accumulator(ratings))
    if shares.shape[1] == 1:
        total = jnp.einsum("BS,BSI->BI", shares[:, 0], wide)
    else:
        total = jnp.einsum("BIS,BSI->BI", shares, wide)
    return total.astype(ratings.dtype)


def _expect_ratings(similarity: Array, ratings: Array, letters: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    shapes.expect_floating("similarity", similarity)
    shapes.expect_floating("ratings", ratings)
    shapes.expect("similarity", similarity, "B U" if letters == "U I" else "B S", sizes)
    shapes.expect("ratings", ratings, letters, sizes)
    return sizes
