"""Checks of `valid`, the padding mask of the mechanisms in this folder.

B users, S neighbors or items of a history, I candidates to be scored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from attention import shapes

Array = jax.Array


def validate_valid(valid: Array | None, sizes: dict[str, int]) -> Array:
    """Returns `valid` as an array of rank 3.

    Args:
      valid: bool [B, S] or [B, I, S]; None if all are valid.
      sizes: known sizes of the letters B, I and S.

    Returns:
      bool [B, I, S], or [B, 1, S] if it is the same for all candidates.

    Raises:
      ValueError: shape or dtype does not fit.
    """
    if valid is None:
        return jnp.ones((sizes["B"], 1, sizes["S"]), bool)
    shapes.expect_boolean("valid", valid, true_means="a real neighbor")
    if jnp.ndim(valid) == 2:
        shapes.expect("valid", valid, "B S", sizes)
        return jnp.asarray(valid)[:, None]
    hint = "or [B, S] if it is the same for all candidates"
    shapes.expect("valid", valid, "B I S", sizes, hint=hint)
    return jnp.asarray(valid)


def without_target(candidates: Array, history: Array, valid: Array | None = None) -> Array:
    """Leaves a candidate out of its own history (Kabbur et al. 2013, "FISM").

        v_ij = v_j and (i ≠ j),   so that i is not in the sums over its own history

    Without this, a model that is trained on candidates from the history learns to recognize them in
    the history. Candidates that are not in the history are unaffected.

    Args:
      candidates: i, int [B, I], item indices.
      history: j, int [B, S], item indices.
      valid: bool [B, S], real items of the history; all if None.

    Returns:
      v, bool [B, I, S], for the argument `valid` of the mechanisms.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    for name, ids, letters in (("candidates", candidates, "B I"), ("history", history, "B S")):
        shapes.expect_integer(name, ids)
        shapes.expect(name, ids, letters, sizes)
    if valid is not None:
        shapes.expect("valid", valid, "B S", sizes)
    return validate_valid(valid, sizes) & (candidates[:, :, None] != history[:, None])
