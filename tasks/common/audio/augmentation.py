"""Augmentation of audio samples and log-mel features under jit, with one random key per example.

Samples are float32 in [-1, 1], mono. In shapes, B is the batch size, P the number of samples, S the
number of frames, and F the number of mel bands."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from tasks.common.configs import Config, NonNegativeFloat, NonNegativeInt, PositiveInt, within

Array = jax.Array

# Number of random knots of the equalizer curve.
_KNOTS = 6


@dataclasses.dataclass(frozen=True)
class SoundAugmentation(Config):
    """Config of the random changes of sounds in training.

    Attributes:
      speed: maximum relative change of speed and pitch; 0.1 means 0.9 to 1.1 (Ko et al. 2015).
      gain: maximum change of loudness, in decibels.
      noise: minimum and maximum signal-to-noise ratio of white noise, in decibels; empty for no
        noise.
      warp: maximum relative stretch of the frequency axis, which simulates other vocal-tract
        lengths (VTLP, Jaitly & Hinton 2013).
      equalizer: standard deviation, in decibels, of a random curve over the bands, which simulates
        other microphones.
      time_masks, time_width: number of time masks and their maximum width in frames (SpecAugment,
        Park et al. 2019).
      band_masks, band_width: number of band masks and their maximum width in bands.
    """

    speed: within("[0, 0.5)") = 0.0
    gain: within("[0, 60)") = 0.0
    noise: tuple[float, ...] = ()
    warp: within("[0, 0.5)") = 0.0
    equalizer: NonNegativeFloat = 0.0
    time_masks: NonNegativeInt = 0
    time_width: PositiveInt = 10
    band_masks: NonNegativeInt = 0
    band_width: PositiveInt = 8

    def __post_init__(self):
        super().__post_init__()
        is_range = len(self.noise) in (0, 2) and list(self.noise) == sorted(self.noise)
        self.expect("noise", is_range, "smallest and largest decibels, or none")


def augment_samples(
    samples: Array, lengths: Array, keys: Array, config: SoundAugmentation
) -> tuple[Array, Array]:
    """Changes the speed and loudness of each example at random, and adds noise.

    Args:
      samples: [B, P].
      lengths: int [B], number of samples of each example.
      keys: random keys [B].
      config: changes to apply.

    Returns:
      Samples [B, P'] with P' = ceil(P / (1 - speed)), and the new lengths.
    """

    def one(x: Array, length: Array, key: Array) -> tuple[Array, Array]:
        fast, loud, signal, white = jax.random.split(key, 4)
        most = math.ceil(len(x) / (1 - config.speed))
        rate = jax.random.uniform(fast, minval=1 - config.speed, maxval=1 + config.speed)
        if config.speed:
            # Linear interpolation by index, because the search of jnp.interp costs more than the
            # network.
            positions = jnp.arange(most) * rate
            whole = jnp.floor(positions).astype(jnp.int32)
            padded = jnp.pad(x, (0, 1))
            left, right = (padded.at[whole + i].get(mode="fill", fill_value=0) for i in (0, 1))
            x = left + (positions - whole) * (right - left)
            length = jnp.minimum(jnp.ceil(length / rate).astype(length.dtype), most)
        if config.gain:
            x = x * 10 ** (jax.random.uniform(loud, minval=-config.gain, maxval=config.gain) / 20)
        if config.noise:
            least, largest = config.noise
            decibels = jax.random.uniform(signal, minval=least, maxval=largest)
            x = add_noise(x, length, decibels, white)
        return x, length

    return jax.vmap(one)(samples, lengths, keys)


def add_noise(samples: Array, length: Array, decibels: Array | float, key: Array) -> Array:
    """Adds white noise to a recording; silence stays silent.

    Args:
      samples: [P].
      length: number of samples before padding, which gets no noise.
      decibels: signal-to-noise ratio.
      key: random key.
    """
    real = jnp.arange(len(samples)) < length
    power = jnp.sum(jnp.where(real, jnp.square(samples), 0.0)) / jnp.maximum(length, 1)
    level = jnp.sqrt(power) * 10 ** (-decibels / 20)
    return samples + jnp.where(real, level * jax.random.normal(key, samples.shape), 0.0)


def perturb_bands(features: Array, keys: Array, config: SoundAugmentation) -> Array:
    """Changes vocal-tract length (VTLP) and channel response of each example at random.

        y[s, f] = x[s, a f] + e[f],      a in 1 ± warp, e linear between random knots

    Between bands, x is interpolated linearly; beyond the last band, it has the value of that band.

    Args:
      features: x, log energies, [B, S, F].
      keys: random keys [B].
      config: changes to apply.
    """

    def one(x: Array, key: Array) -> Array:
        tract, channel = jax.random.split(key)
        F = x.shape[-1]
        if config.warp:
            stretch = jax.random.uniform(tract, minval=1 - config.warp, maxval=1 + config.warp)
            bands = jnp.minimum(jnp.arange(F) * stretch, F - 1)
            low = jnp.minimum(bands.astype(jnp.int32), F - 2)
            x = x[:, low] + (bands - low) * (x[:, low + 1] - x[:, low])
        if config.equalizer:
            knots = config.equalizer * math.log(10) / 10 * jax.random.normal(channel, (_KNOTS,))
            x = x + jnp.interp(jnp.linspace(0, _KNOTS - 1, F), jnp.arange(_KNOTS), knots)
        return x

    return jax.vmap(one)(features, keys) if config.warp or config.equalizer else features


def spec_augment(features: Array, frames: Array, keys: Array, config: SoundAugmentation) -> Array:
    """Replaces random frames and bands by the example's mean (SpecAugment, Park et al. 2019).

    Args:
      features: [B, S, F].
      frames: int [B], number of frames of each example before padding.
      keys: random keys [B].
      config: number and widths of the masks.
    """
    if not (config.time_masks or config.band_masks):
        return features

    def stretch(key: Array, size: Array | int, length: int, width: int) -> Array:
        """Draws a random span of at most `width` entries among the first `size` entries.

        Returns:
          bool [length], True within the span.
        """
        begin, wide = jax.random.split(key)
        wide = jax.random.randint(wide, (), 0, width + 1)
        start = jax.random.randint(begin, (), 0, jnp.maximum(size - wide, 0) + 1)
        index = jnp.arange(length)
        return (index >= start) & (index < start + wide)

    def one(x: Array, size: Array, key: Array) -> Array:
        S, F = x.shape
        real = jnp.arange(S) < size
        mean = jnp.sum(x * real[:, None]) / jnp.maximum(size * F, 1)
        for number in range(config.time_masks + config.band_masks):
            mine = jax.random.fold_in(key, number)
            if number < config.time_masks:
                hidden = stretch(mine, size, S, config.time_width)[:, None]
            else:
                hidden = stretch(mine, F, F, config.band_width)[None]
            x = jnp.where(hidden & real[:, None], mean, x)
        return x

    return jax.vmap(one)(features, frames, keys)
