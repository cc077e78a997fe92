"""Translation: objective and metrics of the task.

B batch, S source length, T target length, L layers, N heads, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.backbones import recurrent, transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import bucket_lengths
from tasks.common.data.splits import SPLITS, SplitSummary
from tasks.common.data.summary import excerpt
from tasks.common.decoding.generate import DecodingConfig, DecodingResult, TokenDecoder
from tasks.common.errors import UserError, check_max_length, warn_once
from tasks.common.losses import (
    cross_entropy,
    divergence_of_passes,
    first_passes,
    repeat_examples,
    smoothed_cross_entropy,
)
from tasks.common.metrics.translation import (
    TRANSLATION,
    bleu_contributions,
    bleu_signature,
    translation_metrics,
)
from tasks.common.text.tokenizer import PAD, UNKNOWN, Tokenizer
from tasks.figures import Alignment, Curves, Figure, SplitResults, Transcript
from tasks.task import Arrays, Axes, Batch, Columns, ExamplePrediction, Task
from tasks.translation import baselines
from tasks.translation import model as models
from tasks.translation.data import DataConfig, PairExamples, Pairs, TranslationData, load
from tasks.translation.explainer import TranslationExplainer
from tasks.translation.processor import TranslationProcessor
from tasks.translation.user_files import OWN_DATA, read_labeled

# Quantiles of the lengths of the training split to which batches are padded.
_BUCKET_QUANTILES = (0.5, 0.9, 0.99)
# Length limit with which the tokenizer truncates nothing; `examples` and `encode` apply the limit
# of the config.
_UNLIMITED = 2**31 - 1
_LENGTH_GROUPS = 5


class Translation(Task):
    """Translation of sentences from one language into another.

    BLEU of greedy decoding on the validation split selects the best step. The test split and
    predictions are decoded according to `config.model.decoding`.
    """

    data_config = DataConfig
    model_configs = models.MODEL_CONFIGS
    processor_type = TranslationProcessor
    own_data = OWN_DATA
    primary_metric = "bleu4_lowercase_tokenized"
    table_metrics = ("bleu4_lowercase_tokenized", "bleu", "chrf", "length_ratio", "loss")
    metric_table = TRANSLATION
    sharding_rules = transformer.SHARDING_RULES + recurrent.SHARDING_RULES
    decodes = True
    answer_options: ClassVar[dict[str, str | None]] = {
        "top_k": "the number of translations is set by --set=model.decoding.n_best=K",
    }
    baseline_version = 2

    # ------------------------------------------------------------------ construction

    @classmethod
    def check(cls, data: DataConfig, model: Any) -> None:
        """Checks that the model has positions for the longest sentences with end tokens."""
        longest, needed = getattr(model, "max_length", None), data.text.max_length + 1
        check_max_length(longest, needed, "config.data.text.max_length and the end token")

    load = staticmethod(load)

    @classmethod
    def fit(
        cls, dataset: TranslationData, data: DataConfig, model: Any, paths: Paths
    ) -> TranslationProcessor:
        """Fits the tokenizer on both languages, and the lengths of the buckets."""
        train = dataset.splits["train"]
        texts = [*train.sources, *train.targets]
        tokenizer = Tokenizer.fit(texts, data.text, cache_dir=paths.cache_dir)
        processor = TranslationProcessor(data, model, tokenizer.with_max_length(_UNLIMITED), ())
        lengths = cls(data, model, processor, dataset).examples("train").lengths
        longest = data.text.max_length + 1
        buckets = bucket_lengths(lengths, _BUCKET_QUANTILES, longest=longest)
        return dataclasses.replace(processor, buckets=buckets)

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads sentence pairs, see `tasks.translation.user_files.read_labeled`."""
        pairs = Pairs(*read_labeled(file, self.data.source, self.data.target))
        task = self._with_dataset(TranslationData(self.data.name, {"test": pairs}))
        if count := int(task._too_long("test").sum()):
            warn_once(
                f"{file}: {count:,} of {len(pairs):,} pairs over max_length="
                f"{self.data.text.max_length} are truncated"
            )
        return task

    # ------------------------------------------------------------------ data

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def examples(self, split: str) -> PairExamples:
        """Returns the tokenized pairs of a split, held in memory.

        Pairs longer than `max_length` are omitted from the training split, and truncated in the
        other splits.
        """
        limit = self.data.text.max_length
        sources, targets = self._encoded(split)
        if split == "train":
            kept = np.flatnonzero(~self._too_long(split)).tolist()
            if not kept:
                raise UserError(
                    f"config.data.text.max_length: got {limit}, but the source or the "
                    f"target of every training pair has more tokens; raise the limit"
                )
            sources, targets = [sources[i] for i in kept], [targets[i] for i in kept]
        return PairExamples(
            [ids[:limit] for ids in sources], [ids[:limit] for ids in targets], self.processor.end
        )

    def _encoded(self, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return self.dataset.splits[split].encoded(self.processor.tokenizer)

    def _too_long(self, split: str) -> np.ndarray:
        """Returns True for pairs whose source or target exceeds `max_length`, bool [pairs]."""
        both = zip(*self._encoded(split), strict=True)
        return np.array([max(len(s), len(t)) > self.data.text.max_length for s, t in both], bool)

    def summary(self) -> dict[str, SplitSummary]:
        """Counts the pairs of each split, and the pairs longer than `max_length`."""
        found = {}
        for split in SPLITS:
            count = int(self._too_long(split).sum())
            done = "left out" if split == "train" else "truncated"
            limit = self.data.text.max_length
            notes = [f"{count:,} pairs over max_length={limit} are {done}"] * bool(count)
            notes += self._lost_case(split)
            found[split] = SplitSummary(len(self.examples(split)), note="; ".join(notes))
        return found

    def columns(self, split: str) -> Columns:
        """Returns the source sentences for the data summary, with the targets as labels."""
        part = self.dataset.splits[split]
        encoded = dict(zip(("source tokens", "target tokens"), self._encoded(split), strict=True))
        units = {name: np.concatenate(ids) for name, ids in encoded.items()}
        return Columns(
            len(part),
            lambda index: (part.sources[index], part.targets[index]),
            unit="sources",
            name=lambda index: excerpt(part.sources[index]),
            sizes={name: np.array(list(map(len, ids))) for name, ids in encoded.items()},
            limits=dict.fromkeys(encoded, self.data.text.max_length),
            limit_key="config.data.text.max_length",
            cut="left out" if split == "train" else "truncated",
            unknown={name: float(np.mean(ids == UNKNOWN)) for name, ids in units.items()},
        )

    def _lost_case(self, split: str) -> list[str]:
        """Returns a note if lower-casing by the tokenizer changes target words, else no note."""
        words = [word for text in self.dataset.splits[split].targets for word in text.split()]
        lost = sum(word != word.lower() for word in words)
        if not (self.data.text.lower_case and lost):
            return []
        return [
            f"{lost / len(words):.0%} of the target words lose their capitals "
            "(config.data.text.lower_case)"
        ]

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: Any) -> models.Translator:
        """Returns the translator of the config."""
        return models.build(self.model, self.processor.tokenizer.size, rngs=rngs)

    def loss(self, model: models.Translator, batch: Batch, dropout_key: Any) -> tuple[Any, dict]:
        """Computes the label-smoothed cross-entropy per token under teacher forcing.

            -(1 - ε) log p(y) - ε · mean over the vocabulary of log p

        for the target token y and the label smoothing ε. The training metric `cross_entropy` is
        computed without smoothing. With `config.model.r_drop`, the loss is the mean of two passes
        plus the weighted divergence of `tasks.common.losses.divergence_of_passes`.
        """
        alpha = self.model.r_drop
        if alpha:
            batch = repeat_examples({key: batch[key] for key in ("source", "target", "weight")})
        logits, weight = _teacher_forcing(model, batch, dropout_key)
        smoothing = self.model.label_smoothing
        smoothed, losses = smoothed_cross_entropy(logits, batch["target"], smoothing)
        tokens = jnp.maximum(jnp.sum(weight), 1)
        loss = jnp.sum(smoothed * weight) / tokens
        metrics = {"cross_entropy": jnp.sum(losses * weight) / tokens}
        if alpha:
            total = jnp.sum(divergence_of_passes(logits) * first_passes(weight))
            metrics["divergence"] = total / jnp.maximum(tokens / 2, 1)
            loss = loss + alpha / 2 * metrics["divergence"]
        return loss, metrics

    def evaluate(self, model: models.Translator, batch: Batch) -> tuple[dict, dict]:
        """Sums cross-entropy, and counts correct tokens and all tokens, under teacher forcing."""
        logits, weight = _teacher_forcing(model, batch, None)
        losses = cross_entropy(logits, batch["target"])
        right = jnp.argmax(logits, axis=-1) == batch["target"]
        statistics = {
            "loss": jnp.sum(losses * weight),
            "right": jnp.sum(right * weight),
            "tokens": jnp.sum(weight),
        }
        return statistics, {}

    def predict(self, model: models.Translator, inputs: Batch, *, fast: bool = False) -> dict:
        """Translates the source sentences.

        Returns:
          "tokens" [B, n_best, T], the best translation first, padded with 0; and "scores"
          [B, n_best].
        """
        config = DecodingConfig() if fast else self.model.decoding
        decoded = self._decode(model, inputs, config, return_weights=False)
        return {"tokens": decoded.tokens, "scores": decoded.scores}

    def decoder(self, model: models.Translator, inputs: Batch) -> TokenDecoder:
        """Encodes the source sentences, and returns a decoder of their translations."""
        return model.decoding(inputs["source"], self.data.text.max_length + 1)

    def attention(self, model: models.Translator, inputs: Batch) -> dict[str, Any]:
        """Returns the attention weights over the source at each step of the best translation.

        "alignment" is [B, T, S]. It is [B, T, N, S] for an alignment with N heads, and [B, T, L, N,
        S] for a Transformer of L layers. Models without attention return no weights.
        """
        if not self.model.aligns:
            return {}
        decoded = self._decode(model, inputs, self.model.decoding, return_weights=True)
        return {"alignment": decoded.extras["alignment"][:, 0]}

    def _decode(
        self, model: models.Translator, inputs: Batch, config: DecodingConfig, return_weights: bool
    ) -> DecodingResult:
        return model.translate(
            inputs["source"],
            config=config,
            max_length=self.data.text.max_length + 1,
            ids=jnp.maximum(inputs["id"], 0) if config.method == "sample" else None,
            return_weights=return_weights,
        )

    # ------------------------------------------------------------------ on the host

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the metrics of `translation_metrics`, and two metrics under teacher forcing.

        `loss` is the cross-entropy per token without smoothing, and `forced_accuracy` is the
        fraction of correct tokens.
        """
        tokens = float(statistics["tokens"])
        return {
            **self._score(self.processor.hypotheses(outputs), split),
            "forced_accuracy": float(statistics["right"]) / tokens,
            "loss": float(statistics["loss"]) / tokens,
        }

    def example_ids(self, split: str) -> np.ndarray:
        """Returns for each pair a hash of its source and its target."""
        part = self.dataset.splits[split]
        return digests.ids(part.sources, part.targets)

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns the contribution of each sentence to the BLEU score of the corpus."""
        references = self.dataset.splits[split].targets
        hypotheses = self.processor.hypotheses(outputs)
        return bleu_contributions(hypotheses, references, True).astype(np.float32)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns source, reference and best translation of each pair."""
        part, confidence = self.dataset.splits[split], np.exp(outputs["scores"][:, 0])
        rows = zip(
            part.sources,
            part.targets,
            self.processor.hypotheses(outputs),
            confidence.tolist(),
            strict=True,
        )
        return [ExamplePrediction(*row) for row in rows]

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the tokens of the translation and of the source as labels."""
        steps, tokens = self._labels(raw, outputs["tokens"][0, 0])
        # The weights are [T, S], [T, N, S] or [T, L, N, S].
        between = ("layer", "head")[4 - np.ndim(attention.get("alignment", tokens)) :]
        return {"alignment": {"output": steps, **dict.fromkeys(between), "source": tokens}}

    def _labels(self, source: str, tokens: np.ndarray) -> tuple[list[str], list[str]]:
        """Returns the text of each decoding step, and of each position of the source."""
        steps = [self.processor.piece(int(token)) for token in tokens if token != PAD]
        found = self.processor.tokenizer.tokens(source)[: self.data.text.max_length]
        return steps, [*found, "end"]

    def explainer(self) -> TranslationExplainer:
        """Returns the explainer, which attributes predictions to tokens of the source."""
        return TranslationExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns figures of BLEU by source length, and of translations with their alignments."""
        split, outputs, chosen = results.split, results.outputs, results.indices
        part, hypotheses = self.dataset.splits[split], self.processor.hypotheses(outputs)
        drawn: list[Figure] = [_by_length(part, hypotheses, self.data.text.lower_case)]
        own = {"tokens": outputs["tokens"][chosen]}
        # These captions omit the texts, which the figures of the transcripts show.
        names = [f"attention of {split} example {index}" for index in chosen]
        sources = [part.sources[index] for index in chosen]
        alignments = self._alignments(sources, own, results.attention, names)
        for row, example in enumerate(results.shown):
            index = example.index
            texts = hypotheses[index], part.targets[index], part.sources[index]
            drawn.append(Transcript(results.caption(example), *texts))
            drawn += alignments[row : row + 1]
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Returns the alignment of each translation to its source."""
        return [[figure] for figure in self._alignments(raw, outputs, attention)]

    def _alignments(
        self,
        sources: Sequence[str],
        outputs: Arrays,
        attention: Arrays,
        names: Sequence[str] | None = None,
    ) -> list[Figure]:
        """Draws the alignments of the first sources, one for each example in `attention`.

        The captions are the `names`, or the source and its translation if `names` is None.
        """
        processor, drawn = self.processor, []
        for index, weights in enumerate(attention.get("alignment", ())):
            weights, origin = _one_map(weights)
            steps, tokens = self._labels(sources[index], outputs["tokens"][index, 0])
            hypothesis = processor.tokenizer.decode(outputs["tokens"][index, 0])
            caption = f"{sources[index]}\n{hypothesis}" if names is None else names[index]
            drawn.append(
                Alignment(
                    f"{caption}{origin}",
                    weights[: len(steps), : len(tokens)],
                    steps,
                    tokens,
                )
            )
        return drawn

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baselines: the copied source, and word-by-word translation by a lexicon."""
        return {
            "copy": lambda: self._baseline(lambda train: list),
            "lexicon": lambda: self._baseline(
                lambda train: baselines.lexicon(train.sources, train.targets)
            ),
        }

    def _baseline(self, fit: Callable[[Pairs], Callable]) -> dict[str, Any]:
        test = self.dataset.splits["test"]
        found = fit(self.dataset.splits["train"])(test.sources)
        scores = bleu_contributions(found, test.targets, True).astype(np.float32)
        return {**self._score(found, "test"), "example_scores": scores}

    def _score(self, hypotheses: Sequence[str], split: str) -> dict[str, float]:
        references = self.dataset.splits[split].targets
        return translation_metrics(hypotheses, references, self.data.text.lower_case)


def _teacher_forcing(
    model: models.Translator, batch: Batch, dropout_key: Any
) -> tuple[jax.Array, jax.Array]:
    """Computes logits under teacher forcing.

    Returns:
      Logits [B, T, V], and the weight of each target token, [B, T], 0 for padding.
    """
    target = batch["target"]
    logits = model(batch["source"], target, dropout_key=dropout_key).astype(jnp.float32)
    return logits, jnp.where(target == PAD, 0, batch["weight"][:, None])


def _one_map(weights: np.ndarray) -> tuple[np.ndarray, str]:
    """Reduces attention weights to one map [T, S] for a figure.

    Weights are averaged over heads. For a Transformer, the second to last layer is used, because it
    aligns best (Garg et al. 2019).

    Args:
      weights: [T, S], [T, N, S] or [T, L, N, S].

    Returns:
      The map, and a text for the caption that names the layer and the number of heads.
    """
    origin = ""
    if weights.ndim == 4:
        layers = weights.shape[1]
        chosen = max(layers - 2, 0)
        weights, origin = weights[:, chosen], f"layer {chosen + 1} of {layers}, "
    if weights.ndim == 3:
        heads = weights.shape[1]
        weights, origin = weights.mean(axis=1), f" ({origin}mean of {heads} heads)"
    return weights, origin


def _by_length(part: Pairs, hypotheses: Sequence[str], lower_case: bool) -> Curves:
    """Plots BLEU against source length in words, for groups of equally many sentences."""
    words = np.array([len(text.split()) for text in part.sources])
    groups = np.array_split(np.argsort(words, kind="stable"), min(_LENGTH_GROUPS, len(words)))
    scores = [
        translation_metrics(
            [hypotheses[i] for i in group], [part.targets[i] for i in group], lower_case
        )["bleu"]
        for group in groups
    ]
    means = [float(words[group].mean()) for group in groups]
    title = f"BLEU by length\n{bleu_signature(lower_case, short=True)}"
    return Curves(title, "words of the source", {"BLEU": (means, scores)})


TASK = Translation
