"""Names of tasks on the Hugging Face hub, for model cards and the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PIPELINES = {
    "text_classification": "text-classification",
    "language_modeling": "text-generation",
    "translation": "translation",
    "image_classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "forecasting": "time-series-forecasting",
    "speech_recognition": "automatic-speech-recognition",
    "handwriting_recognition": "image-to-text",
}


def pipeline_of(signature: Mapping[str, Any]) -> str | None:
    """Returns the name of an exported task on the hub; None for a task without such a name.

    Args:
      signature: content of signature.json.
    """
    if any(step["op"] == "fill_blanks" for step in signature["decode"]):
        return "fill-mask"
    return _PIPELINES.get(signature["task"])
