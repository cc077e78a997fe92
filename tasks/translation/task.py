"""Translation: the task contract over `data.py` and `model.py`."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.backbones import recurrent, transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.decoding.generate import DecodingConfig, DecodingResult
from tasks.common.errors import UserError
from tasks.common.losses import cross_entropy, smoothed_cross_entropy
from tasks.common.metrics.translation import bleu_contributions, bleu_signature, translation_metrics
from tasks.common.text.tokenizer import PAD, Tokenizer
from tasks.figures import Alignment, Curves, Figure
from tasks.task import OldTask
from tasks.translation import baselines
from tasks.translation import model as models
from tasks.translation.data import DataConfig, PairExamples, Pairs, TranslationData, load

# Quantiles of the train lengths at which sentences are padded; compiled once each.
_BUCKET_QUANTILES = (0.5, 0.9, 0.99)
# Cuts nothing: what is too long is left out, cut or refused here, knowingly.
_UNCUT = 2**31 - 1
_LENGTH_GROUPS = 5


class Translation(OldTask):
    """Sentences of one language -> another.

    The best step is chosen by BLEU of greedy decoding on validation; test and predict decode as
    `config.model.decoding` says.
    """

    data_config = DataConfig
    model_configs = models.MODEL_CONFIGS
    primary_metric = "bleu4_lowercase_tokenized"
    table_metrics = ("bleu4_lowercase_tokenized", "bleu", "chrf", "length_ratio", "loss")
    sharding_rules = transformer.SHARDING_RULES + recurrent.SHARDING_RULES

    def __init__(
        self,
        data: DataConfig,
        model: Any,
        tokenizer: Tokenizer,
        buckets: Sequence[Mapping[str, int]],
        pairs: TranslationData | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data: data config.
          model: one of MODEL_CONFIGS.
          tokenizer: fitted on both sides of the train split; cuts nothing.
          buckets: lengths of either side to which batches are padded.
          pairs: the splits; None where only predictions are wanted.
        """
        self.data, self.model, self.tokenizer = data, model, tokenizer
        self._buckets, self._pairs = [dict(bucket) for bucket in buckets], pairs

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: Any, paths: Paths) -> Translation:
        """See `Task.prepare`."""
        _check_lengths(data, model)
        pairs = load(data, paths)
        train = pairs.splits["train"]
        texts = [*train.sources, *train.targets]
        tokenizer = Tokenizer.fit(texts, data.text, cache_dir=paths.cache_dir)
        task = cls(data, model, tokenizer.with_max_length(_UNCUT), (), pairs)
        task._buckets = _buckets(task.examples("train").lengths, data.text.max_length + 1)
        return task

    @classmethod
    def restore(cls, data: DataConfig, model: Any, assets: Mapping[str, Any]) -> Translation:
        """See `Task.restore`."""
        return cls(data, model, Tokenizer.from_json(assets["tokenizer"]), assets["buckets"])

    def assets(self) -> dict[str, Any]:
        """Buckets and tokenizer."""
        return {"buckets": self._buckets, "tokenizer": self.tokenizer.to_json()}

    @property
    def fingerprint(self) -> str:
        """Of the sentences."""
        return self._pairs.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._pairs.parts

    # ------------------------------------------------------------------ data

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def examples(self, split: str) -> PairExamples:
        """See `Task.examples`; encoded once, in memory."""
        limit = self.data.text.max_length
        sources, targets = self._encoded(split)
        if split == "train":
            kept = np.flatnonzero(~self._too_long(split)).tolist()
            if not kept:
                raise UserError(
                    f"config.data.text.max_length: every pair of train is longer than {limit} "
                    "tokens on a side"
                )
            sources, targets = [sources[i] for i in kept], [targets[i] for i in kept]
        return PairExamples(
            [ids[:limit] for ids in sources],
            [ids[:limit] for ids in targets],
            self.tokenizer.size + 1,
            greedy=split == "validation",
        )

    @functools.cache  # noqa: B019 - likewise
    def _encoded(self, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        part = self._pairs.splits[split]
        return self.tokenizer.encode_batch(part.sources), self.tokenizer.encode_batch(part.targets)

    def _too_long(self, split: str) -> np.ndarray:
        """bool [pairs], those with more than max_length tokens on a side."""
        both = zip(*self._encoded(split), strict=True)
        return np.array([max(len(s), len(t)) > self.data.text.max_length for s, t in both], bool)

    def summary(self) -> dict[str, SplitSummary]:
        """Pairs, and those that are too long for the config."""
        found = {}
        for split, counts in super().summary().items():
            count = int(self._too_long(split).sum())
            done = "left out" if split == "train" else "cut"
            note = f"{count:,} pairs over max_length={self.data.text.max_length} are {done}"
            found[split] = dataclasses.replace(counts, note=note if count else "")
        return found

    @property
    def buckets(self) -> Sequence[Mapping[str, int]]:
        """See `Task.buckets`."""
        return self._buckets

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: Any) -> models.Translator:
        """See `Task.build_model`."""
        return models.build(self.model, self.tokenizer.size, rngs=rngs)

    def loss(
        self, model: models.Translator, batch: Mapping[str, Any], dropout_key: Any
    ) -> tuple[Any, dict]:
        """Cross-entropy of a token with smoothed labels, under teacher forcing; and without.

        - (1 - ε) log p(y) - ε · mean over words of log p
        """
        logits, weight = _by_token(model, batch, dropout_key)
        smoothing = self.model.label_smoothing
        smoothed, losses = smoothed_cross_entropy(logits, batch["target"], smoothing)
        tokens = jnp.maximum(jnp.sum(weight), 1)
        loss = jnp.sum(smoothed * weight) / tokens
        return loss, {"cross_entropy": jnp.sum(losses * weight) / tokens}

    def batch_statistics(
        self, model: models.Translator, batch: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Summed cross-entropy, tokens that are right, and number of tokens; teacher forcing."""
        logits, weight = _by_token(model, batch, None)
        losses = cross_entropy(logits, batch["target"])
        right = jnp.argmax(logits, axis=-1) == batch["target"]
        return {
            "loss": jnp.sum(losses * weight),
            "right": jnp.sum(right * weight),
            "tokens": jnp.sum(weight),
        }

    def outputs(self, model: models.Translator, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of decoding, the best first: tokens [B, n_best, T], padded with 0, scores [B, n_best]."""
        decoded = self._decode(model, batch, return_weights=False)
        return {"tokens": decoded.tokens, "scores": decoded.scores}

    def attention(self, model: models.Translator, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Weights over the source of each step of the best translation: [B, T, S], [B, T, N, S] of
        an alignment with heads, [B, T, L, N, S] of a Transformer.
        """
        if not self.model.aligns:
            return {}
        decoded = self._decode(model, batch, return_weights=True)
        return {"alignment": decoded.extras["alignment"][:, 0]}

    def _decode(
        self, model: models.Translator, batch: Mapping[str, Any], return_weights: bool
    ) -> DecodingResult:
        return model.translate(
            batch["source"],
            config=DecodingConfig() if "greedy" in batch else self.model.decoding,
            max_length=self.data.text.max_length + 1,
            ids=jnp.maximum(batch["id"], 0),
            return_weights=return_weights,
        )

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """See `translation_metrics`; under teacher forcing `loss`, the cross-entropy of a token
        without smoothing, and `forced_accuracy`.
        """
        tokens = float(statistics["tokens"])
        return {
            **self._score(self._written(outputs), split),
            "forced_accuracy": float(statistics["right"]) / tokens,
            "loss": float(statistics["loss"]) / tokens,
        }

    def example_ids(self, split: str) -> np.ndarray:
        """Of sources and targets."""
        part = self._pairs.splits[split]
        return digests.ids(part.sources, part.targets)

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """See `bleu_contributions`; the mean is the primary metric."""
        references = self._pairs.splits[split].targets
        return bleu_contributions(self._written(outputs), references, True).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """BLEU by the length of the source, and what the first translations' steps looked at."""
        part, written = self._pairs.splits[split], self._written(outputs)
        drawn: list[Figure] = [_by_length(part, written, self.data.text.lower_case)]
        for index, weights in enumerate(attention.get("alignment", ())):
            weights, where = _one_map(weights)
            tokens = outputs["tokens"][index, 0]
            steps = [int(token) for token in tokens if token != PAD]
            inputs = self.tokenizer.tokens(part.sources[index])[: self.data.text.max_length]
            drawn.append(
                Alignment(
                    f"{part.sources[index]}\n{written[index]}{where}",
                    weights[: len(steps), : len(inputs) + 1],
                    [self._piece(token) for token in steps],
                    [*inputs, "end"],
                )
            )
        return drawn

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """The source as it is, and word by word with a lexicon of the train split."""
        return {
            "copy": lambda: self._baseline(lambda train: list),
            "lexicon": lambda: self._baseline(
                lambda train: baselines.lexicon(train.sources, train.targets)
            ),
        }

    def _baseline(self, fit: Callable[[Pairs], Callable]) -> dict[str, float]:
        began = time.monotonic()
        translate = fit(self._pairs.splits["train"])
        metrics = self._score(translate(self._pairs.splits["test"].sources), "test")
        return {**metrics, "seconds": round(time.monotonic() - began, 2)}

    def _score(self, written: Sequence[str], split: str) -> dict[str, float]:
        references = self._pairs.splits[split].targets
        return translation_metrics(written, references, self.data.text.lower_case)

    def _written(self, outputs: Mapping[str, np.ndarray], rank: int = 0) -> list[str]:
        return [self.tokenizer.decode(tokens) for tokens in outputs["tokens"][:, rank]]

    def _piece(self, token: int) -> str:
        if token >= self.tokenizer.size:
            return "end"
        return self.tokenizer.decode([token]).strip() or "·"

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> PairExamples:
        """Any sentences that are no longer than those of training."""
        limit = self.data.text.max_length
        sources = self.tokenizer.encode_batch(raw)
        for text, ids in zip(raw, sources, strict=True):
            if len(ids) > limit:
                shown = repr(text if len(text) <= 60 else text[:57] + "...")
                raise UserError(
                    f"input {shown}: has {len(ids)} tokens; the model was trained on {limit} at "
                    "most (config.data.text.max_length): give it sentence by sentence"
                )
        return PairExamples(sources, None, self.tokenizer.size + 1)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """The translation and its score, the mean log-probability of a token (see
        `DecodingConfig.length_penalty`); all where more than one is asked for. Nothing for nothing.
        """
        ranked = [self._written(outputs, rank) for rank in range(outputs["tokens"].shape[1])]
        answers = []
        for index, source in enumerate(raw):
            texts = [texts[index] for texts in ranked]
            scores = [round(float(score), 4) for score in outputs["scores"][index]]
            if not source.strip():
                texts, scores = [""], [0.0]
            answer: dict[str, Any] = {"input": source, "output": texts[0], "score": scores[0]}
            if len(texts) > 1:
                answer["n_best"] = [
                    {"output": text, "score": score}
                    for text, score in zip(texts, scores, strict=True)
                    if np.isfinite(score)
                ]
            lines = [f"{row['score']:.4f}  {row['output']}" for row in answer.get("n_best", ())]
            answers.append({**answer, "text": "\n".join(lines) or texts[0]})
        return answers


def _by_token(
    model: models.Translator, batch: Mapping[str, Any], dropout_key: Any
) -> tuple[jax.Array, jax.Array]:
    """Logits [B, T, V] and weight of every token, [B, T]; teacher forcing."""
    target = batch["target"]
    logits = model(batch["source"], target, dropout_key=dropout_key).astype(jnp.float32)
    return logits, jnp.where(target == PAD, 0, batch["weight"][:, None])


def _one_map(weights: np.ndarray) -> tuple[np.ndarray, str]:
    """Weights [T, S] to show of [T, S], [T, N, S] or [T, L, N, S], and what they are, in words.

    Of a Transformer's layers the last but one aligns best (Garg et al. 2019).
    """
    where = ""
    if weights.ndim == 4:
        layers = weights.shape[1]
        chosen = max(layers - 2, 0)
        weights, where = weights[:, chosen], f"layer {chosen + 1} of {layers}, "
    if weights.ndim == 3:
        heads = weights.shape[1]
        weights, where = weights.mean(axis=1), f" ({where}mean of {heads} heads)"
    return weights, where


def _by_length(part: Pairs, written: Sequence[str], lower_case: bool) -> Curves:
    """BLEU of groups of equal size by the words of the source."""
    words = np.array([len(text.split()) for text in part.sources])
    groups = np.array_split(np.argsort(words, kind="stable"), min(_LENGTH_GROUPS, len(words)))
    scores = [
        translation_metrics(
            [written[i] for i in group], [part.targets[i] for i in group], lower_case
        )["bleu"]
        for group in groups
    ]
    means = [float(words[group].mean()) for group in groups]
    title = f"BLEU by length\n{bleu_signature(lower_case, short=True)}"
    return Curves(title, "words of the source", {"BLEU": (means, scores)})


def _buckets(lengths: Mapping[str, np.ndarray], longest: int) -> list[dict[str, int]]:
    """A few pairs of lengths, multiples of 8, that waste little padding; the last holds any."""

    def at(quantile: float) -> dict[str, int]:
        return {
            field: min(-(-int(np.quantile(values, quantile)) // 8) * 8, longest)
            for field, values in lengths.items()
        }

    chosen = [*(at(quantile) for quantile in _BUCKET_QUANTILES), dict.fromkeys(lengths, longest)]
    return [bucket for i, bucket in enumerate(chosen) if bucket not in chosen[:i]]


def _check_lengths(data: DataConfig, model: Any) -> None:
    longest, room = getattr(model, "max_length", None), data.text.max_length + 1
    if longest is not None and longest < room:
        raise UserError(
            f"config.model.max_length must be at least {room}, as config.data.text.max_length "
            f"asks, got {longest}"
        )


TASK = Translation
