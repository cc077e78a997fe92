"""Interface of explainers, which measure how a prediction depends on the positions of its input.

A position is a token, a patch of an image, a frame, a time step or an item of a history. An
`Explainer` fades each position towards a replacement, such as a mask token or a blurred image, by
a gate in [0, 1]: 1 keeps the position, 0 replaces it. It computes a score of the prediction, such
as the log-odds of the class, as a function of the gates. Attributions measure how the score changes
with the gates: by gradients, occlusion, and deletion and insertion curves. An `Explainer` also
returns the attention weights between positions and output, and the texts and images that the pages
of explanations show.

Symbols in shapes: G is the number of rows of gates, U the number of positions of the padded input,
B the number of rows of a batch, C the number of classes, T the number of states of a layer or of
tokens of an output, V the vocabulary size, L the number of layers, and N the number of heads.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from tasks.common.losses import cross_entropy
from tasks.explanation import AttentionMap, Axis, Medium
from tasks.processor import Arrays


# With eq=False, subjects are compared and hashed by identity, because arrays cannot be hashed.
@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """An example whose prediction is explained.

    Attributes:
      inputs: inputs of the model, padded, with one row.
      outputs: outputs of `tasks.task.Task.predict`, with one row.
      attention: attention weights that `tasks.task.Task.attention` returns, without their batch
        dimension.
      raw: raw input, as for `tasks.processor.Processor.encode`; None for an example of a split.
      split, index: name of the split and index of the example in it; index is None for a raw input.
      notes: sentences for the reader about the part of the input that is explained.
    """

    inputs: Arrays
    outputs: Arrays
    attention: Arrays
    raw: str | None = None
    split: str = ""
    index: int | None = None
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class AttentionPath:
    """Attention weights along the path from the positions of the input to the output.

    Attributes:
      readout: weight with which the output attends to each state of the last layer, [T]. Without
        `layers`, the states are the positions themselves.
      layers: weights of self-attention, [L, N, T, T], first layer first; None if there are none.
      first: number of states before the state of the first position, such as 1 for a
        classification token.
    """

    readout: np.ndarray
    layers: np.ndarray | None = None
    first: int = 0


@dataclasses.dataclass(frozen=True)
class Description:
    """Input, output and attention weights of one example, shown on a page.

    Attributes:
      input, prediction: input and prediction as texts.
      explained: description of the score that is explained, in words.
      axis: name of the axis in `axes` whose entries are the positions that gates replace.
      axes, maps, medium, notes: see `tasks.explanation.Explanation`.
      target: true output as a text; None if unknown.
      confidence: probability of the prediction; None if there is none.
      correct: whether the prediction is right; None if this is unknown, or if predictions are
        neither right nor wrong.
    """

    input: str
    prediction: str
    explained: str
    axis: str
    axes: Mapping[str, Axis]
    maps: Sequence[AttentionMap] = ()
    medium: Medium | None = None
    target: str | None = None
    confidence: float | None = None
    correct: bool | None = None
    notes: Sequence[str] = ()


class Explainer(abc.ABC):
    """Base class of the explainers of tasks.

    Class attributes:
      replacement: name of the replacement of a position, such as "a blurred copy".
      differentiable: whether `score` has useful gradients with respect to gates; if not, `score` is
        called only with gates of 0 and 1.
      signed: whether a negative attribution is evidence against the prediction. If not, such as for
        the value of a forecast, positions are ranked by the absolute value of their attribution.
      quantity: name of the quantity that `measure` returns.

    Attributes:
      task: the task, with or without its data.
    """

    replacement: str
    quantity: ClassVar[str] = "probability of the prediction"
    differentiable: ClassVar[bool] = True
    signed: ClassVar[bool] = True

    def __init__(self, task: Any):
        """Initializes the explainer of a task."""
        self.task = task

    def raw(self, split: str, index: int) -> str | None:
        """Returns the raw input of an example whose arrays cannot be passed to `predict`.

        The default, None, means that the arrays of the example are inputs of `predict`.

        Args:
          split: name of the split.
          index: index of the example in the split.
        """
        return None

    @abc.abstractmethod
    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns arrays that identify the prediction whose score is computed.

        Args:
          outputs: outputs of `tasks.task.Task.predict`, with one row.
        """

    @abc.abstractmethod
    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns which entries of the padded input are positions.

        Args:
          inputs: inputs of the model, with one row.

        Returns:
          bool [U], False for padding. U may depend only on the shapes of the inputs.
        """

    @abc.abstractmethod
    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the score of a prediction for each row of gates; runs under `jax.jit`.

        Args:
          model: model of the task; this method may modify it.
          inputs: inputs of the model, with one row.
          gates: g, [G, U] in [0, 1]. For score i, position u is replaced by the mixture
            g[i, u] · position + (1 - g[i, u]) · replacement.
          target: arrays returned by `target`.

        Returns:
          Scores, [G].
        """

    def measure(self, scores: np.ndarray, whole: float) -> np.ndarray:
        """Converts scores to the quantity that deletion and insertion curves show.

        By default the scores are log-odds, which are converted to probabilities.

        Args:
          scores: scores at p points of a curve, [p].
          whole: score of the input without replacements.

        Returns:
          The quantity at each point, [p].
        """
        return 1 / (1 + np.exp(-np.clip(scores, -60, 60)))

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention weights between the positions of the input and the output.

        The result is None for a model without attention.
        """
        return None

    @abc.abstractmethod
    def describe(self, subject: Subject) -> Description:
        """Returns the description of an example: its input, output and attention weights."""


def repeated(array: Any, gates: Any) -> Any:
    """Broadcasts an array with one row, [1, ...], to as many rows as there are gates, [G, ...]."""
    return jnp.broadcast_to(array, (gates.shape[0], *array.shape[1:]))


def log_odds(logits: Any, classes: Any) -> Any:
    """Computes the log-odds of classes, log p / (1 - p) with p = softmax(logits).

    Log-odds are linear in the logit of the class, so that gradients do not vanish for p near 1.

    Args:
      logits: [B, C].
      classes: int [B] or [1].

    Returns:
      [B] in at least float32.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = jnp.arange(logits.shape[-1]) == jnp.broadcast_to(classes, logits.shape[:1])[:, None]
    own = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    others = jnp.where(chosen, -jnp.inf, logits)
    largest = jnp.max(others, axis=-1, keepdims=True)
    rest = jnp.log(jnp.sum(jnp.exp(others - largest), axis=-1)) + largest[:, 0]
    return own - rest


