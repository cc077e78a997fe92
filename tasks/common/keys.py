"""Random keys per example, so that the order of a batch changes nothing."""

import jax

Array = jax.Array


def example_keys(key: Array | int, ids: Array) -> Array:
    """Folds the id of each example into a key.

    Args:
      key: the key of the step, or a seed.
      ids: int [B], as `tasks.common.data.pipeline` gives them.

    Returns:
      Keys [B].
    """
    if isinstance(key, int):
        key = jax.random.key(key)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jax.numpy.asarray(ids))
