"""Handwriting recognition: the task contract over `data.py` and `model.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones import convolutional, recurrent
from tasks.common.backbones.transcriber import EncoderOutput, TranscriberConfig
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import Tokenizer
from tasks.handwriting_recognition.baselines import cut_and_classify
from tasks.handwriting_recognition.data import (
    DataConfig,
    HandwritingData,
    lines_of,
    load,
    read_line,
)
from tasks.handwriting_recognition.model import MODEL_CONFIGS, LineConfig, LineRecognizer
from tasks.transcription import FAILURES, TranscriptionTask


class HandwritingRecognition(TranscriptionTask):
    """The picture of a line -> its text."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "cer"
    table_metrics = ("cer", "exact_match", "loss")
    condition_metrics = rf"(cer|exact_match)_long|{FAILURES}"
    sharding_rules = (*recurrent.SHARDING_RULES, *convolutional.SHARDING_RULES)
    field, words, multiple = "columns", False, 16

    def __init__(
        self,
        data: DataConfig,
        model: LineConfig,
        tokenizer: Tokenizer,
        lines: HandwritingData | None = None,
    ):
        """Args: configs; text to units; the splits, None where only predictions are wanted."""
        self.data, self.model, self.tokenizer, self._lines = data, model, tokenizer, lines
        if lines is not None:
            self.conditions = lines.conditions
            self._adopt(lines.splits)

    @classmethod
    def prepare(cls, data: DataConfig, model: LineConfig, paths: Paths) -> HandwritingRecognition:
        """See `Task.prepare`."""
        lines = load(data, paths)
        return cls(data, model, lines.tokenizer, lines)

    @classmethod
    def restore(
        cls, data: DataConfig, model: LineConfig, assets: Mapping[str, Any]
    ) -> HandwritingRecognition:
        """See `Task.restore`."""
        return cls(data, model, Tokenizer.from_json(assets["tokenizer"]))

    def assets(self) -> dict[str, Any]:
        """The tokenizer."""
        return {"tokenizer": self.tokenizer.to_json()}

    @property
    def fingerprint(self) -> str:
        """Of lines, texts and splits."""
        return self._lines.fingerprint

    def summary(self) -> dict[str, SplitSummary]:
        """Counts of each split, and those without a text."""
        return self._lines.summary()

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._lines.parts

    @property
    def writer(self) -> TranscriberConfig:
        """See `TranscriptionTask`."""
        return self.model.transcriber

    def build_model(self, rngs: nnx.Rngs) -> LineRecognizer:
        """See `Task.build_model`."""
        return LineRecognizer(self.model, self.tokenizer.size, rngs=rngs)

    def _encode(
        self, model: LineRecognizer, batch: Mapping[str, Any], key: Any = None
    ) -> EncoderOutput:
        columns = batch["columns"].astype(jnp.float32) / 255
        return model.encode(columns, batch["length"], batch["weight"] > 0, key)

    def _read_from(self, example: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
        """See `TranscriptionTask`: dark ink."""
        columns = example["columns"]
        return 255 - columns.T, [""] * self.model.frames(len(columns))

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Of composed lines: cut between the ink, each piece classified by itself."""
        if self.data.path is not None:
            return {}
        return {"cut_and_classify": lambda: cut_and_classify(self._lines)}

    def inputs(self, raw: Sequence[str]) -> TranscriptionExamples:
        """Paths of pictures of lines."""
        lines = []
        for path in raw:
            try:
                lines.append(read_line(path.strip(), self.data))
            except UserError as error:
                raise UserError(
                    f"input {path!r}: {error}; give the path of the picture of a line"
                ) from None
        return lines_of(lines.__getitem__, [len(line) for line in lines])


TASK = HandwritingRecognition
