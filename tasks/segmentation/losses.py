"""Losses of segmentation: cross-entropy, Dice and focal loss, and weighted sums of them.

B batch, Y X height and width, K classes. `counted` says which pixels there are: void ones and
those of padding rows are no part of anything.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

NONE, MEDIAN_FREQUENCY = "none", "median_frequency"


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """A sum of losses.

    Attributes:
      cross_entropy: factor of `cross_entropy`.
      dice: factor of `dice_loss`.
      focal: factor of `focal_loss`.
      focal_gamma: exponent of the focal loss.
      class_weights: of cross-entropy and focal loss: "none"; "median_frequency", see
        `median_frequency`; or a number for each class with commas between.
    """

    cross_entropy: float = 1.0
    dice: float = 0.0
    focal: float = 0.0
    focal_gamma: float = 2.0
    class_weights: str = NONE

    def __post_init__(self):
        factors = ("cross_entropy", "dice", "focal", "focal_gamma")
        for name in factors:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")
        if not self.cross_entropy + self.dice + self.focal:
            raise ValueError("cross_entropy: got 0 as of all losses, expected one above 0")
        if self.class_weights not in (NONE, MEDIAN_FREQUENCY):
            self._numbers()

    def _numbers(self) -> list[float]:
        expected = f"{NONE!r}, {MEDIAN_FREQUENCY!r} or positive numbers with commas between"
        try:
            numbers = [float(part) for part in self.class_weights.split(",")]
        except ValueError:
            numbers = []
        if not numbers or not all(0 < number < float("inf") for number in numbers):
            raise ValueError(f"class_weights: got {self.class_weights!r}, expected {expected}")
        return numbers

    def weights(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """The weight of each class, float32 [K].

        Args:
          labels: integers [n, Y, X] of the train split; what is not in [0, K) is void.
          classes: K.

        Raises:
          ValueError: numbers are given, but not one for each class.
        """
        if self.class_weights == NONE:
            return np.ones(classes, np.float32)
        if self.class_weights == MEDIAN_FREQUENCY:
            return median_frequency(labels, classes)
        numbers = self._numbers()
        if len(numbers) != classes:
            raise ValueError(f"class_weights: got {len(numbers)} numbers, expected {classes}")
        return np.array(numbers, np.float32)


def median_frequency(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights that make rare classes count more (Eigen & Fergus 2015).

        w_k = median(f) / f_k,   f_k = pixels of k / pixels of the pictures in which k occurs

    Args:
      labels: integers [n, Y, X]; what is not in [0, K) is void and no pixel.
      classes: K.

    Returns:
      float32 [K]; 1 for a class that never occurs.
    """
    counts = np.stack([np.bincount(picture.ravel(), minlength=256) for picture in labels])
    counts = counts[:, :classes].astype(np.float64)
    pixels = counts.sum(axis=1, keepdims=True)
    where = np.sum(pixels * (counts > 0), axis=0)
    frequency = counts.sum(axis=0) / np.maximum(where, 1)
    occurring = frequency > 0
    median = np.median(frequency[occurring]) if occurring.any() else 1.0
    return np.where(occurring, median / np.where(occurring, frequency, 1), 1).astype(np.float32)


def total_loss(
    config: LossConfig, logits: Array, labels: Array, counted: Array, class_weights: Array
) -> Array:
    """The sum that a config asks for, []; see the losses for the arguments."""
    loss = jnp.zeros((), jnp.float32)
    if config.cross_entropy:
        loss += config.cross_entropy * cross_entropy(logits, labels, counted, class_weights)
    if config.dice:
        loss += config.dice * dice_loss(logits, labels, counted)
    if config.focal:
        gamma = config.focal_gamma
        loss += config.focal * focal_loss(logits, labels, counted, class_weights, gamma)
    return loss


def cross_entropy(logits: Array, labels: Array, counted: Array, class_weights: Array) -> Array:
    """The mean of -log p of the true class, by the weight of that class.

        L = - Σ_i w_(y_i) log p_i(y_i) / Σ_i w_(y_i)

    Args:
      logits: [B, Y, X, K].
      labels: y, integers [B, Y, X]; any value where not counted.
      counted: bool [B, Y, X].
      class_weights: w, [K].

    Returns:
      L, []; 0 where nothing counts.
    """
    return focal_loss(logits, labels, counted, class_weights, 0.0)


def focal_loss(
    logits: Array, labels: Array, counted: Array, class_weights: Array, gamma: float
) -> Array:
    """Cross-entropy that lets go of what is right already (Lin et al. 2017).

        L = - Σ_i w_(y_i) (1 - p_i(y_i))^γ log p_i(y_i) / Σ_i w_(y_i)

    Args:
      logits, labels, counted, class_weights: as for `cross_entropy`.
      gamma: γ, at least 0.

    Returns:
      L, []; 0 where nothing counts.
    """
    labels = jnp.where(counted, labels, 0).astype(jnp.int32)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    # A product with one-hot rows, for the gradient of a gather is slow on a CPU.
    log_p = jnp.sum(jax.nn.log_softmax(logits.astype(jnp.float32)) * true, axis=-1)
    weight = jnp.where(counted, true @ class_weights, 0)
    # 1 - p, whose logarithm and so whose power have a finite slope nowhere at p = 1.
    missing = jnp.maximum(-jnp.expm1(log_p), 1e-6)
    losses = -log_p * (missing**gamma if gamma else 1.0)
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1e-6)


def dice_loss(logits: Array, labels: Array, counted: Array) -> Array:
    """1 - the soft Dice coefficient (Milletari et al. 2016, without their squares), over the batch.

        L = 1 - mean_k 2 Σ_i p_ik y_ik / (Σ_i p_ik + Σ_i y_ik)

    where k goes over the classes that occur in the batch.

    Args:
      logits, labels, counted: as for `cross_entropy`.

    Returns:
      L, []; 0 where nothing counts.
    """
    labels = jnp.where(counted, labels, 0).astype(jnp.int32)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32) * counted[..., None]
    p = jax.nn.softmax(logits.astype(jnp.float32)) * counted[..., None]
    axes = (0, 1, 2)
    there = jnp.sum(true, axis=axes)
    both = 2 * jnp.sum(p * true, axis=axes) / jnp.maximum(jnp.sum(p, axis=axes) + there, 1e-6)
    occurring = there > 0
    return jnp.sum(jnp.where(occurring, 1 - both, 0)) / jnp.maximum(jnp.sum(occurring), 1)
