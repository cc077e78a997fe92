"""Argument checks that raise a `ValueError` with the argument, its value and the expectation.

Dimension letters: B examples, T queries, S keys, N query heads, K key/value heads, H head size,
V value head size, D model size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

LAYOUT_HINT = "did you pass [B, N, T, H]? The layout here is [B, T, N, H]"


def show(shape: Sequence[int]) -> str:
    """Formats a shape for messages, such as `[2, 3]`."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def is_known(array: Any) -> bool:
    """Returns True if no size is a symbol of `jax.export`."""
    return all(isinstance(size, int) for size in jnp.shape(array))


def expect_known_length(argument: str, array: Any) -> None:
    """Raises NotImplementedError if the length, axis 1, is a symbol of `jax.export`."""
    if not isinstance(jnp.shape(array)[1], int):
        expected = "a number for T; only the batch may be symbolic"
        raise NotImplementedError(_line(argument, f"shape {show(jnp.shape(array))}", expected))


def expect(
    argument: str, array: Any, dimensions: str, sizes: dict[str, int], *, hint: str = ""
) -> None:
    """Checks the shape of an array against named dimensions, and stores the sizes of new letters.

    Args:
      argument: name of the argument, for the message.
      array: array or another object with a shape.
      dimensions: letters separated by spaces, such as `"B S K H"`. A repeated letter has one size.
      sizes: the size of each known letter. Known letters are compared, new letters are added.
      hint: appended to the message.

    Raises:
      ValueError: the rank or a known size differs.
    """
    letters = dimensions.split()
    shape = tuple(jnp.shape(array))
    known = {letter: sizes[letter] for letter in letters if letter in sizes}
    bound = dict(known)
    fits = len(shape) == len(letters) and all(
        bound.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True)
    )
    if not fits:
        where = ", ".join(f"{letter}={size}" for letter, size in known.items())
        expected = f"[{', '.join(letters)}]" + (f" with {where}" if where else "")
        raise ValueError(_line(argument, f"shape {show(shape)}", expected, hint))
    sizes.update(bound)


def expect_arrays(
    arrays: Mapping[str, tuple[Any, str]], sizes: dict[str, int] | None = None
) -> dict[str, int]:
    """Checks that named arrays have the given shapes and floating-point dtypes.

    Args:
      arrays: by name, each array and its dimensions, as for `expect`.
      sizes: known sizes, to which new ones are added; none if None.

    Returns:
      The size of each letter.

    Raises:
      ValueError: a shape or dtype does not fit.
    """
    sizes = {} if sizes is None else sizes
    for name, (array, dimensions) in arrays.items():
        expect_floating(name, array)
        expect(name, array, dimensions, sizes)
    return sizes


def expect_floating(argument: str, array: Any) -> None:
    """Raises ValueError unless `array` is an array of real floating-point numbers."""
    if not hasattr(array, "dtype"):
        raise ValueError(_line(argument, type(array).__name__, "a floating-point array"))
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(_line(argument, f"dtype {dtype.name}", "a floating-point dtype"))


def expect_positive(**numbers: int | None) -> None:
    """Raises ValueError if a named number is below 1; None is allowed."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(_line(name, str(number), "at least 1"))


def expect_integer(argument: str, array: Any) -> None:
    """Raises ValueError unless `array` holds integers."""
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(_line(argument, f"dtype {dtype.name}", "an integer dtype"))


def expect_boolean(argument: str, array: Any, *, true_means: str) -> None:
    """Raises ValueError unless `array` is boolean; the message says what True means."""
    dtype = jnp.result_type(array)
    if dtype != jnp.bool_:
        raise ValueError(_line(argument, f"dtype {dtype.name}", f"bool (True = {true_means})"))


def expect_same_dtype(**arrays: Any) -> None:
    """Raises ValueError unless all named arrays have the same dtype."""
    names = {name: jnp.result_type(array).name for name, array in arrays.items()}
    first, dtype = next(iter(names.items()))
    for name, other in names.items():
        if other != dtype:
            expected = f"{dtype} like {first}; cast one of them: mixed dtypes are not promoted"
            raise ValueError(_line(name, f"dtype {other}", expected))


def expect_broadcastable(
    argument: str,
    array: Any,
    dimensions: str,
    sizes: dict[str, int],
    *,
    free: str = "B N",
    hint: str = "",
) -> None:
    """Checks a shape like `expect`, but allows some dimensions to have size 1.

    Args:
      argument, array, dimensions, hint: as for `expect`.
      sizes: the size of each letter; all must be known.
      free: letters of the dimensions that may have size 1.

    Raises:
      ValueError: the rank or a size differs.
    """
    letters, may_be_one = dimensions.split(), free.split()
    shape = tuple(jnp.shape(array))
    fits = len(shape) == len(letters) and all(
        size == sizes[letter] or (size == 1 and letter in may_be_one)
        for letter, size in zip(letters, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(
            f"{letter}={sizes[letter]}" + (" or 1" if letter in may_be_one else "")
            for letter in letters
        )
        raise ValueError(_line(argument, f"shape {show(shape)}", f"[{expected}]", hint))


def expect_rate(argument: str, rate: float, key: Any) -> None:
    """Raises ValueError unless a dropout rate is in [0, 1), with a key if it is above 0."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(_line(argument, str(rate), "a rate in [0, 1)"))
    if rate > 0.0 and key is None:
        expected = "a dropout_key for a rate above 0; pass one, or a rate of 0 for evaluation"
        raise ValueError(_line(argument, f"{rate} without a key", expected))


