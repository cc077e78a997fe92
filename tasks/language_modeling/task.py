"""Language modelling: the task contract over `data.py`, `examples.py` and `model.py`."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.backbones import transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import Examples
from tasks.common.errors import UserError
from tasks.common.losses import cross_entropy
from tasks.common.text.tokenizer import CLS, SPECIAL, Tokenizer, replace_surrogates
from tasks.figures import Alignment, Figure
from tasks.language_modeling import baselines as counting
from tasks.language_modeling import examples as sequences
from tasks.language_modeling import processor
from tasks.language_modeling.data import Corpus, DataConfig, load
from tasks.language_modeling.masking import mask_tokens
from tasks.language_modeling.model import (
    MODEL_CONFIGS,
    LanguageModel,
    LanguageModelConfig,
    complete,
)
from tasks.task import OldTask

# Quantiles of the train lengths at which texts are padded; compiled once each.
_BUCKET_QUANTILES = (0.5, 0.8)
# What is hidden of an example in evaluation follows from its id alone.
_EVALUATION_SEED = 0
# The second segments of pairs: drawn once, the same for every run.
_PAIR_SEED = 0
_LOSSLESS = ("character", "bpe")
_ORDER = 6
_SHOWN = 5


class LanguageModeling(OldTask):
    """A text -> what comes next, or what is hidden in it."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "loss"
    higher_is_better = False
    table_metrics = ("loss", "perplexity", "bits_per_character", "accuracy")
    sharding_rules = transformer.SHARDING_RULES

    def __init__(
        self,
        data: DataConfig,
        model: LanguageModelConfig,
        tokenizer: Tokenizer,
        buckets: Sequence[int] | None,
        begin: int | None,
        corpus: Corpus | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          tokenizer: fitted on the train texts.
          buckets: lengths to which batches are padded; None: all are data.length long.
          begin: what stands for an empty prompt in a running text; None where texts stand by
            themselves, and CLS begins each.
          corpus: the texts; None where only predictions are wanted.
        """
        self.data, self.model, self.tokenizer = data, model, tokenizer
        self._buckets, self._begin, self._corpus = buckets, begin, corpus
        self._mask, self._end = sequences.mask_id(tokenizer), sequences.end_id(tokenizer)
        self._vocabulary = tokenizer.size + sequences.RESERVED

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(
        cls, data: DataConfig, model: LanguageModelConfig, paths: Paths
    ) -> LanguageModeling:
        """See `Task.prepare`."""
        if model.max_length < data.length:
            raise UserError(
                f"config.model.max_length must be at least {data.length}, as config.data.length "
                f"asks, got {model.max_length}"
            )
        if model.whole_words and data.text.tokenizer == "character":
            raise UserError(
                "config.model.whole_words: characters do not say where words begin; set "
                "config.data.text.tokenizer to 'wordpiece', 'bpe' or 'word'"
            )
        corpus = load(data, paths)
        train = corpus.splits["train"]
        tokenizer = Tokenizer.fit(train, data.text, cache_dir=paths.cache_dir)
        begin = sequences.beginning(tokenizer, train[0]) if corpus.running else None
        task = cls(data, model, tokenizer, None, begin, corpus)
        for split in ("train", "validation", "test"):
            if not len(task.examples(split)):
                raise UserError(f"{data.name}: {split} is too short for one example")
        if not corpus.running:
            lengths = task.examples("train").lengths
            shorter = [
                -(-int(np.quantile(lengths, quantile)) // 8) * 8 for quantile in _BUCKET_QUANTILES
            ]
            task._buckets = sorted({*(n for n in shorter if n < data.length), data.length})
        return task

    @classmethod
    def restore(
        cls, data: DataConfig, model: LanguageModelConfig, assets: Mapping[str, Any]
    ) -> LanguageModeling:
        """See `Task.restore`."""
        tokenizer = Tokenizer.from_json(assets["tokenizer"])
        return cls(data, model, tokenizer, assets["buckets"], assets["begin"])

    def assets(self) -> dict[str, Any]:
        """Tokenizer, buckets, and what an empty prompt begins with."""
        return {
            "tokenizer": self.tokenizer.to_json(),
            "buckets": self._buckets,
            "begin": self._begin,
        }

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the texts, and of what makes sequences of them."""
        made = [self.model.objective, self.data.length, self.model.next_sentence]
        return {**self._corpus.parts, "sequences": digests.of_rows(made)}

    @property
    def fingerprint(self) -> str:
        """Of the texts, and of what makes sequences of them."""
        made = [self._corpus.fingerprint, self.model.objective, self.data.length]
        made += [self.model.next_sentence, self.tokenizer.to_json()]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:32]

    # ------------------------------------------------------------------ data

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def examples(self, split: str) -> Examples:
        """See `Task.examples`; encoded once, in memory."""
        ids = self._ids(split)
        length = self.data.length
        if self.model.objective == "causal":
            if self._corpus.running:
                windows = ids[0] if len(ids) else np.zeros(0, np.int32)
                return sequences.RunningText(windows, length, 1 if split == "train" else length)
            return sequences.CausalTexts(ids, self._end)
        return sequences.MaskedTexts(
            ids,
            self._end,
            starts=self.tokenizer.word_starts() if self.model.whole_words else None,
            pair_seed=_PAIR_SEED if self.model.next_sentence else None,
        )

    def _ids(self, split: str) -> list[np.ndarray]:
        """The running text, or pieces that fit into an example."""
        ids = sequences.encode(self.tokenizer, self._corpus.splits[split])
        causal = self.model.objective == "causal"
        if causal and self._corpus.running:
            return ids
        signs = 1 if causal else 3 if self.model.next_sentence else 2
        return sequences.pieces(ids, self.data.length - signs)

    @property
    def buckets(self) -> Sequence[int] | None:
        """See `Task.buckets`."""
        return self._buckets

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: Any) -> LanguageModel:
        """See `Task.build_model`."""
        return LanguageModel(self.model, self._vocabulary, rngs=rngs)

    def loss(
        self, model: LanguageModel, batch: Mapping[str, Any], dropout_key: Any
    ) -> tuple[Any, dict]:
        """Cross-entropy of a token to be predicted, in nats; with next_sentence that of the pairs
        is added.
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
        self, model: LanguageModel, batch: Mapping[str, Any], mask_key: Any, dropout_key: Any
    ) -> dict[str, Any]:
        """[B] sums over the tokens to be predicted: of cross-entropies, of those that are right,
        of them all; 0 for rows that count for nothing. With next_sentence, also of the pair.
        """
        tokens, lengths, segments = batch["tokens"], batch["length"], batch.get("segments")
        if self.model.objective == "causal":
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
                mask=self._mask,
                rate=self.model.mask_rate,
                words=batch.get("words"),
            )
            targets, weight = masked.targets, masked.weight
            hidden = model(masked.tokens, lengths, segments=segments, dropout_key=dropout_key)
            read = jnp.take_along_axis(hidden, masked.places[..., None], axis=1)
        logits = model.logits(read)
        weight = weight * batch["weight"][:, None]
        losses = cross_entropy(logits, targets)
        right = jnp.argmax(logits, axis=-1) == targets
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

    def batch_statistics(self, model: LanguageModel, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Summed cross-entropy, tokens that are right and number of tokens; likewise of pairs."""
        sums = self._sums(model, batch, jax.random.key(_EVALUATION_SEED), None)
        return {name: jnp.sum(values) for name, values in sums.items()}

    def outputs(self, model: LanguageModel, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of an example of a split: summed `loss` [B] and number of `tokens` [B]. Of a prompt:
        the tokens of its completion [B, max_new_tokens]. Of a blank: the likeliest tokens for it
        [B, 5] and their probabilities.
        """
        if "prompt" in batch:
            end = None if self._begin is not None else self._end
            return {"tokens": complete(model, batch["prompt"], batch["length"], batch["id"], end)}
        if "blank" in batch:
            hidden = model(batch["tokens"], batch["length"])
            logits = model.logits(hidden[jnp.arange(len(hidden)), batch["blank"]])
            words = jnp.arange(logits.shape[-1])
            logits = jnp.where((words < len(SPECIAL)) | (words >= self._mask), -jnp.inf, logits)
            best, tokens = jax.lax.top_k(
                jax.nn.softmax(logits), min(_SHOWN, self._mask - len(SPECIAL))
            )
            return {"tokens": tokens, "probabilities": best}
        sums = self._sums(model, batch, jax.random.key(_EVALUATION_SEED), None)
        return {"loss": sums["loss"], "tokens": sums["tokens"]}

    def attention(self, model: LanguageModel, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of the layers [B, L, N, T, T]; nothing is hidden from a masked model here."""
        if "weights" not in self.model.entry.capabilities:
            return {}
        _, weights = model(
            batch["tokens"], batch["length"], segments=batch.get("segments"), return_weights=True
        )
        return {"encoder": jnp.swapaxes(weights, 0, 1)}

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """`loss`, nats a token; `perplexity`, e^loss; `accuracy`, how often the likeliest token is
        the right one; for a causal model over characters or bytes `bits_per_character`, with all
        that is predicted (end tokens too) by the characters of the text; with next_sentence
        `next_sentence_accuracy` and `next_sentence_loss`.
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
        if self.model.objective == "causal" and self.data.text.tokenizer in _LOSSLESS:
            characters = sum(map(len, self._corpus.splits[split]))
            if self._corpus.running:
                # Nothing comes before the first token, so it is not predicted.
                characters -= len(self.tokenizer.decode(self._ids(split)[0][:1]))
            metrics["bits_per_character"] = nats / math.log(2) / max(characters, 1)
        return metrics

    def example_ids(self, split: str) -> np.ndarray:
        """Of the ids of each example and their tokenizer, which says what is predicted."""
        examples = self.examples(split)
        tokenizer = digests.code(self.tokenizer.to_json())
        rows = [examples[index] for index in range(len(examples))]
        return digests.ids(rows, [tokenizer] * len(rows))

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """Share of each example in the loss: their mean is the loss."""
        losses = np.asarray(outputs["loss"], np.float64)
        return losses * len(losses) / np.sum(outputs["tokens"], dtype=np.float64)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """What each token of the first examples attends to in the last layer, heads averaged."""
        drawn: list[Figure] = []
        for index, weights in enumerate(attention.get("encoder", ())[:2]):
            example = self.examples(split)[index]
            shown = [processor.spelled(self.tokenizer, number) for number in example["tokens"]]
            size = len(shown)
            loss = outputs["loss"][index] / max(outputs["tokens"][index], 1)
            caption = f"last layer, mean of the heads; {loss:.2f} nats a token"
            drawn.append(Alignment(caption, weights[-1].mean(axis=0)[:size, :size], shown, shown))
        return drawn

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """What counting in the train texts reaches on all tokens of the test texts: unigrams, and
        for a causal model Kneser-Ney, which reads the text as far back as its order.
        """
        if self.model.objective == "masked":
            return {"unigram": self._unigram}
        order = min(_ORDER, counting.highest_order(self._vocabulary))
        return {
            "unigram": self._unigram,
            f"kneser_ney_{order}": lambda: self._kneser_ney(order),
        }

    def _counted(self, split: str) -> list[np.ndarray]:
        """Ids as they may have to be predicted: with the end token, or those that may be hidden."""
        ids = self._ids(split)
        if self.model.objective == "masked":
            return [text[text >= len(SPECIAL)] for text in ids]
        if self._corpus.running:
            return ids
        return [np.append(text, np.int32(self._end)) for text in ids]

    def _unigram(self) -> dict[str, float]:
        began = time.monotonic()
        shares = counting.unigram(self._counted("train"), self._vocabulary)
        ids = np.concatenate(self._counted("test"))
        accuracy = float(np.mean(ids == np.argmax(shares)))
        return {**self._counting(shares[ids], began), "accuracy": accuracy}

    def _kneser_ney(self, order: int) -> dict[str, float]:
        began = time.monotonic()
        model = counting.KneserNey(self._counted("train"), self._vocabulary, order)
        return self._counting(model.probabilities(self._counted("test")), began)

    def _counting(self, found: np.ndarray, began: float) -> dict[str, float]:
        if self.model.objective == "causal" and self._corpus.running:
            found = found[1:]
        metrics = self._metrics(-float(np.sum(np.log(found))), len(found), "test")
        return {**metrics, "seconds": round(time.monotonic() - began, 2)}

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> Examples:
        """Prompts for a causal model; for a masked one texts with [MASK] where words are missing.

        Raises:
          UserError: no [MASK] in a text.
        """
        raw = [replace_surrogates(text) for text in raw]
        if self.model.objective == "masked":
            return processor.blanks(self.tokenizer, raw, self.data.length)
        return sequences.prompts(
            sequences.encode(self.tokenizer, raw),
            CLS if self._begin is None else None,
            CLS if self._begin is None else self._begin,
            self.model.max_length // 2,
        )

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """The prompt and what was written after it; or for each [MASK] its five likeliest words
        with their probabilities, and the text with the likeliest in their places.
        """
        raw = [replace_surrogates(text) for text in raw]
        if self.model.objective == "masked":
            return processor.filled(
                self.tokenizer, raw, outputs["tokens"], outputs["probabilities"]
            )
        return [
            processor.completed(self.tokenizer, text, tokens)
            for text, tokens in zip(raw, outputs["tokens"], strict=True)
        ]


TASK = LanguageModeling
