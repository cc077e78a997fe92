"""Losses of the next item: cross-entropy over all items, or gBCE with sampled negatives.

Petrov & Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
Negative Sampling". B rows, S places, I items, k negatives.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from tasks.common.losses import smoothed_cross_entropy
from tasks.recommendation.models.base import is_event, safe_ids, weighted_mean

Array = jax.Array
LOSSES = ("cross_entropy", "gbce")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the next item is learned.

    Attributes:
      name: "cross_entropy" over all items, or "gbce" against sampled ones, for many items.
      negatives: k, drawn anew for each row and step, of "gbce".
      calibration: t of "gbce", from 0, the plain binary cross-entropy, to 1, fully calibrated.
      label_smoothing: share of the target that is spread over all items, of "cross_entropy".
    """

    name: str = "cross_entropy"
    negatives: int = 256
    calibration: float = 0.75
    label_smoothing: float = 0.0

    def __post_init__(self):
        if self.name not in LOSSES:
            expected = ", ".join(map(repr, LOSSES))
            raise ValueError(f"name: got {self.name!r}, expected one of {expected}")
        if self.negatives < 1:
            raise ValueError(f"negatives: got {self.negatives}, expected at least 1")
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration: got {self.calibration}, expected a number in [0, 1]")
        if not 0 <= self.label_smoothing < 1:
            got = self.label_smoothing
            raise ValueError(f"label_smoothing: got {got}, expected a rate in [0, 1)")


def cross_entropy(logits: Array, targets: Array, label_smoothing: float = 0.0) -> Array:
    """-log softmax(logits)[target]; with smoothing ε the target is 1 - ε and ε/I for all items.

    Args:
      logits: [..., I].
      targets: int [...]; -1 where there is none.
      label_smoothing: ε.

    Returns:
      [...]; 0 where there is no target.
    """
    losses, _ = smoothed_cross_entropy(logits, safe_ids(targets), label_smoothing)
    return jnp.where(is_event(targets), losses, 0)


def gbce(positive: Array, negatives: Array, num_items: int, calibration: float) -> Array:
    """Generalised binary cross-entropy (Petrov & Macdonald 2023, equations 8 and 12).

        L = -(log σ(s⁺)^β + Σ_k log(1 - σ(s⁻_k))) / (k + 1),
        β = α (t (1 - 1/α) + 1/α),   α = k / (I - 1)

    With few negatives a model learns probabilities that are too high; β < 1 takes that back, at
    t = 1 entirely.

    Args:
      positive: s⁺, logits [...].
      negatives: s⁻, [..., k].
      num_items: I.
      calibration: t.

    Returns:
      L, [...].
    """
    k = negatives.shape[-1]
    alpha = k / max(num_items - 1, 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    wrong = jnp.sum(jax.nn.softplus(negatives), axis=-1)
    return (beta * jax.nn.softplus(-positive) + wrong) / (k + 1)


def sample_negatives(key: Array, targets: Array, num_items: int, count: int) -> Array:
    """Items drawn evenly from all but, for each place, its target.

    Args:
      key: of `jax.random`.
      targets: int [B, S].
      num_items: I.
      count: k.

    Returns:
      int32 [B, k], one draw for all places of a row; and bool [B, S, k], False where the drawn is
      the place's target.
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
    """The mean loss of places whose scores are hidden·E + b.

    Args:
      config: which loss.
      hidden: [B, S, D].
      table: E, [I, D].
      targets: int [B, S]; -1 where there is none.
      weight: [B] of the rows.
      key: of the negatives.
      bias: b, [I]; 0 if None.

    Returns:
      float32 []: the mean over all targets, each by its row's weight.
    """
    counted = is_event(targets) * weight[:, None]
    if config.name == "cross_entropy":
        logits = jnp.einsum("BSD,ID->BSI", hidden, table, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        return weighted_mean(cross_entropy(logits, targets, config.label_smoothing), counted)
    num_items, rows = len(table), safe_ids(targets)
    drawn, different = sample_negatives(key, targets, num_items, config.negatives)
    positive = jnp.sum(hidden * table[rows], axis=-1)
    negatives = jnp.einsum("BSD,BKD->BSK", hidden, table[drawn])
    if bias is not None:
        positive, negatives = positive + bias[rows], negatives + bias[drawn][:, None]
    # A negative that is the target counts for nothing: its softplus is 0.
    negatives = jnp.where(different, negatives, -jnp.inf)
    return weighted_mean(gbce(positive, negatives, num_items, config.calibration), counted)
