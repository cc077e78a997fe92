"""Attention over similar users: their ratings of an item, weighted by similarity.

User-based collaborative filtering (Resnick et al. 1994, "GroupLens") in which each neighbor has a
learned weight in addition to its similarity. There are two forms of the same sum:

* `neighbor_scores`: a list of neighbors [B, S] for each user, such as that of `top_neighbors`;
* `dense_neighbor_scores`: all U users for each user, by two matrix products.

B querying users, S neighbors, U users in all, I candidate items, D size of a user's vector.
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
from attention.sharding import top_k_by_example

Array = jax.Array

# softplus(_ONE) = 1, the initial weight of a neighbor.
_ONE = math.log(math.expm1(1.0))


def cosine_similarity(user: Array, neighbors: Array) -> Array:
    """Computes the cosine similarity of users (Breese et al. 1998, "Vector Similarity").

        sim(u, v) = e_u · e_v / (|e_u| |e_v|)

    Args:
      user: e_u, [B, D].
      neighbors: e_v, [B, S, D], or [U, D] if all users have the same neighbors.

    Returns:
      [B, S] or [B, U] in at least float32; 0, with finite gradients, if a vector is 0.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("user", user)
    shapes.expect_floating("neighbors", neighbors)
    shapes.expect("user", user, "B D", sizes)
    dense = jnp.ndim(neighbors) == 2
    shapes.expect("neighbors", neighbors, "U D" if dense else "B S D", sizes)
    equation = "BD,UD->BU" if dense else "BD,BSD->BS"
    return jnp.einsum(equation, _unit(user), _unit(neighbors))


