"""Positions: embeddings that are added (sinusoidal, learned), rotations of query and key, and terms
added to the logits (ALiBi, T5, Shaw).

`POSITIONS` names those that belong inside an attention: a spec such as "rope" or
"rope(base=500000, fraction=0.25)" picks one, see `RelativePositions` for how they are called.
`ADDED_POSITIONS` names those that are added to the input of the first layer.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import registry, shapes
from attention.numerics import accumulator

Array = jax.Array


def sinusoidal(
    positions: Array, size: int, *, base: float = 10000.0, interleaved: bool = True
) -> Array:
    """Sine and cosine of the position at geometric wavelengths (Vaswani et al. 2017, section 3.5).

        PE(p, 2i) = sin(p / base^(2i / size)),   PE(p, 2i + 1) = cos(p / base^(2i / size))

    Args:
      positions: int [...].
      size: even.
      base: of the wavelengths.
      interleaved: sine and cosine take turns, as in the paper; else the sines are the first half,
        as in tensor2tensor and Marian weights.

    Returns:
      float32 [..., size].

    Raises:
      ValueError: size is odd, or positions are not integers.
    """
    angles = _angles(positions, size, base)
    if not interleaved:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*angles.shape[:-1], size)


def rotary(
    x: Array,
    positions: Array,
    *,
    base: float = 10000.0,
    fraction: float = 1.0,
    interleaved: bool = False,
    scaling: str = "none",
    factor: float = 1.0,
) -> Array:
    """Turns pairs of features by an angle that grows with the position (Su et al. 2021, RoFormer).

        (a, b) -> (a cos θ - b sin θ, a sin θ + b cos θ),   θ_i = p / base^(2i / R)

    so that the product of a turned query and a turned key depends on the distance of their
    positions alone. R = fraction · H features are turned, the first ones; the others stay.

    For texts longer than those trained on, "linear" scaling takes p / factor in place of p (Chen et
    al. 2023), "ntk" takes base · factor^(R / (R - 2)), which leaves the shortest wavelength and
    stretches the longest by the factor (bloc97 2023, "NTK-aware").

    Args:
      x: [B, T, N, H].
      positions: int [T], or [B, T].
      base: of the wavelengths, above 1.
      fraction: share of the features turned, in (0, 1]; R must be even (GPT-NeoX, Black et al.
        2022).
      interleaved: pairs are (2i, 2i + 1) as in the paper; else (i, i + R/2), as in GPT-NeoX and
        Llama weights.
      scaling: "none", "linear" or "ntk".
      factor: at least 1; 1 with "none".

    Returns:
      [B, T, N, H] in x's dtype; the angles are in float32.

    Raises:
      ValueError: shapes or options do not fit, R is odd, or positions are not integers.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("x", x)
    shapes.expect("x", x, "B T N H", sizes)
    shapes.expect("positions", positions, "T" if jnp.ndim(positions) == 1 else "B T", sizes)
    rotated_size = _rotated_size(sizes["H"], base, fraction, scaling, factor)
    if scaling == "ntk":
        base = base * factor ** (rotated_size / max(rotated_size - 2, 1))
    angles = _angles(positions, rotated_size, base, factor if scaling == "linear" else 1.0)
    cosine, sine = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    wide, rest = x[..., :rotated_size].astype(accumulator(x)), x[..., rotated_size:]
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
    else:
        a, b = jnp.split(wide, 2, axis=-1)
    turned = (a * cosine - b * sine, a * sine + b * cosine)
    if interleaved:
        result = jnp.stack(turned, axis=-1).reshape(wide.shape)
    else:
        result = jnp.concatenate(turned, axis=-1)
    return jnp.concatenate([result.astype(x.dtype), rest], axis=-1)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slope of each head (Press et al. 2022, "Train Short, Test Long").

        m_n = 2^(-8 n / N),   n = 1 ... N,   for N a power of two

    For another N: those of the next smaller power of two, then every other of twice that power, as
    the authors' code has it.

    Args:
      num_heads: N, at least 1.

    Returns:
      float32 [N].

    Raises:
      ValueError: num_heads is below 1.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads: got {num_heads}, expected at least 1")
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * n / power) for n in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * n / power) for n in range(1, 2 * (num_heads - power), 2)]
    return np.array(slopes, np.float32)


