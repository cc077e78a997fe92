"""Sequence copy by the task contract: an output for each example, of a length of its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tasks.common.backbones.recurrent import SHARDING_RULES
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.figures import Alignment, Curves, Figure
from tasks.sequence_copy import data as strings
from tasks.sequence_copy.data import PAD, DataConfig, DigitStrings
from tasks.sequence_copy.model import MODEL_CONFIGS, EncoderDecoder, EncoderDecoderConfig
from tasks.task import OldTask


class SequenceCopy(OldTask):
    """A string of digits -> the same, backwards or once more."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "exact_match"
    table_metrics = (
        "exact_match",
        "exact_match_4_8",
        "exact_match_9_12",
        "exact_match_13_16",
        "exact_match_17_20",
        "exact_match_20",
        "token_accuracy",
        "alignment_accuracy",
    )
    sharding_rules = SHARDING_RULES

    def __init__(
        self,
        data: DataConfig,
        model: EncoderDecoderConfig,
        splits: Mapping[str, DigitStrings] | None = None,
    ):
        """Args: data and model config; the splits, None where only predicting."""
        self._data, self._model, self._splits = data, model, splits

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: EncoderDecoderConfig, paths: Paths) -> SequenceCopy:
        """See `Task.prepare`; the strings are made anew each time, in a second."""
        return cls(data, model, strings.generate(data))

    @classmethod
    def restore(
        cls, data: DataConfig, model: EncoderDecoderConfig, assets: Mapping[str, Any]
    ) -> SequenceCopy:
        """See `Task.restore`; nothing was fitted."""
        return cls(data, model)

    def assets(self) -> dict[str, Any]:
        """Nothing: the words are the ten digits."""
        return {}

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the strings of each split."""
        return {f"{split} strings": digests.of_rows(part.strings)
                for split, part in self._splits.items()}  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Of the strings and their splits."""
        return strings.fingerprint(self._splits)

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> DigitStrings:
        """See `Task.examples`."""
        return self._splits[split]

    @property
    def buckets(self) -> Sequence[int]:
        """Two lengths, so that short strings are not padded to the longest; with the end token."""
        shortest, longest = self._data.min_length + 1, self._data.max_length + 1
        return sorted({(shortest + longest) // 2, longest})

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: nnx.Rngs) -> EncoderDecoder:
        """See `Task.build_model`."""
        return EncoderDecoder(self._model, rngs=rngs)

    def loss(
        self, model: EncoderDecoder, batch: Mapping[str, jax.Array], dropout_key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of a token under teacher forcing, and the share of tokens it has right."""
        losses, right, weight = _by_token(model, batch, dropout_key)
        tokens = jnp.maximum(jnp.sum(weight), 1)
        return jnp.sum(losses) / tokens, {"forced_accuracy": jnp.sum(right) / tokens}

    def batch_statistics(
        self, model: EncoderDecoder, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Summed cross-entropy, tokens that are right, and number of tokens; teacher forcing."""
        losses, right, weight = _by_token(model, batch, None)
        return {"loss": jnp.sum(losses), "right": jnp.sum(right), "tokens": jnp.sum(weight)}

    def outputs(
        self, model: EncoderDecoder, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Of greedy decoding: tokens [B, T], with the end token, padded with 0; and, where there is
        attention, `looked` [B, T]: 1 + the position with the largest weight (in the mean of the
        heads), 0 where nothing was written.
        """
        source = batch["source"]
        tokens, weights = model.generate(source, batch["length"], source.shape[1])
        if not self._model.aligns:
            return {"tokens": tokens}
        weights = weights if weights.ndim == 3 else jnp.mean(weights, axis=2)
        return {"tokens": tokens, "looked": jnp.where(tokens == PAD, 0, 1 + weights.argmax(-1))}

    def attention(
        self, model: EncoderDecoder, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Weights of each step of greedy decoding over the source, [B, T, S] or [B, T, N, S]; none
        for a decoder that reads one fixed vector.
        """
        if not self._model.aligns:
            return {}
        source = batch["source"]
        return {"alignment": model.generate(source, batch["length"], source.shape[1])[1]}

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """Of greedy decoding: see `match` and, where there is attention, `alignment_accuracy`;
        under teacher forcing: `loss` and `forced_accuracy`.
        """
        tokens, examples = float(statistics["tokens"]), self._splits[split]
        aligned = {}
        if "looked" in outputs:
            aligned["alignment_accuracy"] = alignment_accuracy(outputs["looked"], examples)
        return {
            **match(outputs["tokens"], examples),
            **aligned,
            "forced_accuracy": float(statistics["right"]) / tokens,
            "loss": float(statistics["loss"]) / tokens,
        }

    def example_ids(self, split: str) -> np.ndarray:
        """Of the strings and what is to be written."""
        part = self._splits[split]
        return digests.ids(part.strings, part.answers)

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """1 where every token is right, the end token included."""
        return _exact(outputs["tokens"], self._splits[split]).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """Exact match by length, and what the first strings' decoding looked at, head by head."""
        examples = self._splits[split]
        drawn: list[Figure] = [_by_length(outputs["tokens"], examples)]
        for index, weights in enumerate(attention.get("alignment", ())):
            source, answer = examples.strings[index], examples.answers[index]
            tokens = outputs["tokens"][index]
            written = strings.decode(tokens)
            # The step that wrote the end token is shown; those after it wrote nothing.
            steps = int(np.sum(tokens != PAD))
            verdict = "right" if written == answer else "wrong"
            heads = [weights] if weights.ndim == 2 else np.swapaxes(weights, 0, 1)
            for n, head in enumerate(heads, 1):
                where = f", head {n}" if weights.ndim == 3 else ""
                drawn.append(
                    Alignment(
                        f"{source} -> {written} ({verdict}){where}",
                        head[:steps, : len(source)],
                        [*written, *["end"] * (steps - len(written))],
                        list(source),
                    )
                )
        return drawn

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """The string the wrong way round, and the right length of the commonest digit."""
        wrong_way = "unreversed" if self._data.name == "reversed_digits" else "reversed"
        return {wrong_way: self._wrong_way, "commonest_digit": self._commonest_digit}

    def _wrong_way(self) -> dict[str, float]:
        reverses = self._data.name == "reversed_digits"
        return self._score(lambda string: string if reverses else string[::-1])

    def _commonest_digit(self) -> dict[str, float]:
        digits = Counter("".join(self._splits["train"].strings))
        commonest = min(digits, key=lambda digit: (-digits[digit], digit))
        return self._score(lambda string: commonest * len(string))

    def _score(self, answer: Callable[[str], str]) -> dict[str, float]:
        began = time.monotonic()
        test = self._splits["test"]
        answers = [answer(string) for string in test.strings]
        metrics = match(strings.tokens_of(answers, int(test.lengths.max())), test)
        return {**metrics, "seconds": round(time.monotonic() - began, 2)}

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> DigitStrings:
        """Strings of digits, no longer than those of training."""
        return strings.read_strings(raw, self._data.max_length)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """What was written for each string."""
        return [
            {"input": source, "output": written, "text": written}
            for source, written in zip(raw, map(strings.decode, outputs["tokens"]), strict=True)
        ]


def match(tokens: np.ndarray, examples: DigitStrings) -> dict[str, float]:
    """How decoded tokens agree with the targets.

    Args:
      tokens: int [n, T], as wide as the longest target.
      examples: n of them.

    Returns:
      `exact_match`, the share of examples with every token right, the end token included; the same
      of each of four groups of lengths, shortest to longest, `exact_match_4_8` (4 to 8 digits) and
      so on, and of the greatest length alone, `exact_match_20`; and `token_accuracy`, the share of
      the targets' positions that hold the right token.
    """
    target = _targets(tokens, examples)
    real, exact, digits = target != PAD, _exact(tokens, examples), examples.lengths - 1
    found = {"exact_match": float(exact.mean())}
    for first, last in _groups(digits):
        name = f"{first}_{last}" if first < last else f"{first}"
        found[f"exact_match_{name}"] = float(exact[(digits >= first) & (digits <= last)].mean())
    return found | {"token_accuracy": float((tokens == target)[real].mean())}


def alignment_accuracy(looked: np.ndarray, examples: DigitStrings) -> float:
    """How often the decoder looks where the digit stands that it is to write.

    Args:
      looked: int [n, T], 1 + the position with the largest weight, 0 where nothing was written.
      examples: n of them.

    Returns:
      The share of steps that look at that position or one beside it. Every digit of a target is a
      step; one that was never written, because the end token came too early, counts as wrong. The
      end token stands nowhere in the source: its step does not count.
    """
    right, steps = 0, 0
    for row, string in zip(looked, examples.strings, strict=True):
        true = [strings.place(t, len(string), examples.name) for t in range(len(string))]
        near = np.abs(row[: len(string)] - 1 - np.array(true)) <= 1
        right += int(np.sum(near & (row[: len(string)] > 0)))
        steps += len(string)
    return right / steps


def _groups(digits: np.ndarray) -> list[tuple[int, int]]:
    """First and last length of at most four groups of those that occur, and the greatest alone."""
    parts = np.array_split(np.unique(digits), 4)
    groups = [(int(part[0]), int(part[-1])) for part in parts if len(part)]
    greatest = int(digits.max())
    return [*dict.fromkeys([*groups, (greatest, greatest)])]


def _by_length(tokens: np.ndarray, examples: DigitStrings) -> Curves:
    exact, digits = _exact(tokens, examples), examples.lengths - 1
    lengths = np.unique(digits)
    shares = [float(exact[digits == length].mean()) for length in lengths]
    return Curves("exact match", "digits", {examples.name: (lengths.tolist(), shares)})


def _exact(tokens: np.ndarray, examples: DigitStrings) -> np.ndarray:
    """bool [n]: every token is right, the end token included."""
    return (tokens == _targets(tokens, examples)).all(axis=1)


def _targets(tokens: np.ndarray, examples: DigitStrings) -> np.ndarray:
    """What the tokens should have been, as wide as they are."""
    return strings.tokens_of(examples.answers, tokens.shape[1])


def _by_token(
    model: EncoderDecoder, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted cross-entropy, weighted correctness and weight of every token: each [B, T]."""
    target = batch["target"]
    logits, _ = model(batch["source"], batch["length"], target, dropout_key=dropout_key)
    weight = jnp.where(target == PAD, 0, batch["weight"][:, None])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    right = jnp.argmax(logits, axis=-1) == target
    return losses * weight, right * weight, weight


TASK = SequenceCopy