def top_neighbors(similarity: Array, k: int, valid: Array | None = None) -> tuple[Array, Array]:
    """Returns the k most similar users (Herlocker et al. 1999: best-n neighbors).

        N(u) = the k users v ≠ u with the largest sim(u, v) -> indices

    If the querying user is among the U users, `valid` must exclude it.

    Args:
      similarity: [B, U].
      k: number of neighbors, 1 to U.
      valid: bool [B, U], users that may be chosen; all if None.

    Returns:
      Indices of the users, int [B, k], most similar first; and bool [B, k], True for chosen users.
      If fewer than k users may be chosen, the remaining entries are False.

    Raises:
      ValueError: shapes or dtypes do not fit, or k is out of range.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("similarity", similarity)
    shapes.expect("similarity", similarity, "B U", sizes)
    if not 1 <= k <= sizes["U"]:
        raise ValueError(f"k: got {k}, expected a number from 1 to U={sizes['U']}")
    if valid is not None:
        shapes.expect_boolean("valid", valid, true_means="may be chosen")
        shapes.expect("valid", valid, "B U", sizes)
        similarity = jnp.where(valid, similarity, -jnp.inf)
    best, indices = top_k_by_example(similarity, k)
    return indices, best > -jnp.inf


def neighbor_weights(similarity: Array, weight: Array | None, valid: Array | None) -> Array:
    """Computes the signed weight of each neighbor (Resnick et al. 1994).

        α_uv = w_v sim(u, v) / Σ_v' |w_v' sim(u, v')|

    Args:
      similarity: sim(u, v), [B, S].
      weight: w_v, [B, S]; 1 if None.
      valid: bool [B, S], or [B, I, S] if it depends on the item, as with missing ratings; all are
        valid if None.

    Returns:
      α, [B, I, S], or [B, 1, S] if `valid` does not depend on the item, in at least float32. The
      sum of |α| over the neighbors is 1, or 0 without valid neighbors.

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
    """Computes scores of items from the ratings of neighbors (Resnick et al. 1994).

        score(u, i) = Σ_v w_v sim(u, v) r(v, i) / Σ_v |w_v sim(u, v)|

    The sums are over a list of neighbors v for each user. The result is the weighted mean of the
    ratings that the neighbors gave to item i.

    Resnick et al. average deviations from each neighbor's mean and add the mean of u. For that
    form, pass r(v, i) minus the mean of v, and add the mean of u to the result.

    Args:
      similarity: [B, S].
      ratings: r(v, i), [B, S, I].
      weight, valid: as for `neighbor_weights`.

    Returns:
      [B, I] in the ratings' dtype; 0 without valid neighbors.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    _expect_ratings(similarity, ratings, "B S I")
    if valid is not None and jnp.ndim(valid) == 3:
        shapes.expect("valid", valid, "B I S", {"I": ratings.shape[2]})
    return _weighted(neighbor_weights(similarity, weight, valid), ratings)


def dense_neighbor_scores(
    similarity: Array,
    ratings: Array,
    weight: Array | None = None,
    valid: Array | None = None,
    rated: Array | None = None,
) -> Array:
    """Computes `neighbor_scores` with all users as neighbors (Resnick et al. 1994).

        score = (W ∘ Sim) R / (|W ∘ Sim| Rated)

    Args:
      similarity: Sim, [B, U].
      ratings: R, [U, I].
      weight: w_v, [U], the columns of W; 1 if None.
      valid: bool [B, U], neighbors of each user; all users if None, including the querying user.
      rated: Rated, bool [U, I], items rated by each user; all if None, as in implicit feedback.

    Returns:
      [B, I] in the ratings' dtype; 0 without valid neighbors.

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
        shapes.expect_boolean("valid", valid, true_means="a neighbor")
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
    """Attention over similar users, each with a learned weight (after Resnick et al. 1994).

        score(u, i) = Σ_v w_v sim(u, v) r(v, i) / Σ_v |w_v sim(u, v)|,   sim = cos(e_u, e_v)

    The weight of a neighbor v is the same for all users u. It is w_v = softplus(a·e_v + c), or with
    `num_users` w_v = softplus(c_v), one number for each user. The weight is positive, so the sign
    comes from the similarity. It grows at most linearly with its logit, so that no neighbor
    dominates early in training. All weights are initialized to 1, so the initial scores are
    averages over the neighbors, weighted by similarity.

    Attentive collaborative filtering over the items of a history is in
    `attention.collaborative.acf`.

    Parameters: weight/kernel [D, 1] and weight/bias [1] (a, c), or weight [U] (c_v).

    Args:
      model_size: D, size of a user's vector.
      num_users: U, number of users; if None, the weight depends on the neighbor's vector.
      dtype: dtype of vectors and ratings; similarities and weights are float32.

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
        shapes.expect_positive(num_users=num_users)
        self.model_size, self.num_users, self.dtype = model_size, num_users, dtype
        if num_users is None:
            self.weight = Projection((model_size,), (1,), rngs=rngs)
            self.weight.kernel[...] = jnp.zeros((model_size, 1))
            self.weight.bias = nnx.Param(jnp.full((1,), _ONE))
        else:
            self.weight = nnx.Param(jnp.full((num_users,), _ONE))

    def __call__(
        self,
        user: Array,
        neighbors: Array,
        ratings: Array,
        *,
        ids: Array | None = None,
        similarity: Array | None = None,
        valid: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Computes scores of items from the ratings of neighbors.

        Args:
          user: e_u, [B, D].
          neighbors: e_v, [B, S, D].
          ratings: r(v, i), [B, S, I].
          ids: int [B, S], indices of the neighbors; only with `num_users`.
          similarity: [B, S]; the cosine if None.
          valid: bool [B, S], or [B, I, S] if it depends on the item; all are valid if None.
          return_weights: whether to return α too.

        Returns:
          The scores, [B, I] in `dtype`, 0 without valid neighbors. With `return_weights`, also α,
          [B, 1, I, S].

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        sizes = {"D": self.model_size}
        named = {"user": (user, "B D"), "neighbors": (neighbors, "B S D")}
        shapes.expect_arrays(named | {"ratings": (ratings, "B S I")}, sizes)
        weight = self._weight(neighbors, ids, sizes)
        if similarity is None:
            similarity = cosine_similarity(user.astype(self.dtype), neighbors.astype(self.dtype))
        shapes.expect("similarity", similarity, "B S", sizes)
        validate_valid(valid, sizes)
        alpha = neighbor_weights(similarity, weight, valid)

        def weights() -> Array:
            size = (sizes["B"], 1, sizes["I"], sizes["S"])
            return jnp.broadcast_to(alpha[:, None], size)

        ratings = ratings.astype(self.dtype)
        scores = recording.record_result(
            _weighted(alpha, ratings), weights, mix=lambda w: _weighted_by_item(w[:, 0], ratings)
        )
        return (scores, weights()) if return_weights else scores

    def _weight(self, neighbors: Array, ids: Array | None, sizes: dict[str, int]) -> Array:
        """Returns w_v, [B, S] in float32."""
        if isinstance(self.weight, Projection):
            if ids is not None:
                raise ValueError(
                    "ids: got an array, expected None because the module was built without "
                    "num_users"
                )
            return jax.nn.softplus(self.weight(neighbors.astype(self.dtype))[..., 0])
        if ids is None:
            raise ValueError(
                f"ids: got None, expected int [B, S] because the module was built with "
                f"num_users={self.num_users}"
            )
        shapes.expect_integer("ids", ids)
        shapes.expect("ids", ids, "B S", sizes)
        return jax.nn.softplus(self.weight[...])[ids]


def _unit(x: Array) -> Array:
    """Returns x / |x| in at least float32; 0 if x is 0."""
    wide = x.astype(accumulator(x))
    squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return jnp.where(squares > 0, wide * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)


def _ratio(over: Array, under: Array) -> Array:
    """Returns over / under, and 0 where `under` is 0."""
    return over / jnp.where(under == 0, 1, under)


def _weighted(alpha: Array, ratings: Array) -> Array:
    """Returns Σ_s α r, [B, I] in the ratings' dtype, summed in at least float32."""
    wide = ratings.astype(accumulator(ratings))
    if alpha.shape[1] != 1:
        return _weighted_by_item(alpha, ratings)
    return jnp.einsum("BS,BSI->BI", alpha[:, 0], wide).astype(ratings.dtype)


def _weighted_by_item(alpha: Array, ratings: Array) -> Array:
    """Returns Σ_s α r, [B, I] in the ratings' dtype, for α [B, I, S]."""
    wide = ratings.astype(accumulator(ratings))
    return jnp.einsum("BIS,BSI->BI", alpha, wide).astype(ratings.dtype)


def _expect_ratings(similarity: Array, ratings: Array, letters: str) -> dict[str, int]:
    users = "B U" if letters == "U I" else "B S"
    named = {"similarity": (similarity, users), "ratings": (ratings, letters)}
    return shapes.expect_arrays(named)
