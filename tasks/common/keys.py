"""Random keys per example, so that random results do not depend on the order of a batch.

In shapes, B is the number of examples in a batch.
"""

import jax

Array = jax.Array


def example_keys(key: Array | int, ids: Array) -> Array:
    """Derives a random key for each example from one key and the id of the example.

    Args:
      key: random key of the step, or a seed.
      ids: example ids of `tasks.common.data.pipeline`, int [B].

    Returns:
      Keys [B].
    """
    if isinstance(key, int):
        key = jax.random.key(key)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jax.numpy.asarray(ids))