def alibi_bias(query_positions: Array, key_positions: Array, num_heads: int) -> Array:
    """Logits fall in proportion to the distance (Press et al. 2022).

        bias_nts = -m_n |p_t - p_s|

    Args:
      query_positions, key_positions: int [T] or [B, T], [S] or [B, S].
      num_heads: N.

    Returns:
      float32 [1 or B, N, T, S].

    Raises:
      ValueError: positions are not integers or of another rank.
    """
    distance = jnp.abs(_relative(query_positions, key_positions)).astype(jnp.float32)
    return -alibi_slopes(num_heads)[:, None, None] * distance[:, None]


def t5_buckets(
    relative: Array, *, bidirectional: bool = True, buckets: int = 32, max_distance: int = 128
) -> Array:
    """The bucket of a relative position (Raffel et al. 2020, T5).

        bucket = r,  r < e;   else min(e + ⌊ln(r / e) / ln(max_distance / e) · (n - e)⌋, n - 1)

    with r = |relative|, n buckets for this direction and e = n / 2: one bucket each for near
    positions, then logarithmically wider ones. Both directions have half the buckets each if
    bidirectional; else later keys share bucket 0.

    Args:
      relative: int [...], key position - query position.
      bidirectional: whether later keys have buckets of their own.
      buckets: in all; even if bidirectional.
      max_distance: from here on all share the last bucket.

    Returns:
      int32 [...], in [0, buckets).

    Raises:
      ValueError: the sizes do not fit, or relative is not of integers.
    """
    shapes.expect_integer("relative", relative)
    directions = 2 if bidirectional else 1
    n, exact = buckets // directions, buckets // directions // 2
    if exact < 1 or buckets % directions or max_distance <= exact:
        expected = (
            f"at least {2 * directions} (even if bidirectional) and max_distance above {exact}"
        )
        raise ValueError(
            f"buckets: got {buckets} with max_distance={max_distance}, expected {expected}"
        )
    relative = jnp.asarray(relative, jnp.int32)
    side = jnp.where(relative > 0, n, 0) if bidirectional else 0
    r = jnp.abs(relative) if bidirectional else jnp.maximum(-relative, 0)
    # The first distance of every wide bucket, by integers: a logarithm in float32 may fall on
    # either side of a boundary.
    first = [exact * (max_distance / exact) ** (i / (n - exact)) for i in range(1, n - exact)]
    first = np.array([math.ceil(f - 1e-9) for f in first], np.int32)
    wide = exact + jnp.sum(r[..., None] >= first, axis=-1, dtype=jnp.int32)
    return side + jnp.where(r < exact, r, jnp.minimum(wide, n - 1))


class SinusoidalPositions(nnx.Module):
    """`sinusoidal` as a module; no weights.

    Args:
      max_length: there is no longest length, it is not looked at.
      model_size: D, even.
      base, interleaved: as for `sinusoidal`.
    """

    def __init__(
        self,
        max_length: int,
        model_size: int,
        *,
        base: float = 10000.0,
        interleaved: bool = True,
        rngs: nnx.Rngs,
    ):
        if not base > 1:
            raise ValueError(f"base: got {base}, expected a number above 1")
        self.model_size, self.base, self.interleaved = model_size, float(base), interleaved

    def __call__(self, length: int) -> Array:
        """The first `length` vectors, float32 [length, D]."""
        return self.at(jnp.arange(length))

    def at(self, positions: Array) -> Array:
        """The vectors of positions int [...], float32 [..., D]."""
        return sinusoidal(positions, self.model_size, base=self.base, interleaved=self.interleaved)


class LearnedPositions(nnx.Module):
    """One learned vector a position: [max_length, D], normal with deviation 0.02 (Devlin et al.
    2019).
    """

    def __init__(self, max_length: int, model_size: int, *, rngs: nnx.Rngs):
        self.max_length = max_length
        table = 0.02 * jax.random.normal(rngs.params(), (max_length, model_size))
        self.embedding = nnx.Param(table)

    def __call__(self, length: int) -> Array:
        """The first `length` vectors, float32 [length, D].

        Raises:
          ValueError: there are fewer.
        """
        if length > self.max_length:
            expected = f"at most max_length={self.max_length} learned positions"
            raise ValueError(f"length: got {length}, expected {expected}")
        return self.embedding[...][:length]

    def at(self, positions: Array) -> Array:
        """The vectors of positions int [...], float32 [..., D]; NaN where there is none."""
        shapes.expect_integer("positions", positions)
        return jnp.take(self.embedding[...], positions, axis=0, mode="fill")


