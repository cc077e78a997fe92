"""Sequence copy: a digit string is transduced to itself, unchanged or reversed.

B batch, S source length, T target length, N heads."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.recurrent import SHARDING_RULES
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.summary import excerpt
from tasks.common.decoding.generate import TokenDecoder
from tasks.common.losses import cross_entropy
from tasks.common.metrics.descriptions import fraction, lower
from tasks.figures import Alignment, Curves, Figure, SplitResults, Transcript
from tasks.sequence_copy import data as strings
from tasks.sequence_copy.data import PAD, DataConfig, DigitData, DigitStrings
from tasks.sequence_copy.explainer import CopyExplainer
from tasks.sequence_copy.model import MODEL_CONFIGS, EncoderDecoder
from tasks.task import (
    Arrays,
    ArraySpec,
    Axes,
    Batch,
    Columns,
    ExamplePrediction,
    ProcessingSteps,
    Processor,
    Task,
)


@dataclasses.dataclass(frozen=True)
class DigitProcessor(Processor):
    """Processor that converts strings of digits to ids and back; it has no fitted parts."""

    @property
    def buckets(self) -> Sequence[int]:
        """Two padded lengths (with the end token), so that short strings need little padding."""
        shortest, longest = self.data.min_length + 1, self.data.max_length + 1
        return sorted({(shortest + longest) // 2, longest})

    def encode(self, raw: Sequence[str]) -> DigitStrings:
        """Converts strings of at most `data.max_length` digits to examples without targets."""
        return strings.read_strings(raw, self.data.max_length)

    def decode(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns the decoded string of each input."""
        return [
            {"input": source, "output": decoded, "text": decoded}
            for source, decoded in zip(raw, map(strings.decode, outputs["tokens"]), strict=True)
        ]

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of "source" and "length"."""
        return {
            "source": ArraySpec(("batch", "length"), "int32", PAD),
            "length": ArraySpec(("batch",), "int32"),
        }

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which convert digits to ids and back."""
        limits = {"first": strings.FIRST_DIGIT, "limit": self.data.max_length}
        return ProcessingSteps(
            "text",
            [
                {"op": "digits", **limits, "to": "source"},
                {"op": "length", "of": "source", "to": "length"},
                # The output is as long as the padded source. An additional PAD makes room for the
                # end token.
                {"op": "append", "to": "source", "value": PAD},
            ],
            [{"op": "spell_digits", "first": strings.FIRST_DIGIT}],
        )


