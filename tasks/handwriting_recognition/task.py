"""Handwriting recognition: processor and objective of the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones import convolutional, recurrent
from tasks.common.backbones.transcriber import EncoderOutput
from tasks.common.data.manifests import own_transcribed
from tasks.common.images.files import SUFFIXES
from tasks.handwriting_recognition.baselines import cut_and_classify
from tasks.handwriting_recognition.data import DataConfig, load, read_line
from tasks.handwriting_recognition.datasets.digit_lines import HEIGHT
from tasks.handwriting_recognition.explainer import HandwritingExplainer
from tasks.handwriting_recognition.model import MODEL_CONFIGS, LineRecognizer
from tasks.task import Arrays, ArraySpec, Batch, ProcessingSteps
from tasks.transcription import FAILURES, TranscriptionProcessor, TranscriptionTask

LENGTH_MULTIPLE = 16
# Number of image columns that the narrowest exported program takes.
_NARROWEST = 256


@dataclasses.dataclass(frozen=True)
class HandwritingProcessor(TranscriptionProcessor):
    """Processor that converts line images to columns, and units to texts."""

    field = "columns"
    input_spec = ArraySpec(("batch", "length", HEIGHT), "uint8", 0)
    input_kind = "the image of a line"
    input_suffixes = SUFFIXES

    def read(self, path: str) -> np.ndarray:
        """Reads the columns of an image; see `read_line`."""
        return read_line(path, self.data)

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which read line images and decode texts."""
        file = "tokenizer.json"
        line = {"rows": HEIGHT, "dark": self.data.dark_ink, "limit": self.data.max_columns}
        encode = [
            {"op": "read_image", "mode": "L", "to": "columns"},
            {"op": "line_columns", **line, "to": "columns"},
            {"op": "length", "of": "columns", "to": "length"},
        ]
        files = {file: self.tokenizer.to_json()}
        libraries = ["pillow", *self.tokenizer.libraries]
        return ProcessingSteps(
            "image", encode, [{"op": "transcript", "file": file}], files, libraries
        )

    def export_sizes(self) -> list[dict[str, int]]:
        """Returns the exported widths, each twice the previous, up to `config.data.max_columns`."""
        multiple, widths = LENGTH_MULTIPLE, [_NARROWEST]
        most = -(-self.data.max_columns // multiple) * multiple
        while widths[-1] < most:
            widths.append(2 * widths[-1])
        return [{"length": min(width, most)} for width in widths]


class HandwritingRecognition(TranscriptionTask):
    """Transcription of images of handwritten lines."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = HandwritingProcessor
    own_data = own_transcribed("image", "group", "images")
    primary_metric = "cer"
    baseline_version = 2
    table_metrics = ("cer", "exact_match", "loss")
    condition_metrics = rf"(cer|exact_match)_long|{FAILURES}"
    sharding_rules = (*recurrent.SHARDING_RULES, *convolutional.SHARDING_RULES)
    word_level, length_multiple = False, LENGTH_MULTIPLE

    load = staticmethod(load)

    def build_model(self, rngs: nnx.Rngs) -> LineRecognizer:
        """Returns the recognizer of the config."""
        return LineRecognizer(self.model, self.processor.tokenizer.size, rngs=rngs)

    def encode(self, model: LineRecognizer, batch: Batch, key: Any = None) -> EncoderOutput:
        columns = batch["columns"].astype(jnp.float32) / 255
        # Padding rows matter in training only, where they are left out of the batch statistics.
        real = None if key is None else batch["weight"] > 0
        return model.encode(columns, batch["length"], real, key)

    def explainer(self) -> HandwritingExplainer:
        """Returns the explainer, which attributes predictions to columns of the line."""
        return HandwritingExplainer(self)

    def input_image(self, example: Arrays) -> tuple[np.ndarray, list[str]]:
        """Returns the image of a line with dark ink, and empty labels for its encoded columns."""
        columns = example["columns"]
        return 255 - columns.T, [""] * self.model.frames(len(columns))

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baseline `cut_and_classify`, or none for user files."""
        if self.data.path is not None:
            return {}
        return {"cut_and_classify": lambda: cut_and_classify(self.dataset)}


TASK = HandwritingRecognition
