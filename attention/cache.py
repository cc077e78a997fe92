"""Cache of keys and values for step-by-step decoding (Shazeer 2019, "Fast Transformer Decoding").

    cache = KeyValueCache.empty(batch_size, max_length, key_value_heads, head_size)
    cache = cache.append(key, value, lengths)
    full = cache.overflow()              # bool [B]

B batch, T new positions, C capacity, K key/value heads, H head size, V value head size. The arrays
are [B, K, C, H], so that the keys of a head are contiguous. Attention of one query to a long cache
is many times faster in this layout than in [B, C, K, H].
"""

from __future__ import annotations

import dataclasses

import jax
import jax.core
import jax.numpy as jnp

from attention import masks, shapes

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of past positions, a frozen pytree.

    Attributes:
      key: [B, K, C, H].
      value: [B, K, C, V].
      length: int32 [B], number of past positions of each example.
      window: number of past positions that a query attends to besides its own; all if None. With
        a window the cache is a ring buffer of C slots, and position p is in slot p modulo C.
    """

    key: Array
    value: Array
    length: Array
    window: int | None = None

    @classmethod
    def empty(
        cls,
        batch_size: int,
        max_length: int,
        key_value_heads: int,
        head_size: int,
        *,
        value_head_size: int | None = None,
        window: int | None = None,
        dtype: jnp.dtype = jnp.float32,
    ) -> KeyValueCache:
        """Returns an empty cache.

        Args:
          batch_size, max_length: number of examples, B, and maximum number of positions.
          key_value_heads, head_size, value_head_size: K, H, V; V is H if None.
          window: see the class. With a window, the capacity C is the smaller of window + 1 and
            max_length, otherwise max_length.
          dtype: dtype of keys and values.

        Raises:
          ValueError: a size is below 1, or the window below 0.
        """
        if batch_size < 1 or max_length < 1:
            name, got = ("batch_size", batch_size) if batch_size < 1 else ("max_length", max_length)
            raise ValueError(f"{name}: got {got}, expected at least 1")
        if window is not None and window < 0:
            raise ValueError(f"window: got {window}, expected at least 0, or None")
        if window is not None and window + 1 >= max_length:
            window = None
        capacity = max_length if window is None else window + 1
        V = head_size if value_head_size is None else value_head_size
        return cls(
            jnp.zeros((batch_size, key_value_heads, capacity, head_size), dtype),
            jnp.zeros((batch_size, key_value_heads, capacity, V), dtype),
            jnp.zeros((batch_size,), jnp.int32),
            window,
        )

    @property
    def capacity(self) -> int:
        """Capacity C, the number of slots for positions."""
        return self.key.shape[2]

    def positions(self) -> Array:
        """Returns the position in each slot, int32 [B, C]; negative if empty."""
        slots = jnp.arange(self.capacity)
        if self.window is None:
            return jnp.where(slots < self.length[:, None], slots, -1)
        last = self.length[:, None] - 1
        return last - (last - slots) % self.capacity

    def append(self, key: Array, value: Array, lengths: Array | None = None) -> KeyValueCache:
        """Returns the cache with T more positions.

        Args:
          key: [B, T, K, H].
          value: [B, T, K, V].
          lengths: int [B], number of real positions (not padding) among the T new ones. Real
            positions come first; padding is not stored. All are real if None.

        Raises:
          ValueError: shapes or dtypes do not fit, or, outside jit, the cache is full. Under jit,
            check `overflow` instead.
        """
        B, K, C, H = self.key.shape
        sizes = {"B": B, "K": K, "H": H, "V": self.value.shape[-1]}
        shapes.expect("key", key, "B T K H", sizes)
        shapes.expect("value", value, "B T K V", sizes)
        shapes.expect_same_dtype(cache=self.key, key=key, value=value)
        T = sizes["T"]
        if lengths is None and T == 1:
            real = jnp.ones((B,), jnp.int32)
        else:
            real = valid_lengths(lengths, B, T)
        new = dataclasses.replace(self, length=self.length + real)
        new.expect_room()
        steps = jnp.arange(T)
        kept = steps < real[:, None]
        slots = self.length[:, None] + steps
        if self.window is not None:
            kept = kept & (steps >= real[:, None] - C)
            slots = slots % C
        # Positions that are not stored get slot C, which is out of range: their write is dropped.
        slots = jnp.where(kept, slots, C)
        rows = jnp.arange(B)[:, None]
        write = {"mode": "drop", "unique_indices": False}
        return dataclasses.replace(
            new,
            key=self.key.at[rows, :, slots].set(key, **write),
            value=self.value.at[rows, :, slots].set(value, **write),
        )

    def overflow(self) -> Array:
        """Returns bool [B], True if more positions were appended than the cache can hold."""
        full = self.window is None
        return self.length > self.capacity if full else jnp.zeros(self.length.shape, bool)

    def expect_room(self) -> None:
        """Raises ValueError on overflow, if the lengths are concrete (outside jit)."""
        if self.window is None and not isinstance(self.length, jax.core.Tracer):
            longest = int(self.length.max())
            if longest > self.capacity:
                raise ValueError(
                    f"cache: got {longest} positions, expected at most max_length={self.capacity}"
                )


jax.tree_util.register_dataclass(
    KeyValueCache, data_fields=["key", "value", "length"], meta_fields=["window"]
)


def valid_lengths(lengths: Array | None, B: int, T: int) -> Array:
    """Returns the number of real positions of each example, int32 [B].

    The result is `lengths` clipped to [0, T], or T for each example if `lengths` is None.

    Raises:
      ValueError: lengths are not int [B].
    """
    if lengths is None:
        return jnp.full((B,), T, jnp.int32)
    shapes.expect_integer("lengths", lengths)
    shapes.expect("lengths", lengths, "B", {"B": B})
    return jnp.clip(jnp.asarray(lengths, jnp.int32), 0, T)


def append_keys_values(
    cache: KeyValueCache, key: Array, value: Array, lengths: Array | None = None
) -> tuple[KeyValueCache, Array, Array, Array, masks.Mask]:
    """Appends T positions to a cache and returns keys, values and mask for the T new queries.

    A query at position p attends to the keys at positions j <= p. With a window, it attends only to
    those with j >= p - window.

    Args:
      cache, key, value, lengths: as for `KeyValueCache.append`.

    Returns:
      The new cache; the keys, [B, S, K, H], and values, [B, S, K, V], of S slots; the position in
      each slot, int [S] or [B, S]; and the mask of the T queries. A slot may be empty.

    Raises:
      ValueError: see `KeyValueCache.append`.
    """
    B, T = key.shape[:2]
    new = cache.append(key, value, lengths)
    if cache.window is None:
        keys, values = (jnp.swapaxes(x, 1, 2) for x in (new.key, new.value))
        positions = jnp.arange(cache.capacity)
        return new, keys, values, positions, masks.causal(cache.length)
    queries = cache.length[:, None] + jnp.arange(T)
    if T == 1:
        keys, values = (jnp.swapaxes(x, 1, 2) for x in (new.key, new.value))
        positions = new.positions()
        real = positions >= 0
    else:
        # In the ring, the last new keys may overwrite keys to which the first new queries attend.
        # So the queries attend to the old ring and the new keys, not to the new ring.
        keys = jnp.concatenate([jnp.swapaxes(cache.key, 1, 2), key], axis=1)
        values = jnp.concatenate([jnp.swapaxes(cache.value, 1, 2), value], axis=1)
        positions = jnp.concatenate([cache.positions(), queries], axis=1)
        real = jnp.concatenate(
            [
                cache.positions() >= 0,
                jnp.arange(T) < valid_lengths(lengths, B, T)[:, None],
            ],
            axis=1,
        )
    distance = queries[:, :, None] - positions[:, None]
    seen = real[:, None] & (distance >= 0) & (distance <= cache.window)
    return new, keys, values, positions, masks.dense(seen[:, None])