class SequenceCopy(Task):
    """Transduction of digit strings to the same strings, unchanged or reversed."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = DigitProcessor
    own_data = "its strings of digits are generated"
    baseline_version = 2
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
    metric_table: ClassVar = {
        "exact_match": fraction("strings with all tokens right"),
        r"exact_match_(\d+)_(\d+)": fraction("strings of {0} to {1} digits with all tokens right"),
        r"exact_match_(\d+)": fraction("strings of {0} digits with all tokens right"),
        "token_accuracy": fraction("right tokens of decoded strings"),
        "alignment_accuracy": fraction("steps that attend to the source digit or to a neighbor"),
        "forced_accuracy": fraction("right tokens under teacher forcing"),
        "loss": lower("cross-entropy under teacher forcing", "nats per token"),
    }
    sharding_rules = SHARDING_RULES
    decodes = True

    @classmethod
    def load(cls, data: DataConfig, paths: Paths) -> DigitData:
        """Generates the strings, which takes a second."""
        return DigitData(strings.generate(data))

    def columns(self, split: str) -> Columns:
        """Returns the strings for the data summary, with the target strings as labels."""
        part = self.examples(split)
        return Columns(
            len(part),
            lambda index: (part.strings[index], strings.answer(part.strings[index], part.name)),
            name=lambda index: excerpt(part.strings[index]),
            sizes={"digits": part.lengths - 1},
        )

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: nnx.Rngs) -> EncoderDecoder:
        """Returns the encoder-decoder."""
        return EncoderDecoder(self.model, rngs=rngs)

    def loss(
        self, model: EncoderDecoder, batch: Batch, dropout_key: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Computes cross-entropy and accuracy per token under teacher forcing."""
        losses, correct, weight = _by_token(model, batch, dropout_key)
        tokens = jnp.maximum(jnp.sum(weight), 1)
        return jnp.sum(losses) / tokens, {"forced_accuracy": jnp.sum(correct) / tokens}

    def evaluate(self, model: EncoderDecoder, batch: Batch) -> tuple[dict, dict]:
        """Sums cross-entropy, and counts correct tokens and all tokens, under teacher forcing."""
        losses, correct, weight = _by_token(model, batch, None)
        sums = {"loss": jnp.sum(losses), "right": jnp.sum(correct), "tokens": jnp.sum(weight)}
        return sums, {}

    def predict(
        self, model: EncoderDecoder, inputs: Batch, *, fast: bool = False
    ) -> dict[str, jax.Array]:
        """Decodes greedily.

        Returns:
          "tokens" [B, T], with the end token, padded with 0. With attention also "looked" [B, T]: 1
          + the source position with the largest mean attention weight of the heads; 0 for padding.
        """
        source = inputs["source"]
        tokens, weights = model.generate(source, inputs["length"], source.shape[1])
        if not self.model.aligns:
            return {"tokens": tokens}
        weights = weights if weights.ndim == 3 else jnp.mean(weights, axis=2)
        return {"tokens": tokens, "looked": jnp.where(tokens == PAD, 0, 1 + weights.argmax(-1))}

    def decoder(self, model: EncoderDecoder, inputs: Batch) -> TokenDecoder:
        """Encodes the strings, and returns a decoder of their targets."""
        source = inputs["source"]
        return model.decoding(source, inputs["length"], source.shape[1])

    def attention(self, model: EncoderDecoder, inputs: Batch) -> dict[str, jax.Array]:
        """Returns the attention weights over the source at each decoding step.

        "alignment" is [B, T, S], or [B, T, N, S] for an alignment with heads; it is missing for a
        decoder that reads one fixed vector.
        """
        if not self.model.aligns:
            return {}
        source = inputs["source"]
        return {"alignment": model.generate(source, inputs["length"], source.shape[1])[1]}

    # ------------------------------------------------------------------ on the host

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns metrics of greedy decoding and of teacher forcing.

        Greedy decoding gives the metrics of `sequence_metrics` and, with attention,
        `alignment_accuracy`. Teacher forcing gives `loss` and `forced_accuracy`, the fraction of
        correct tokens.
        """
        tokens, examples = float(statistics["tokens"]), self.examples(split)
        aligned = {}
        if "looked" in outputs:
            aligned["alignment_accuracy"] = alignment_accuracy(outputs["looked"], examples)
        return {
            **sequence_metrics(outputs["tokens"], examples),
            **aligned,
            "forced_accuracy": float(statistics["right"]) / tokens,
            "loss": float(statistics["loss"]) / tokens,
        }

    def example_ids(self, split: str) -> np.ndarray:
        """Returns for each example a hash of its string and its target."""
        part = self.examples(split)
        return digests.ids(part.strings, part.answers)

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns 1 for examples with all tokens correct, including the end token, else 0."""
        return _exact(outputs["tokens"], self.examples(split)).astype(np.float32)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns string, target and decoded string of each example."""
        part = self.examples(split)
        decoded = map(strings.decode, outputs["tokens"])
        rows = zip(part.strings, part.answers, decoded, strict=True)
        return [ExamplePrediction(*row) for row in rows]

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the decoded digits and the digits of the string as labels."""
        written, source = strings.decode(outputs["tokens"][0]), list(raw.strip())
        steps = int(np.sum(outputs["tokens"][0] != PAD))
        output = [*written, *["end"] * (steps - len(written))]
        heads = {"head": None} if np.ndim(attention.get("alignment", source)) == 3 else {}
        return {"alignment": {"output": output, **heads, "source": source}}

    def explainer(self) -> CopyExplainer:
        """Returns the explainer, which attributes predictions to digits of the source."""
        return CopyExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Draws the fraction of exact matches by length of the string, and example strings.

        With attention, each example has one drawing of its alignment for each head.
        """
        examples, outputs = self.examples(results.split), results.outputs
        drawn: list[Figure] = [_by_length(outputs["tokens"], examples)]
        alignments = results.attention.get("alignment")
        for row, example in enumerate(results.shown):
            index = example.index
            source, answer = examples.strings[index], examples.answers[index]
            tokens = outputs["tokens"][index]
            written = strings.decode(tokens)
            lead = f"{results.caption(example)}: "
            if alignments is None:
                title = f"{lead}{source} -> {written}"
                drawn.append(Transcript(title, written, answer, source, words=False))
                continue
            weights = alignments[row]
            # Number of steps up to the end token, including it.
            steps = int(np.sum(tokens != PAD))
            verdict = "right" if written == answer else "wrong"
            heads = [weights] if weights.ndim == 2 else np.swapaxes(weights, 0, 1)
            for n, head in enumerate(heads, 1):
                where = f", head {n}" if weights.ndim == 3 else ""
                drawn.append(
                    Alignment(
                        f"{lead}{source} -> {written} ({verdict}){where}",
                        head[:steps, : len(source)],
                        [*written, *["end"] * (steps - len(written))],
                        list(source),
                    )
                )
        return drawn

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baselines.

        One baseline returns the string in the wrong order. The other one repeats the most common
        digit as often as the target has digits."""
        wrong_way = "unreversed" if self.data.name == "reversed_digits" else "reversed"
        return {wrong_way: self._wrong_way, "commonest_digit": self._commonest_digit}

    def _wrong_way(self) -> dict[str, Any]:
        reverses = self.data.name == "reversed_digits"
        return self._score(lambda string: string if reverses else string[::-1])

    def _commonest_digit(self) -> dict[str, Any]:
        digits = Counter("".join(self.examples("train").strings))
        commonest = min(digits, key=lambda digit: (-digits[digit], digit))
        return self._score(lambda string: commonest * len(string))

    def _score(self, answer: Callable[[str], str]) -> dict[str, Any]:
        test = self.examples("test")
        answers = [answer(string) for string in test.strings]
        tokens = strings.tokens_of(answers, int(test.lengths.max()))
        scores = _exact(tokens, test).astype(np.float32)
        return {**sequence_metrics(tokens, test), "example_scores": scores}


