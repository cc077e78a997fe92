"""Co-occurrence counts of the training split, and their storage in a model.

In shapes, B is the number of rows of a batch, T the number of scored positions, S the number of
positions of a history, I the number of items, and U the number of users. A stored matrix has R rows
and C columns, and at most k stored entries per row if it is sparse.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse as sp
from flax import nnx

from tasks.recommendation.models.base import Buffer, safe_ids

Array = jax.Array

# Maximum number of entries of a dense matrix; larger matrices keep the largest entries of each row.
DENSE = 2**23


def binarize(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Replaces the stored entries of a sparse matrix by 1, float32 [U, I]."""
    return sp.csr_matrix(
        (np.ones(matrix.nnz, np.float32), matrix.indices, matrix.indptr), matrix.shape
    )


def in_time_order(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Returns the user and the item of each of n events, sorted by user and position.

    Returns:
      Users int32 [n] and items int32 [n].
    """
    users = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    order = np.lexsort((matrix.data, users))
    return users[order], matrix.indices[order].astype(np.int32)


def transitions(
    matrix: sp.csr_matrix, window: int, decay: float, both_ways: bool = False
) -> sp.csr_matrix:
    """Counts transitions between items.

        C_ji = Σ γ^(d - 1)

    summed over all pairs of events of the same user in which item i is d positions after item j,
    for 1 ≤ d ≤ window.

    Args:
      matrix: events [U, I]; an entry is the position of the event in the history of its user.
      window: largest distance of two events, in positions.
      decay: γ, decay of a count per position of distance, in (0, 1].
      both_ways: whether to count both orders of two items and return C + Cᵀ.

    Returns:
      C, float32 [I, I].
    """
    users, items = in_time_order(matrix)
    shape = (matrix.shape[1], matrix.shape[1])
    total = sp.csr_matrix(shape, dtype=np.float32)
    for distance in range(1, min(window, max(len(items) - 1, 0)) + 1):
        same = users[:-distance] == users[distance:]
        if not same.any():
            break
        pairs = items[:-distance][same], items[distance:][same]
        weights = np.full(len(pairs[0]), decay ** (distance - 1), np.float32)
        total = total + sp.coo_matrix((weights, pairs), shape).tocsr()
    return (total + total.T).tocsr() if both_ways else total


def ridge_inverse(matrix: sp.csr_matrix, strength: float) -> np.ndarray:
    """Computes P = (XᵀX + λI)⁻¹ of EASE (Steck 2019), whose weights are B_ij = -P_ij / P_jj.

    Args:
      matrix: X, events [U, I], which are counted as 1.
      strength: λ, ridge penalty.

    Returns:
      P, float32 [I, I].
    """
    X = binarize(matrix).astype(np.float64)
    gram = (X.T @ X).toarray()
    gram[np.diag_indices_from(gram)] += strength
    return scipy.linalg.inv(gram, overwrite_a=True, check_finite=False).astype(np.float32)


def top_k_per_row(matrix: sp.csr_matrix, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `count` largest entries of each row. Ties are broken by a fixed permutation.

    Returns:
      Columns int32 [R, count] and entries float32 [R, count], padded with -1 and 0.
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    drawn = np.random.default_rng(0).permutation(matrix.nnz)
    order = np.lexsort((drawn, -matrix.data, rows))
    position = np.arange(matrix.nnz) - matrix.indptr[rows]
    kept = position < count
    columns = np.full((matrix.shape[0], count), -1, np.int32)
    entries = np.zeros((matrix.shape[0], count), np.float32)
    columns[rows[kept], position[kept]] = matrix.indices[order][kept]
    entries[rows[kept], position[kept]] = matrix.data[order][kept]
    return columns, entries


class SparseRows(nnx.Module):
    """Matrix M [R, C], stored dense or as the largest entries of each row, for sums of rows.

    Buffers: whole [R, C]; or columns int32 [R, k] and entries float32 [R, k].

    Args:
      matrix: M. A NumPy array, or a sparse matrix with R C <= `DENSE`, is stored dense.
      count: k, number of entries that each row of a larger sparse matrix keeps.
    """

    def __init__(self, matrix: sp.csr_matrix | np.ndarray, count: int):
        self.shape = matrix.shape
        self.dense = not sp.issparse(matrix) or np.prod(self.shape, dtype=float) <= DENSE
        if self.dense:
            whole = matrix.toarray() if sp.issparse(matrix) else matrix
            self.whole = Buffer(jnp.asarray(whole, jnp.float32))
        else:
            columns, entries = top_k_per_row(matrix, count)
            self.columns, self.entries = Buffer(jnp.asarray(columns)), Buffer(jnp.asarray(entries))

    def combine(self, weights: Array, rows: Array) -> Array:
        """Computes Σ_s w_ts M[row_s], weighted sums of the same rows for all positions t.

        Args:
          weights: weights w, [B, T, S], 0 for padding.
          rows: indices of the rows, int [B, S].

        Returns:
          [B, T, C].
        """
        if self.dense:
            return jnp.einsum("BTS,BSC->BTC", weights, self.whole[...][safe_ids(rows)])
        columns, entries = self.columns[...][safe_ids(rows)], self.entries[...][safe_ids(rows)]

        def one(weights: Array, columns: Array, entries: Array) -> Array:
            return (
                jnp.zeros((self.shape[1],))
                .at[_or_outside(columns, self.shape[1])]
                .add(weights[:, None] * entries, mode="drop")
            )

        return jax.vmap(jax.vmap(one, (0, None, None)))(weights, columns, entries)

    def combine_each(self, weights: Array, rows: Array) -> Array:
        """Computes Σ_s w_ts M[row_ts], weighted sums of different rows for each position t.

        Args:
          weights: weights w, [B, T, k].
          rows: indices of the rows, int [B, T, k].

        Returns:
          [B, T, C].
        """
        B, T, k = rows.shape
        if self.dense:
            spread = jax.vmap(lambda w, r: jnp.zeros((self.shape[0],)).at[r].add(w))
            flat = spread(weights.reshape(B * T, k), safe_ids(rows).reshape(B * T, k))
            return (flat @ self.whole[...]).reshape(B, T, -1)
        flat = self.combine(weights.reshape(B * T, 1, k), rows.reshape(B * T, k))
        return flat.reshape(B, T, -1)

    def entry(self, rows: Array, columns: Array) -> Array:
        """Gathers the entries out[b, c, j] = M[rows[b, j], columns[b, c]].

        Args:
          rows: int [B, J], J rows for each example.
          columns: int [B, N], N columns for each example.

        Returns:
          [B, N, J].
        """
        if self.dense:
            return self.whole[...][safe_ids(rows)[:, None, :], safe_ids(columns)[:, :, None]]
        kept, entries = self.columns[...][safe_ids(rows)], self.entries[...][safe_ids(rows)]
        same = kept[:, None] == columns[:, :, None, None]
        return jnp.sum(jnp.where(same, entries[:, None], 0), axis=-1)


def _or_outside(columns: Array, size: int) -> Array:
    """Replaces padding -1 by the index `size`, which a scatter drops."""
    return jnp.where(columns < 0, size, columns)