class RelativePositions(nnx.Module):
    """What an attention asks of its positions: to turn vectors, or a term for the logits."""

    def rotate(self, x: Array, positions: Array) -> Array:
        """Query or key [B, T, N, H] with its positions in it; as it is unless overridden."""
        return x

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array | None:
        """What is added to the scaled logits, [1 or B, N, T, S]; None unless overridden."""
        return None


class RotaryPositions(RelativePositions):
    """`rotary` of query and key; no weights.

    Args:
      num_heads, head_size: N, H of the attention.
      base, fraction, interleaved, scaling, factor: as for `rotary`.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        *,
        base: float = 10000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
        scaling: str = "none",
        factor: float = 1.0,
        rngs: nnx.Rngs,
    ):
        _rotated_size(head_size, base, fraction, scaling, factor)
        self.base, self.fraction, self.interleaved = float(base), float(fraction), interleaved
        self.scaling, self.factor = scaling, float(factor)

    def rotate(self, x: Array, positions: Array) -> Array:
        """[B, T, N, H], turned."""
        return rotary(
            x,
            positions,
            base=self.base,
            fraction=self.fraction,
            interleaved=self.interleaved,
            scaling=self.scaling,
            factor=self.factor,
        )


class AlibiPositions(RelativePositions):
    """`alibi_bias`; no weights."""

    def __init__(self, num_heads: int, head_size: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array:
        """float32 [1 or B, N, T, S]."""
        return alibi_bias(query_positions, key_positions, self.num_heads)


class T5Positions(RelativePositions):
    """A learned logit for each head and bucket of distances (Raffel et al. 2020).

        bias_nts = table[t5_buckets(p_s - p_t), n]

    Weights: table [buckets, N], 0 at the start.

    Args:
      num_heads, head_size: N, H of the attention; T5 itself has no 1 / sqrt(H), give scale=1 to the
        attention for its weights.
      bidirectional, buckets, max_distance: as for `t5_buckets`.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        *,
        bidirectional: bool = True,
        buckets: int = 32,
        max_distance: int = 128,
        rngs: nnx.Rngs,
    ):
        self.options = {
            "bidirectional": bidirectional,
            "buckets": buckets,
            "max_distance": max_distance,
        }
        t5_buckets(np.zeros(1, np.int32), **self.options)
        self.table = nnx.Param(jnp.zeros((buckets, num_heads)))

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array:
        """float32 [1 or B, N, T, S]."""
        buckets = t5_buckets(_relative(query_positions, key_positions), **self.options)
        return jnp.moveaxis(jnp.take(self.table[...], buckets, axis=0), -1, 1)


class ShawPositions(RelativePositions):
    """Relative keys: a learned vector for each clipped distance (Shaw et al. 2018).

        l_ts = q_t · (k_s + a_{clip(p_s - p_t, ±c)}) / sqrt(H)

    Weights: table [2c + 1, H], shared by the heads, normal with deviation 0.02.

    Args:
      num_heads, head_size: N, H of the attention.
      max_distance: c, at least 1.
    """

    def __init__(self, num_heads: int, head_size: int, *, max_distance: int = 16, rngs: nnx.Rngs):
        if max_distance < 1:
            raise ValueError(f"max_distance: got {max_distance}, expected at least 1")
        self.max_distance = max_distance
        table = 0.02 * jax.random.normal(rngs.params(), (2 * max_distance + 1, head_size))
        self.table = nnx.Param(table)

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array:
        """[B, N, T, S] in at least float32."""
        products = jnp.einsum(
            "BTNH,RH->BNTR",
            query,
            self.table[...].astype(query.dtype),
            preferred_element_type=accumulator(query),
        )
        c = self.max_distance
        place = jnp.clip(_relative(query_positions, key_positions), -c, c) + c
        place = jnp.broadcast_to(place[:, None], (*products.shape[:3], place.shape[-1]))
        return scale * jnp.take_along_axis(products, place, axis=-1)