class SequenceExplainer(Explainer):
    """Base class of explainers of decoded sequences.

    The score of a sequence is the mean log-probability of its tokens.
    """

    quantity = "probability per token (geometric mean)"

    def measure(self, scores: np.ndarray, whole: float) -> np.ndarray:
        """Converts mean log-probabilities to geometric means of the probabilities of the tokens."""
        return np.exp(np.minimum(scores, 0))


def mean_log_probability(logits: Any, tokens: Any, counted: Any) -> Any:
    """Computes the mean log-probability of tokens under softmax(logits).

    Args:
      logits: [B, T, V].
      tokens: int [B, T].
      counted: bool [B, T], True for tokens that are included in the mean.

    Returns:
      The mean for each row, [B]; 0 for a row without such tokens.
    """
    found = jnp.where(counted, -cross_entropy(logits, jnp.where(counted, tokens, 0)), 0)
    return jnp.sum(found, axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)


def truncated(tokenizer: Any, text: str, limit: int) -> list[str]:
    """Returns a note for the reader if the model reads only the first tokens of a text.

    Args:
      tokenizer: `tasks.common.text.tokenizer.Tokenizer`.
      text: the text.
      limit: largest number of tokens that the model reads.

    Returns:
      A list with the note; an empty list if the model reads the whole text.
    """
    whole = int(tokenizer.encode_counted([text])[1][0])
    if whole <= limit:
        return []
    return [f"The model reads the first {limit:,} of {whole:,} tokens; the rest has no effect."]


def spans(edges: np.ndarray, width: float) -> np.ndarray:
    """Returns the areas of n adjacent vertical strips of a medium, from left to right.

    Args:
      edges: left edge of each strip, and the right edge of the last one, ascending, [n + 1].
      width: width of the medium in the unit of the edges.

    Returns:
      Corners x1, y1, x2, y2 of each strip as fractions of width and height, [n, 4]; see
      `explanation.Axis.areas`.
    """
    edges = np.asarray(edges) / max(width, 1)
    zeros = np.zeros(len(edges) - 1)
    return np.stack([edges[:-1], zeros, edges[1:], zeros + 1], axis=1)
