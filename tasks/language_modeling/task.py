"""Language modeling: next-token and masked-token prediction.

B batch, T length, L layers, N heads.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tasks.answers import AnswerOptions
from tasks.common.backbones import transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import Examples, bucket_lengths
from tasks.common.data.splits import SPLITS, SplitSummary
from tasks.common.data.summary import BYTES, excerpt
from tasks.common.decoding.generate import TokenDecoder
from tasks.common.errors import UserError, check_max_length
from tasks.common.losses import cross_entropy
from tasks.common.metrics.descriptions import fraction, lower
from tasks.common.text.tokenizer import CLS, SPECIAL, UNKNOWN, Tokenizer
from tasks.figures import Alignment, AttendedText, Figure, SplitResults
from tasks.language_modeling import baselines as counting
from tasks.language_modeling import examples as sequences
from tasks.language_modeling.data import Corpus, DataConfig, load, read_labeled
from tasks.language_modeling.examples import MASK
from tasks.language_modeling.explainer import LanguageExplainer
from tasks.language_modeling.masking import mask_tokens
from tasks.language_modeling.model import (
    MODEL_CONFIGS,
    LanguageModel,
    LanguageModelConfig,
    complete,
    decoding,
)
from tasks.language_modeling.processor import LanguageProcessor, blank_line, token_text
from tasks.language_modeling.user_files import OWN_DATA
from tasks.task import Arrays, Axes, Batch, Columns, ExamplePrediction, Task

# Quantiles of the training lengths to which batches are padded.
_BUCKET_QUANTILES = (0.5, 0.8)
# A fixed seed, so that the masks in evaluation depend only on the id of the example.
_EVALUATION_SEED = 0
# Seed of the second segments of pairs, the same for every run.
_PAIR_SEED = 0
_LOSSLESS = ("character", "bpe")
_ORDER = 6
_SHOWN = 5
_GENERATED = "the model continues texts (to sample from K tokens, use --set=model.decoding.top_k=K)"
# The data summary of a running text uses only lines of at least this many letters.
_LINE = 40
# Maximum number of tokens of an example that a report shows.
_TOKENS = 48


class LanguageModeling(Task):
    """Prediction of the next tokens or of masked tokens of a text.

    Splits are evaluated by teacher forcing; autoregressive decoding is only for prompts.
    """

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = LanguageProcessor
    own_data = OWN_DATA
    primary_metric = "loss"
    higher_is_better = False
    table_metrics = ("loss", "perplexity", "bits_per_character", "accuracy")
    metric_table: ClassVar = {
        "loss": lower("cross-entropy of the target tokens", "nats per token"),
        "perplexity": lower("e to the power of the loss", "equally probable tokens"),
        "bits_per_character": lower("total cross-entropy per character", "bits per character"),
        "accuracy": fraction("target tokens that are the most probable"),
        "next_sentence_accuracy": fraction("pairs of segments that are classified correctly"),
        "next_sentence_loss": lower("cross-entropy of next-sentence prediction", "nats per pair"),
    }
    drawn_examples = 2
    sharding_rules = transformer.SHARDING_RULES
    answer_options: ClassVar[dict[str, str | None]] = {
        "top_k": None,
        "threshold": "each listed word comes with its probability",
    }

    # ------------------------------------------------------------------ construction

    @classmethod
    def prepare(
        cls, data: DataConfig, model: LanguageModelConfig, paths: Paths, **options: Any
    ) -> LanguageModeling:
        """Prepares the task, with buckets computed from the lengths of the training examples."""
        task = super().prepare(data, model, paths, **options)
        for split in SPLITS:
            if not len(task.examples(split)):
                raise UserError(
                    f"{data.name}: the {split} split is too short for one example; provide more "
                    "text"
                )
        if not task.dataset.running:
            lengths = task.examples("train").lengths
            buckets = bucket_lengths(lengths, _BUCKET_QUANTILES, 8, data.length)
            task.processor = dataclasses.replace(task.processor, buckets=buckets)
        return task

    @classmethod
    def check(cls, data: DataConfig, model: LanguageModelConfig) -> None:
        """Checks the maximum length, and that whole-word masking has word boundaries."""
        check_max_length(model.max_length, data.length, "config.data.length")
        if model.whole_words and data.text.tokenizer == "character":
            raise UserError(
                "config.model.whole_words: got True, but a character tokenizer has no word "
                "boundaries; set config.data.text.tokenizer to 'wordpiece', 'bpe' or 'word'"
            )

    load = staticmethod(load)

    @classmethod
    def fit(
        cls, dataset: Corpus, data: DataConfig, model: LanguageModelConfig, paths: Paths
    ) -> LanguageProcessor:
        """Fits the tokenizer on the training texts."""
        train = dataset.splits["train"]
        tokenizer = Tokenizer.fit(train, data.text, cache_dir=paths.cache_dir)
        begin = sequences.beginning(tokenizer, train[0]) if dataset.running else None
        return LanguageProcessor(data, model, tokenizer, begin=begin)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Hashes of the texts, and of the settings that convert texts to sequences."""
        made = [self.model.objective, self.data.length, self.model.next_sentence]
        return {**self.dataset.parts, "sequences": digests.of_rows(made)}

    @property
    def fingerprint(self) -> str:
        """Hash of the texts, the tokenizer, and the settings that convert texts to sequences."""
        made = [self.dataset.fingerprint, self.model.objective, self.data.length]
        made += [self.model.next_sentence, self.processor.tokenizer.to_json()]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:32]

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads a text file, or a table, as the test split.

        If the run was trained on separate texts, each line of a text file is one text.
        """
        running = self.processor.begin is not None
        texts = read_labeled(file, running, self.data.text_column)
        corpus = Corpus(self.data.name, {"test": texts}, running)
        task = self._with_dataset(corpus)
        if not len(task.examples("test")):
            raise UserError(f"{file}: the text is too short for one example; provide more text")
        return task

    # ------------------------------------------------------------------ data

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def examples(self, split: str) -> Examples:
        """Returns the examples of a split, tokenized once."""
        ids, processor, length = self._ids(split), self.processor, self.data.length
        if processor.causal:
            if self.dataset.running:
                windows = ids[0] if len(ids) else np.zeros(0, np.int32)
                return sequences.RunningText(windows, length, 1 if split == "train" else length)
            return sequences.CausalTexts(ids, processor.end_id)
        return sequences.MaskedTexts(
            ids,
            processor.end_id,
            starts=processor.tokenizer.word_starts() if self.model.whole_words else None,
            pair_seed=_PAIR_SEED if self.model.next_sentence else None,
        )

    def _ids(self, split: str) -> list[np.ndarray]:
        """Returns the tokens of the texts of a split, as one int32 array per text or chunk.

        A causal model of running text has the whole text as one array. In all other cases, texts
        are split into chunks that fit into an example with its reserved tokens.
        """
        ids = sequences.encode(self.processor.tokenizer, self.dataset.splits[split])
        if self.processor.causal and self.dataset.running:
            return ids
        reserved = 1 if self.processor.causal else 3 if self.model.next_sentence else 2
        return sequences.chunk_texts(ids, self.data.length - reserved)

    def summary(self) -> dict[str, SplitSummary]:
        """Returns the number of sequences of each split."""
        return {split: SplitSummary(len(self.examples(split))) for split in SPLITS}

    def columns(self, split: str) -> Columns:
        """Returns texts, or the long lines of a running text, for the data summary."""
        examples, texts, unit = self.examples(split), self.dataset.splits[split], "texts"
        ids = examples.texts
        known, total = sum(int(np.sum(x != UNKNOWN)) for x in ids), sum(map(len, ids))
        lengths = examples.lengths
        if isinstance(examples, sequences.MaskedTexts) and self.model.next_sentence:
            # `lengths` has the same maximum for all pairs, so the tokens of each text are counted.
            lengths = np.array([len(x) for x in ids])
        sizes, facts = {"tokens": lengths}, {"tokens": f"{total:,}"}
        if self.dataset.running:
            text, unit, sizes = texts[0], f"lines of {_LINE} or more letters", {}
            if len(text) > BYTES:
                text, unit = text[:BYTES], f"{unit} (in the first {BYTES:,} letters)"
            texts = [line for line in text.split("\n") if len(line) >= _LINE]
        return Columns(
            len(texts),
            lambda index: (texts[index], None),
            unit=unit,
            name=lambda index: excerpt(texts[index]),
            sizes=sizes,
            unknown={"tokens": 1 - known / max(total, 1)},
            facts=facts,
        )

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: Any) -> LanguageModel:
        """Returns the Transformer."""
        return LanguageModel(self.model, self.processor.vocabulary, rngs=rngs)

    def loss(self, model: LanguageModel, batch: Batch, dropout_key: Any) -> tuple[Any, dict]:
        """Computes the mean cross-entropy of the targets in nats, and their accuracy.

        With next_sentence, the mean cross-entropy of next-sentence prediction is added to the loss.
        """
        mask_key, dropout_key = jax.random.split(dropout_key)
        sums = self._sums(model, batch, mask_key, dropout_key)
        tokens = jnp.maximum(jnp.sum(sums["tokens"]), 1.0)
        loss = jnp.sum(sums["loss"]) / tokens
        metrics = {"accuracy": jnp.sum(sums["right"]) / tokens}
        if self.model.next_sentence:
            rows = jnp.maximum(jnp.sum(batch["weight"]), 1.0)
            loss = loss + jnp.sum(sums["follows_loss"]) / rows
            metrics["next_sentence_accuracy"] = jnp.sum(sums["follows_right"]) / rows
        return loss, metrics

    def _sums(
        self, model: LanguageModel, batch: Batch, mask_key: Any, dropout_key: Any
    ) -> dict[str, Any]:
        """Computes sums over the targets of each row.

        Returns:
          Arrays [B], which are 0 for padding rows: "loss", the sum of the cross-entropy; "right",
          the number of correct predictions; and "tokens", the number of targets. With
          next_sentence also "follows_loss" and "follows_right", which are the loss and the number
          of correct predictions of next-sentence prediction, and "rows", which is 1.
        """
        tokens, lengths, segments = batch["tokens"], batch["length"], batch.get("segments")
        if self.processor.causal:
            hidden = model(tokens, lengths, dropout_key=dropout_key)
            targets = batch["targets"]
            weight = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.float32)
            read = hidden
        else:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(mask_key, batch["id"])
            masked = mask_tokens(
                tokens,
                keys,
                first=len(SPECIAL),
                mask=self.processor.mask_id,
                rate=self.model.mask_rate,
                words=batch.get("words"),
            )
            targets, weight = masked.targets, masked.weight
            hidden = model(masked.tokens, lengths, segments=segments, dropout_key=dropout_key)
            read = jnp.take_along_axis(hidden, masked.positions[..., None], axis=1)
        losses, right = model.compare(read, targets)
        weight = weight * batch["weight"][:, None]
        sums = {
            "loss": jnp.sum(losses * weight, axis=1),
            "right": jnp.sum(right * weight, axis=1),
            "tokens": jnp.sum(weight, axis=1),
        }
        if self.model.next_sentence:
            logits, follows = model.next_sentence(hidden), batch["follows"]
            losses = cross_entropy(logits, follows)
            right = jnp.argmax(logits, axis=-1) == follows
            sums |= {
                "follows_loss": losses * batch["weight"],
                "follows_right": right * batch["weight"],
                "rows": batch["weight"],
            }
        return sums

    def evaluate(self, model: LanguageModel, batch: Batch) -> tuple[dict, dict]:
        """Sums the cross-entropy, and counts correct predictions and targets.

        The outputs of each row are its "loss", the sum of the cross-entropy over its targets, and
        "tokens", the number of its targets.
        """
        sums = self._sums(model, batch, jax.random.key(_EVALUATION_SEED), None)
        statistics = {name: jnp.sum(values) for name, values in sums.items()}
        return statistics, {"loss": sums["loss"], "tokens": sums["tokens"]}

    def predict(self, model: LanguageModel, inputs: Batch, *, fast: bool = False) -> dict[str, Any]:
        """Completes prompts, or predicts masked words.

        Returns:
          For a causal model, the generated tokens `completion`, int32 [B, max_new_tokens]. For a
          masked model, the k most probable tokens at the position `blank`: `words`, int32 [B, k],
          and `probabilities`, [B, k]. k is the option `top_k`, or 5 without this option.
        """
        tokens, lengths = inputs["tokens"], inputs["length"]
        if self.processor.causal:
            return {"completion": complete(model, tokens, lengths, inputs["id"], self._end)}
        hidden = model(tokens, lengths, segments=inputs.get("segments"))
        logits = model.logits(hidden[jnp.arange(hidden.shape[0]), inputs["blank"]])
        mask, ids = self.processor.mask_id, jnp.arange(logits.shape[-1])
        logits = jnp.where((ids < len(SPECIAL)) | (ids >= mask), -jnp.inf, logits)
        count = min(self.options.top_k or _SHOWN, mask - len(SPECIAL))
        best, words = jax.lax.top_k(jax.nn.softmax(logits), count)
        return {"words": words, "probabilities": best}

    def decoder(self, model: LanguageModel, inputs: Batch) -> TokenDecoder | None:
        """Returns the decoder that continues the prompts; None for a masked model."""
        if not self.processor.causal:
            return None
        found = decoding(model, inputs["tokens"], inputs["length"], self._end)
        longest = min(found.max_length, self.model.max_new_tokens)
        return dataclasses.replace(found, max_length=longest)

    @property
    def _end(self) -> int | None:
        """The end token; None for running text, which has no end token."""
        return None if self.processor.begin is not None else self.processor.end_id

    def attention(self, model: LanguageModel, inputs: Batch) -> dict[str, Any]:
        """Returns the attention weights of all layers, [B, L, N, T, T].

        The random masking of training is not applied to the tokens.
        """
        if "weights" not in self.model.entry.capabilities:
            return {}
        _, weights = model(
            inputs["tokens"], inputs["length"], segments=inputs.get("segments"), return_weights=True
        )
        return {"encoder": jnp.swapaxes(weights, 0, 1)}

    # ------------------------------------------------------------------ on the host

    @property
    def compiles_options(self) -> bool:
        """True with the option `top_k`, which is the number of words that `predict` returns."""
        return self.options.top_k is not None

    def with_options(self, options: AnswerOptions) -> Task:
        """Returns the task with other options; raises UserError if a causal model has options."""
        if self.processor.causal:
            options.check({**self.answer_options, "top_k": _GENERATED})
        return super().with_options(options)

    def answers(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns the result of `LanguageProcessor.decode`; `predict` already applied `top_k`."""
        return self.processor.decode(raw, outputs)

    @classmethod
    def chosen(cls, answer: dict[str, Any], options: AnswerOptions) -> dict[str, Any]:
        """Keeps the first `top_k` words of each [MASK] in an answer of an exported model."""
        if options.top_k is None:
            return answer
        if "blanks" not in answer:
            options.check({**cls.answer_options, "top_k": _GENERATED})
        if options.top_k > _SHOWN:
            raise UserError(
                f"--top_k: got {options.top_k}, expected at most {_SHOWN}, because an export lists "
                f"{_SHOWN} words; for more words, give --workdir in place of --export"
            )
        blanks = [words[: options.top_k] for words in answer["blanks"]]
        return {**answer, "blanks": blanks, "text": blank_line(blanks)}

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the metrics of the predictions of all targets.

        `accuracy` is the fraction of correct predictions, `loss` is in nats per token, and
        `perplexity` is e^loss. A causal model over characters or bytes also has
        `bits_per_character`: the total loss of all targets, including end tokens, in bits, divided
        by the number of characters of the text. With next_sentence, `next_sentence_accuracy` and
        `next_sentence_loss` are included.
        """
        nats, tokens = float(statistics["loss"]), float(statistics["tokens"])
        metrics = {
            **self._metrics(nats, tokens, split),
            "accuracy": float(statistics["right"]) / tokens,
        }
        if self.model.next_sentence:
            rows = float(statistics["rows"])
            metrics["next_sentence_accuracy"] = float(statistics["follows_right"]) / rows
            metrics["next_sentence_loss"] = float(statistics["follows_loss"]) / rows
        return metrics

    def _metrics(self, nats: float, tokens: float, split: str) -> dict[str, float]:
        loss = nats / tokens
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.processor.causal and self.data.text.tokenizer in _LOSSLESS:
            characters = sum(map(len, self.dataset.splits[split]))
            if self.dataset.running:
                # Without the characters of the first token, which is not a target.
                characters -= len(self.processor.tokenizer.decode(self._ids(split)[0][:1]))
            metrics["bits_per_character"] = nats / math.log(2) / max(characters, 1)
        return metrics

    def example_ids(self, split: str) -> np.ndarray:
        """Returns hashes of the examples and of the tokenizer, which determines the targets."""
        examples = self.examples(split)
        tokenizer = digests.code(self.processor.tokenizer.to_json())
        rows = [dict(examples[index]) for index in range(len(examples))]
        for row in rows:
            row.pop("blank", None)
        return digests.ids(rows, [tokenizer] * len(rows))

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns the contribution of each example to the loss; the loss is the mean of these."""
        losses = np.asarray(outputs["loss"], np.float64)
        return losses * len(losses) / np.sum(outputs["tokens"], dtype=np.float64)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns the text of each example as its input; the other fields are None."""
        examples, tokenizer = self.examples(split), self.processor.tokenizer
        found = []
        for index in range(len(examples)):
            tokens = examples[index]["tokens"]
            known = tokens[(tokens != CLS) & (tokens < tokenizer.size)]
            found.append(ExamplePrediction(tokenizer.decode(known)))
        return found

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the tokens of the prompt, or of the window around the first [MASK], as labels."""
        example = self.processor.encode([raw])[0]
        tokens = example["tokens"][: int(example["length"])]
        shown = [token_text(self.processor.tokenizer, number) for number in tokens]
        return {"encoder": {"layer": None, "head": None, "query": shown, "key": shown}}

    def explainer(self) -> LanguageExplainer:
        """Returns the explainer, which attributes predictions to tokens."""
        return LanguageExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns figures of the last layer's attention weights, averaged over heads.

        For a model without attention weights, the texts are shown instead. Only the first tokens
        of long texts are drawn.
        """
        drawn: list[Figure] = []
        layers, outputs = results.attention.get("encoder"), results.outputs
        for row, example in enumerate(results.shown):
            index, tokens = example.index, self.examples(results.split)[example.index]["tokens"]
            loss = outputs["loss"][index] / max(outputs["tokens"][index], 1)
            caption = f"{results.caption(example)}, {loss:.2f} nats per token"
            if len(tokens) > _TOKENS:
                caption += f"; the first {_TOKENS} of {len(tokens)} tokens"
            tokens = tokens[:_TOKENS]
            if layers is not None:
                drawn.append(self._attended(tokens, layers[row], caption))
            else:
                words = [token_text(self.processor.tokenizer, number) for number in tokens]
                drawn.append(AttendedText(caption, words, np.zeros(len(words))))
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Draws the last layer's attention weights for each prompt, or for each [MASK]."""
        examples, drawn = self.processor.encode(raw), [[] for _ in raw]
        owners = [
            owner
            for owner, text in enumerate(raw)
            for _ in range(1 if self.processor.causal else text.count(MASK))
        ]
        for index, weights in enumerate(attention.get("encoder", ())):
            text = raw[owners[index]]
            drawn[owners[index]].append(self._attended(examples[index]["tokens"], weights, text))
        return drawn

    def _attended(self, tokens: np.ndarray, weights: np.ndarray, caption: str) -> Figure:
        """Draws the last layer of attention weights [L, N, T, T], averaged over heads."""
        shown = [token_text(self.processor.tokenizer, number) for number in tokens]
        size = len(shown)
        caption = f"{caption}; last layer, mean of the heads"
        return Alignment(caption, weights[-1].mean(axis=0)[:size, :size], shown, shown)

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Returns the baselines: unigrams and, for causal models, Kneser-Ney n-grams."""
        if not self.processor.causal:
            return {"unigram": self._unigram}
        order = min(_ORDER, counting.highest_order(self.processor.vocabulary))
        return {"unigram": self._unigram, f"kneser_ney_{order}": lambda: self._kneser_ney(order)}

    def _counted(self, split: str) -> list[np.ndarray]:
        """Returns the possible target tokens of each text.

        For causal models these are all tokens and the end tokens, for masked models the tokens that
        may be masked."""
        ids = self._ids(split)
        if not self.processor.causal:
            return [text[text >= len(SPECIAL)] for text in ids]
        if self.dataset.running:
            return ids
        return [np.append(text, np.int32(self.processor.end_id)) for text in ids]

    def _unigram(self) -> dict[str, float]:
        frequencies = counting.unigram(self._counted("train"), self.processor.vocabulary)
        ids = np.concatenate(self._counted("test"))
        accuracy = float(np.mean(ids == np.argmax(frequencies)))
        return {**self._counting(frequencies[ids]), "accuracy": accuracy}

    def _kneser_ney(self, order: int) -> dict[str, float]:
        model = counting.KneserNey(self._counted("train"), self.processor.vocabulary, order)
        return self._counting(model.probabilities(self._counted("test")))

    def _counting(self, found: np.ndarray) -> dict[str, float]:
        if self.processor.causal and self.dataset.running:
            found = found[1:]
        return self._metrics(-float(np.sum(np.log(found))), len(found), "test")


TASK = LanguageModeling
