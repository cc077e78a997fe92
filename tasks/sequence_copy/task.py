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
from tasks.common.paths import Paths
from tasks.figures import Alignment, Figure
from tasks.sequence_copy import data as strings
from tasks.sequence_copy.data import PAD, DataConfig, DigitStrings
from tasks.sequence_copy.model import MODEL_CONFIGS, EncoderDecoder, EncoderDecoderConfig
from tasks.task import Task


class SequenceCopy(Task):
    """A string of digits -> the same, backwards."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "exact_match"
    table_metrics = ("exact_match", "token_accuracy")
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
    def fingerprint(self) -> str:
        """Of the strings and their splits."""
        return strings.fingerprint(self._splits)

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> DigitStrings:
        """See `Task.examples`."""
        return self._splits[split]

    @property
    def buckets(self) -> Sequence[int]:
        """Two lengths, so that short strings are not padded to the longest; with the end sign."""
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
        """Tokens [B, T] of greedy decoding, with the end sign, padded with 0."""
        source = batch["source"]
        return {"tokens": model.generate(source, batch["length"], source.shape[1])[0]}

    def attention(
        self, model: EncoderDecoder, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Weights of each step of greedy decoding over the source, [B, T, S]."""
        source = batch["source"]
        return {"alignment": model.generate(source, batch["length"], source.shape[1])[1]}

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """Of greedy decoding: `exact_match` and `token_accuracy`; under teacher forcing: `loss`
        and `forced_accuracy`.
        """
        tokens = float(statistics["tokens"])
        return {
            **match(outputs["tokens"], self._splits[split]),
            "forced_accuracy": float(statistics["right"]) / tokens,
            "loss": float(statistics["loss"]) / tokens,
        }

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """1 where every token is right, the end sign included."""
        right = outputs["tokens"] == _targets(outputs["tokens"], self._splits[split])
        return right.all(axis=1).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """What the first strings' decoding looked at."""
        drawn: list[Figure] = []
        for index, weights in enumerate(attention["alignment"]):
            source = self._splits[split].strings[index]
            tokens = outputs["tokens"][index]
            written = strings.decode(tokens)
            # The step that wrote the end sign is shown; those after it wrote nothing.
            steps = int(np.sum(tokens != PAD))
            verdict = "right" if written == source[::-1] else "wrong"
            drawn.append(
                Alignment(
                    f"{source} -> {written} ({verdict})",
                    weights[:steps, : len(source)],
                    [*written, *["end"] * (steps - len(written))],
                    list(source),
                )
            )
        return drawn

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """The string as it stands, and the right length of the commonest digit."""
        return {"unreversed": self._unreversed, "commonest_digit": self._commonest_digit}

    def _unreversed(self) -> dict[str, float]:
        return self._score(lambda string: string)

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
      `exact_match`, the share of examples with every token right, the end sign included; and
      `token_accuracy`, the share of the targets' positions that hold the right token.
    """
    target = _targets(tokens, examples)
    real, right = target != PAD, tokens == target
    return {
        "exact_match": float(right.all(axis=1).mean()),
        "token_accuracy": float(right[real].mean()),
    }


def _targets(tokens: np.ndarray, examples: DigitStrings) -> np.ndarray:
    """What the tokens should have been, as wide as they are."""
    return strings.tokens_of([string[::-1] for string in examples.strings], tokens.shape[1])


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