def sequence_metrics(tokens: np.ndarray, examples: DigitStrings) -> dict[str, float]:
    """Computes the agreement of decoded tokens with the targets.

    Args:
      tokens: decoded tokens, int [n, T], as wide as the longest target.
      examples: the n examples with the targets.

    Returns:
      `exact_match` is the fraction of examples with all tokens correct, including the end token.
      The same fraction is computed for each of at most four groups of lengths, such as
      `exact_match_4_8` for 4 to 8 digits, and for the greatest length, such as `exact_match_20`.
      `token_accuracy` is the fraction of target positions with the correct token.
    """
    target = _targets(tokens, examples)
    real, exact, digits = target != PAD, _exact(tokens, examples), examples.lengths - 1
    found = {"exact_match": float(exact.mean())}
    for first, last in _groups(digits):
        name = f"{first}_{last}" if first < last else f"{first}"
        found[f"exact_match_{name}"] = float(exact[(digits >= first) & (digits <= last)].mean())
    return found | {"token_accuracy": float((tokens == target)[real].mean())}


def alignment_accuracy(looked: np.ndarray, examples: DigitStrings) -> float:
    """Computes how often the decoder attends to the source position of the digit to output.

    Args:
      looked: int [n, T], 1 + the position of the largest weight, 0 for padding.
      examples: the n examples with the targets.

    Returns:
      The fraction of decoding steps whose largest weight is at most one position from the source
      position of the target digit. Each digit of a target is one step; steps after an early end
      token count as errors. The end token itself is not counted, because it has no source position.
    """
    right, steps = 0, 0
    for row, string in zip(looked, examples.strings, strict=True):
        true = [strings.source_position(t, len(string), examples.name) for t in range(len(string))]
        near = np.abs(row[: len(string)] - 1 - np.array(true)) <= 1
        right += int(np.sum(near & (row[: len(string)] > 0)))
        steps += len(string)
    return right / steps


def _groups(digits: np.ndarray) -> list[tuple[int, int]]:
    """Returns the least and the greatest length of each group.

    There are at most four groups with ranges of lengths. They are followed by a group that has only
    the strings of the greatest length.
    """
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
    """Returns True for examples with all tokens correct, including the end token, bool [n]."""
    return (tokens == _targets(tokens, examples)).all(axis=1)


def _targets(tokens: np.ndarray, examples: DigitStrings) -> np.ndarray:
    """Returns the target tokens of the examples, padded to the width of `tokens`."""
    return strings.tokens_of(examples.answers, tokens.shape[1])


def _by_token(
    model: EncoderDecoder, batch: Batch, dropout_key: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compares the logits with the target tokens under teacher forcing.

    Returns:
      The cross-entropy of each target token, [B, T], and whether it is the most probable token,
      [B, T], both multiplied by its weight; and this weight, [B, T], which is 0 for padding.
    """
    target = batch["target"]
    logits, _ = model(batch["source"], batch["length"], target, dropout_key=dropout_key)
    weight = jnp.where(target == PAD, 0, batch["weight"][:, None])
    losses = cross_entropy(logits, target)
    correct = jnp.argmax(logits, axis=-1) == target
    return losses * weight, correct * weight, weight


TASK = SequenceCopy
