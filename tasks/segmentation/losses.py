"""Losses of segmentation: cross-entropy, Dice and focal loss, and weighted sums of them.

B batch, Y X height and width, K classes. Index i runs over the pixels for which `counted` is True:
those that are neither void nor in padding rows. p_i are the class probabilities softmax(logits).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common import losses
from tasks.common.configs import Config, NonNegativeFloat

Array = jax.Array

NONE, MEDIAN_FREQUENCY = "none", "median_frequency"


@dataclasses.dataclass(frozen=True)
class LossConfig(Config):
    """Config of a weighted sum of losses.

    Attributes:
      cross_entropy: weight of `cross_entropy`.
      dice: weight of `dice_loss`.
      focal: weight of `focal_loss`.
      focal_gamma: exponent of the focal loss.
      class_weights: class weights of cross-entropy and focal loss: "none", "median_frequency" (see
        `median_frequency`), or comma-separated numbers, one for each class.
    """

    cross_entropy: NonNegativeFloat = 1.0
    dice: NonNegativeFloat = 0.0
    focal: NonNegativeFloat = 0.0
    focal_gamma: NonNegativeFloat = 2.0
    class_weights: str = NONE

    def __post_init__(self):
        super().__post_init__()
        some = self.cross_entropy + self.dice + self.focal > 0
        self.expect("cross_entropy", some, "one of cross_entropy, dice and focal above 0")
        if self.class_weights not in (NONE, MEDIAN_FREQUENCY):
            self._numbers()

    def _numbers(self) -> list[float]:
        expected = f"{NONE!r}, {MEDIAN_FREQUENCY!r} or comma-separated positive numbers"
        try:
            numbers = [float(part) for part in self.class_weights.split(",")]
        except ValueError:
            numbers = []
        valid = numbers and all(0 < number < float("inf") for number in numbers)
        self.expect("class_weights", valid, expected)
        return numbers

    def weights(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Returns the weights of the classes, float32 [K].

        Args:
          labels: integers [n, Y, X] of the training split; those not in [0, K) are void.
          classes: K, number of classes.

        Raises:
          ValueError: the number of comma-separated weights differs from K.
        """
        if self.class_weights == NONE:
            return np.ones(classes, np.float32)
        if self.class_weights == MEDIAN_FREQUENCY:
            return median_frequency(labels, classes)
        numbers = self._numbers()
        if len(numbers) != classes:
            raise ValueError(
                f"class_weights: got {len(numbers)} numbers, expected {classes}, one for each class"
            )
        return np.array(numbers, np.float32)


def median_frequency(labels: np.ndarray, classes: int) -> np.ndarray:
    """Computes median frequency balancing (Eigen & Fergus 2015).

        w_k = median(f) / f_k,   f_k = pixels of k / pixels of the images in which k occurs

    Args:
      labels: integers [n, Y, X]; those not in [0, K) are void.
      classes: K, number of classes.

    Returns:
      float32 [K]; 1 for a class that never occurs.
    """
    counts = np.stack([np.bincount(image.ravel(), minlength=256) for image in labels])
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
    """Computes the weighted sum of losses, a scalar.

    Args:
      config: config of the losses and their weights.
      logits, labels, counted, class_weights: as for `cross_entropy`.
    """
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
    """Computes cross-entropy, weighted by class.

        L = - Σ_i w_(y_i) log p_i(y_i) / Σ_i w_(y_i)

    Args:
      logits: class logits, [B, Y, X, K].
      labels: true classes y, integers [B, Y, X]; arbitrary at pixels that are not counted.
      counted: bool [B, Y, X], True for pixels that contribute to the loss.
      class_weights: weights w of the classes, [K].

    Returns:
      Scalar loss L; 0 if no pixel is counted.
    """
    return focal_loss(logits, labels, counted, class_weights, 0.0)


def focal_loss(
    logits: Array, labels: Array, counted: Array, class_weights: Array, gamma: float
) -> Array:
    """Computes the focal loss, which down-weights easy pixels (Lin et al. 2017).

        L = - Σ_i w_(y_i) (1 - p_i(y_i))^γ log p_i(y_i) / Σ_i w_(y_i)

    Args:
      logits, labels, counted, class_weights: as for `cross_entropy`.
      gamma: exponent γ, at least 0.

    Returns:
      Scalar loss L; 0 if no pixel is counted.
    """
    labels = jnp.where(counted, labels, 0).astype(jnp.int32)
    entropy = losses.cross_entropy(logits, labels)
    weight = jnp.where(counted, jnp.asarray(class_weights)[labels], 0)
    # Bounded below, because (1 - p)^γ with γ < 1 has no finite gradient at p = 1.
    missing = jnp.maximum(-jnp.expm1(-entropy), 1e-6)
    modulated = entropy * (missing**gamma if gamma else 1.0)
    return jnp.sum(modulated * weight) / jnp.maximum(jnp.sum(weight), 1e-6)


def dice_loss(logits: Array, labels: Array, counted: Array) -> Array:
    """Computes the soft Dice loss over the batch (Milletari et al. 2016, but without squares).

        L = 1 - mean_k 2 Σ_i p_ik y_ik / (Σ_i p_ik + Σ_i y_ik)

    k runs over the classes that occur in the labels of the batch; y_ik is 1 if pixel i has class k,
    else 0.

    Args:
      logits, labels, counted: as for `cross_entropy`.

    Returns:
      Scalar loss L; 0 if no pixel is counted.
    """
    labels = jnp.where(counted, labels, 0).astype(jnp.int32)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32) * counted[..., None]
    p = jax.nn.softmax(logits.astype(jnp.float32)) * counted[..., None]
    axes = (0, 1, 2)
    counts = jnp.sum(true, axis=axes)
    dice = 2 * jnp.sum(p * true, axis=axes) / jnp.maximum(jnp.sum(p, axis=axes) + counts, 1e-6)
    occurring = counts > 0
    return jnp.sum(jnp.where(occurring, 1 - dice, 0)) / jnp.maximum(jnp.sum(occurring), 1)
