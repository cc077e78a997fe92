"""Speech recognition: processor, objective and figures of the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.audio.augmentation import augment_samples, perturb_bands, spec_augment
from tasks.common.backbones import recurrent, transformer
from tasks.common.backbones.transcriber import EncoderOutput
from tasks.common.data.manifests import own_transcribed
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.common.keys import example_keys
from tasks.figures import Curves, Figure, SplitResults
from tasks.speech_recognition import baselines
from tasks.speech_recognition.data import NOISES, OFFICIAL, DataConfig, SpeechData, load
from tasks.speech_recognition.explainer import SpeechExplainer
from tasks.speech_recognition.model import MODEL_CONFIGS, SpeechConfig, SpeechRecognizer
from tasks.speech_recognition.processor import SpeechProcessor, fit_scale
from tasks.task import Arrays, Batch
from tasks.transcription import FAILURES, TranscriptionTask


class SpeechRecognition(TranscriptionTask):
    """Transcription of recorded speech."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = SpeechProcessor
    own_data = own_transcribed("audio", "speaker", "recordings")
    primary_metric = "wer"
    baseline_version = 2
    table_metrics = ("wer", "cer", "exact_match", "loss")
    condition_metrics = rf"wer_(long|snr_\d+)|{FAILURES}"
    averaged_over = "held_out"
    sharding_rules = (*transformer.SHARDING_RULES, *recurrent.SHARDING_RULES)
    length_multiple = 800

    @classmethod
    def check(cls, data: DataConfig, model: SpeechConfig) -> None:
        """Raises UserError if clips are normalized although the encoder processes chunks."""
        if model.chunk_size and data.normalised:
            raise UserError(
                "config.data.normalised: got True with config.model.chunk_size above 0, expected "
                "False, because a streaming encoder does not know peak and mean of the clip"
            )

    load = staticmethod(load)

    @classmethod
    def fit(
        cls, dataset: SpeechData, data: DataConfig, model: SpeechConfig, paths: Paths
    ) -> SpeechProcessor:
        """Builds the processor, and fits the mean and standard deviation of the features."""
        scale = fit_scale(dataset.splits["train"], data)
        return super().fit(dataset, data, model, paths, **scale)

    @property
    def settings(self) -> dict[str, Any]:
        """Held-out speaker of spoken digits, or a note that all speakers are in train."""
        if self.data.path is not None or self.data.name.startswith("prompts"):
            return {}
        held_out = self.data.held_out
        return {"speakers": "in_train"} if held_out == OFFICIAL else {"held_out": held_out}

    @property
    def input_unit(self) -> tuple[str, float]:
        """Unit of the lengths of inputs ("seconds"), and the duration of a sample in seconds."""
        return "seconds", 1 / self.data.features.sample_rate

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: nnx.Rngs) -> SpeechRecognizer:
        """Returns the recognizer of the config."""
        units = self.processor.tokenizer.size
        return SpeechRecognizer(self.model, self.data.features, units, rngs=rngs)

    def encode(self, model: SpeechRecognizer, batch: Batch, key: Any = None) -> EncoderOutput:
        """Encodes clips; with a key, their samples and features are augmented first.

        If a training step has two passes over a clip, both have the same speed and noise, so that
        their frames correspond. The random changes of the features differ between the passes.
        """
        samples = batch["samples"].astype(jnp.float32) / 32768
        lengths, config = batch["length"], self.data.augmentation
        if key is None:
            return model.encode(*self.processor.features(samples, lengths))
        *keys, key = jax.random.split(key, 4)
        sound, bands, hidden = (example_keys(each, batch["id"]) for each in keys)
        if "pass" in batch:
            bands, hidden = (
                jax.vmap(jax.random.fold_in)(k, batch["pass"]) for k in (bands, hidden)
            )
        samples, lengths = augment_samples(samples, lengths, sound, config)
        features, frames = self.processor.features(
            samples, lengths, lambda features: perturb_bands(features, bands, config)
        )
        features = spec_augment(features, frames, hidden, config)
        return model.encode(features, frames, key)

    # ------------------------------------------------------------------ on the host

    def explainer(self) -> SpeechExplainer:
        """Returns the explainer, which attributes predictions to frames of the recording."""
        return SpeechExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns WER by noise level, if measured, and transcripts with their alignments."""
        drawn: list[Figure] = []
        metrics = self.metrics(results.statistics, results.outputs, results.split)
        if f"wer_snr_{NOISES[0]}" in metrics:
            rates = [metrics[f"wer_snr_{noise}"] for noise in NOISES]
            drawn.append(
                Curves("WER against noise", "signal-to-noise ratio, dB", {"WER": (NOISES, rates)})
            )
        return drawn + super().figures(results)

    def input_image(self, example: Arrays) -> tuple[np.ndarray, list[str]]:
        """Returns log-mel features, high frequencies on top, and labels of the encoded frames."""
        samples = example["samples"][None].astype(np.float32) / 32768
        features, _ = self.processor.features(jnp.asarray(samples), example["length"][None])
        return np.asarray(features[0]).T[::-1], self._times(int(example["length"]))

    def _times(self, samples: int) -> list[str]:
        """Returns the labels of encoded frames: a time every half second, else an empty text."""
        config = self.data.features
        frames = config.frames(samples)
        encoded = self.model.frames(frames)
        rate = encoded / max(frames * config.hop / 1000, 1e-9)
        every = max(round(rate / 2), 1)
        return ["" if frame % every else f"{frame / rate:.1f} s" for frame in range(encoded)]

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baseline: an SVM on cepstra for digits, PocketSphinx for English prompts."""
        speech, features = self.dataset, self.data.features
        if self.data.path is not None:
            return {}
        if self.data.name == "spoken_digits":
            return {"mfcc_svm": lambda: baselines.mfcc_svm(speech, features)}
        if self.data.name == "spoken_digit_strings":
            return {"cut_and_classify": lambda: baselines.cut_and_classify(speech, features)}
        if self.data.name == "prompts_en":
            return {"pocketsphinx": lambda: baselines.pocketsphinx(speech, features.sample_rate)}
        return {}


TASK = SpeechRecognition
