"""Losses of the next item: cross-entropy over all items, or gBCE with sampled negatives.

Petrov & Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
Negative Sampling".

In shapes, B is the number of rows, S the number of positions, I the number of items, D the model
size, and k the number of negatives.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from attention.sharding import constrain
from tasks.common.configs import Config, PositiveInt, Rate, one_of, within
from tasks.common.losses import smoothed_cross_entropy
from tasks.recommendation.models.base import is_event, safe_ids, weighted_mean

Array = jax.Array
LOSSES = ("cross_entropy", "gbce")


@dataclasses.dataclass(frozen=True)
class LossConfig(Config):
    """Config of the loss of the next item.

    Attributes:
      name: "cross_entropy" over all items, or "gbce" against sampled items, for many items.
      negatives: k, number of negatives that "gbce" samples for each row and step.
      calibration: t of "gbce", from 0 (plain binary cross-entropy) to 1 (fully calibrated).
      label_smoothing: label smoothing ε of "cross_entropy".
    """

    name: one_of(*LOSSES) = "cross_entropy"
    negatives: PositiveInt = 256
    calibration: within("[0, 1]") = 0.75
    label_smoothing: Rate = 0.0


def gbce(positive: Array, negatives: Array, num_items: int, calibration: float) -> Array:
    """Computes the generalized binary cross-entropy (Petrov & Macdonald 2023, equations 8 and 12).

        L = -(log σ(s⁺)^β + Σ_k log(1 - σ(s⁻_k))) / (k + 1),
        β = α (t (1 - 1/α) + 1/α),   α = k / (I - 1)

    With few negatives a model overestimates probabilities. β < 1 reduces this bias, and t = 1
    removes it.

    Args:
      positive: s⁺, logits of the positives, [...].
      negatives: s⁻, logits of the negatives, [..., k].
      num_items: I, number of items.
      calibration: t, degree of calibration, in [0, 1].

    Returns:
      L, [...].
    """
    k = negatives.shape[-1]
    alpha = k / max(num_items - 1, 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    wrong = jnp.sum(jax.nn.softplus(negatives), axis=-1)
    return (beta * jax.nn.softplus(-positive) + wrong) / (k + 1)


def sample_negatives(key: Array, targets: Array, num_items: int, count: int) -> Array:
    """Samples negatives uniformly, and marks negatives that are targets.

    Args:
      key: random key of `jax.random`.
      targets: target items, int [B, S].
      num_items: I, number of items.
      count: k, number of negatives.

    Returns:
      int32 [B, k], shared by all positions of a row; and bool [B, S, k], False if a negative is
      the target of the position.
    """
    drawn = jax.random.randint(key, (len(targets), count), 0, num_items, jnp.int32)
    return drawn, drawn[:, None] != targets[:, :, None]


def next_item_loss(
    config: LossConfig,
    hidden: Array,
    table: Array,
    targets: Array,
    weight: Array,
    key: Array,
    bias: Array | None = None,
) -> Array:
    """Computes the mean loss of the next items from the logits h Eᵀ + b of hidden states h.

    Args:
      config: config of the loss.
      hidden: hidden states h, [B, S, D].
      table: item embeddings E, [I, D].
      targets: target items, int [B, S]; -1 for positions without a target.
      weight: weights of the rows, [B].
      key: random key of the negatives.
      bias: biases b of the items, [I]; None for 0.

    Returns:
      float32 [], the mean over all targets; each has the weight of its row.
    """
    counted, rows = is_event(targets) * weight[:, None], safe_ids(targets)
    hidden = constrain(hidden, "B S D")
    if config.name == "cross_entropy":
        table = constrain(table, "V D")
        logits = jnp.einsum("BSD,ID->BSI", hidden, table, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        losses, _ = smoothed_cross_entropy(logits, rows, config.label_smoothing)
        return weighted_mean(losses, counted)
    num_items, table = len(table), constrain(table, "I D")
    drawn, different = sample_negatives(key, targets, num_items, config.negatives)
    positive = jnp.sum(hidden * table[rows], axis=-1)
    negatives = jnp.einsum("BSD,BKD->BSK", hidden, table[drawn])
    if bias is not None:
        positive, negatives = positive + bias[rows], negatives + bias[drawn][:, None]
    # A negative that is the target does not contribute, because its softplus is 0.
    negatives = jnp.where(different, negatives, -jnp.inf)
    return weighted_mean(gbce(positive, negatives, num_items, config.calibration), counted)