ADDED_POSITIONS = {"sinusoidal": SinusoidalPositions, "learned": LearnedPositions}

POSITIONS = {
    "rope": RotaryPositions,
    "alibi": AlibiPositions,
    "t5": T5Positions,
    "shaw": ShawPositions,
}


def build_positions(
    spec: str, num_heads: int, head_size: int, *, rngs: nnx.Rngs
) -> RelativePositions | None:
    """The module of a spec such as "rope", "rope(base=500000)" (Su et al. 2021) or "none".

        l_ts = scale · rotate(q_t)·rotate(k_s) + bias_ts

    Args:
      spec: "none", or a name of `POSITIONS`, with options in brackets if any.
      num_heads, head_size: N, H of [B, T, N, H].
      rngs: for what is learned.

    Returns:
      The module, or None for "none".

    Raises:
      ValueError: an unknown name or option, or one that does not fit.
    """
    return _built(spec, POSITIONS, {"num_heads": num_heads, "head_size": head_size}, rngs)


def build_added_positions(
    spec: str, max_length: int, model_size: int, *, rngs: nnx.Rngs
) -> SinusoidalPositions | LearnedPositions | None:
    """The module of a spec such as "sinusoidal", "sinusoidal(interleaved=False)" (Vaswani et al.
    2017), "learned" (Devlin et al. 2019) or "none".

        x_t -> x_t + position_t

    Args:
      spec: "none", or a name of `ADDED_POSITIONS`, with options in brackets if any.
      max_length: of learned positions.
      model_size: D of [B, T, D].
      rngs: for what is learned.

    Returns:
      The module, or None for "none".

    Raises:
      ValueError: an unknown name or option, or one that does not fit.
    """
    return _built(spec, ADDED_POSITIONS, {"max_length": max_length, "model_size": model_size}, rngs)


def _built(spec: str, kinds: dict[str, type], sizes: dict[str, int], rngs: nnx.Rngs):
    name, options = registry.parse("positions", spec, ["none", *kinds])
    if name == "none":
        if options:
            raise ValueError(f"positions: got {spec!r}, expected no options for 'none'")
        return None
    registry.check_options("positions", spec, kinds[name], options, sizes)
    try:
        return kinds[name](**sizes, **options, rngs=rngs)
    except ValueError as error:
        raise ValueError(f"positions: {spec!r}: {error}") from None


def _rotated_size(size: int, base: float, fraction: float, scaling: str, factor: float) -> int:
    """Checked number of features to turn."""
    if not base > 1:
        raise ValueError(f"base: got {base}, expected a number above 1")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: got {fraction}, expected a share in (0, 1]")
    if scaling not in ("none", "linear", "ntk"):
        raise ValueError(f"scaling: got {scaling!r}, expected 'none', 'linear' or 'ntk'")
    if factor < 1 or (scaling == "none" and factor != 1):
        expected = "1 with scaling='none'" if scaling == "none" else "at least 1"
        raise ValueError(f"factor: got {factor}, expected {expected}")
    turned = round(size * fraction)
    if turned % 2 or turned < 2:
        of = "" if fraction == 1 else f" · fraction={fraction} = {turned}"
        expected = "an even number to turn: features are turned in pairs"
        raise ValueError(f"head_size: got {size}{of}, expected {expected}")
    return turned


def _angles(positions: Array, size: int, base: float, slower: float = 1.0) -> Array:
    """float32 [..., size / 2]."""
    shapes.expect_integer("positions", positions)
    if size % 2:
        raise ValueError(f"size: got {size}, expected an even one: features are turned in pairs")
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return jnp.asarray(positions)[..., None].astype(jnp.float32) / slower * frequencies


def _relative(query_positions: Array, key_positions: Array) -> Array:
    """int [1 or B, T, S]: key position - query position."""
    for name, positions in (
        ("query_positions", query_positions),
        ("key_positions", key_positions),
    ):
        shapes.expect_integer(name, positions)
        if jnp.ndim(positions) not in (1, 2):
            got = shapes.show(jnp.shape(positions))
            raise ValueError(f"{name}: got shape {got}, expected [length] or [B, length]")
    relative = jnp.asarray(key_positions)[..., None, :] - jnp.asarray(query_positions)[..., None]
    return relative if relative.ndim == 3 else relative[None]