def expect_attention(query: Any, key: Any, value: Any | None = None) -> dict[str, int]:
    """Checks query [B, T, N, H], key [B, S, K, H] and value [B, S, K, V] against each other.

    Returns:
      The size of each letter.

    Raises:
      ValueError: a shape or dtype does not fit, or K does not divide N.
    """
    arrays = {"query": query, "key": key} | ({} if value is None else {"value": value})
    for name, array in arrays.items():
        expect_floating(name, array)
    expect_same_dtype(**arrays)
    sizes: dict[str, int] = {}
    expect("query", query, "B T N H", sizes)
    hint = LAYOUT_HINT if _looks_heads_first(query, key) else ""
    expect("key", key, "B S K H", sizes, hint=hint)
    if value is not None:
        expect("value", value, "B S K V", sizes, hint=hint)
    if sizes["K"] == 0 or sizes["N"] % sizes["K"]:
        expected = f"a number of heads that divides the query's N={sizes['N']}"
        got = f"shape {show(jnp.shape(key))}, that is K={sizes['K']} heads"
        raise ValueError(_line("key", got, expected, hint))
    return sizes


def head_size(model_size: int, num_heads: int, given: int | None = None) -> int:
    """Returns the head size H of a mixer: the given size, or D / N if None.

    Raises:
      ValueError: num_heads is below 1 or, without a given size, does not divide model_size; or the
        size is below 1.
    """
    if num_heads < 1 or (given is None and model_size % num_heads):
        expected = f"a positive divisor of model_size={model_size} (or give head_size)"
        raise ValueError(_line("num_heads", str(num_heads), expected))
    if given is not None and given < 1:
        raise ValueError(_line("head_size", str(given), "at least 1"))
    return model_size // num_heads if given is None else given


def key_heads(argument: str, num_heads: int, given: int | None) -> int:
    """Returns the number K of key/value heads of a mixer: the given number, or N if None.

    Raises:
      ValueError: K does not divide num_heads.
    """
    K = num_heads if given is None else given
    if K < 1 or num_heads % K:
        expected = f"a positive divisor of num_heads={num_heads}"
        raise ValueError(_line(argument, str(K), expected))
    return K


def layout_hint(got: Sequence[int], expected: Sequence[int], N: int) -> str:
    """Returns `LAYOUT_HINT` if the axes of heads and positions seem to be swapped, else "".

    Args:
      got: sizes of the axes of positions.
      expected: the expected sizes of these axes.
      N: number of heads. The hint is returned if `got` differs from `expected` and all sizes in
        `got` are N.
    """
    swapped = N > 1 and tuple(got) != tuple(expected) and all(size == N for size in got)
    return LAYOUT_HINT if swapped else ""


def _looks_heads_first(query: Any, key: Any) -> bool:
    """Returns True if axis 1 looks like heads and axis 2 like positions: [B, N, T, H]."""
    query_shape, key_shape = jnp.shape(query), jnp.shape(key)
    if len(query_shape) != 4 or len(key_shape) != 4 or not key_shape[1] or not key_shape[2]:
        return False
    return query_shape[1] % key_shape[1] == 0 and query_shape[2] % key_shape[2] != 0


def _line(argument: str, got: str, expected: str, hint: str = "") -> str:
    return f"{argument}: got {got}, expected {expected}" + (f"; {hint}" if hint else "")
