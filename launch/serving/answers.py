"""Answers in the shapes of Hugging Face's inference API, by task.

https://huggingface.co/docs/inference-providers/tasks
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch.exports.reader import MASK, Item, Raw
from launch.serving.problems import invalid, known_keys

_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.ASCII)


def classes(item: Item, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns labels with scores, the best first; at most "top_k"."""
    ranked = item.answer["probabilities"].items()
    found = [{"label": label, "score": score} for label, score in ranked]
    return found[: parameters.get("top_k")]


def translation(item: Item, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the translation."""
    return [{"translation_text": item.answer["output"]}]


def generation(item: Item, parameters: Mapping[str, Any]) -> list[Any]:
    """Returns the text that a prompt begins, or the words of each [MASK]."""
    if "completion" in item.answer:
        return [{"generated_text": item.answer["input"] + item.answer["completion"]}]
    text, blanks = item.answer["input"], []
    before, *after = text.split(MASK)
    for number, words in enumerate(item.answer["blanks"]):
        left = MASK.join([before, *after[:number]])
        right = MASK.join(after[number:])
        tokens = item.outputs[number]["words"]
        blanks.append(
            [
                {
                    "score": word["probability"],
                    "token": int(token),
                    "token_str": word["word"],
                    "sequence": left + word["word"] + right,
                }
                for word, token in zip(words, tokens, strict=True)
            ][: parameters.get("top_k")]
        )
    return blanks[0] if len(blanks) == 1 else blanks


def transcription(item: Item, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the transcript of a sound."""
    return {"text": item.answer["output"]}


def image_text(item: Item, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the text of an image."""
    return [{"generated_text": item.answer["output"]}]


def objects(item: Item, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns objects with boxes in pixels."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    return [
        {
            "label": one["label"],
            "score": one["score"],
            "box": dict(zip(corners, one["box"], strict=True)),
            **({"mask": one["mask"]} if "mask" in one else {}),
        }
        for one in item.answer["objects"]
    ]


def plain(item: Item, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the answer of `launch.predict --format=json`."""
    return item.answer


# Task -> function of its shape; the answer of the reader for others.
SHAPES: dict[str, Callable[[Item, Mapping[str, Any]], Any]] = {
    "text_classification": classes,
    "image_classification": classes,
    "translation": translation,
    "language_modeling": generation,
    "speech_recognition": transcription,
    "handwriting_recognition": image_text,
    "detection": objects,
}
_RANKED = (classes, generation)


def is_ranked(task: str) -> bool:
    """Returns whether answers are ranked, so that "top_k" is supported."""
    return SHAPES.get(task) in _RANKED


def answers(task: str, items: Sequence[Item], parameters: Mapping[str, Any], many: bool) -> Any:
    """Returns the answers of a request.

    Args:
      task: name of the model's task.
      items: answered inputs.
      parameters: see `read_parameters`.
      many: whether the inputs were a list.
    """
    shape = SHAPES.get(task, plain)
    found = [shape(item, parameters) for item in items]
    if shape is translation:
        return [one for row in found for one in row]
    # Text classification has a list for each input, of a single one too.
    return found if many or task == "text_classification" else found[0]


def read_parameters(given: Any, task: str) -> dict[str, Any]:
    """Returns the parameters of a request: "top_k" of tasks with ranked answers.

    Raises:
      Problem: a parameter is unknown or has a wrong value.
    """
    if given is None:
        return {}
    known = ("top_k",) if is_ranked(task) else ()
    if not known and given:
        raise invalid("parameters: this model has none", "parameters")
    known_keys(given, known, "parameters")
    most = given.get("top_k")
    if most is None:
        return {}
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise invalid("parameters.top_k: expected an integer of at least 1", "parameters.top_k")
    return {"top_k": most}


def read_inputs(given: Any, kind: str, most: int) -> tuple[list[Raw], list[str], bool]:
    """Returns raw inputs, their names for messages, and whether they were a list.

    Args:
      given: value of "inputs": a text, or base64 for other kinds; or a list of these.
      kind: kind of a raw input.
      most: largest number of inputs.

    Raises:
      Problem: an input has another type.
    """
    many = isinstance(given, list)
    if many and not given:
        raise invalid("inputs: expected at least one", "inputs")
    if many and len(given) > most:
        raise invalid(f"inputs: got {len(given)}, expected at most {most}", "inputs")
    values = given if many else [given]
    fields = [f"inputs[{number}]" for number in range(len(values))] if many else ["inputs"]
    pairs = zip(values, fields, strict=True)
    return [_raw(value, kind, field) for value, field in pairs], fields, many


def _raw(value: Any, kind: str, field: str) -> Raw:
    if not isinstance(value, str):
        raise invalid(f"{field}: expected a string", field)
    if kind == "text":
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise invalid(f"{field}: has half of a surrogate pair", field) from None
        return value
    # The string is content, never the name of a file of the server.
    coded = value[match.end() :] if (match := _DATA_URL.match(value)) else value
    try:
        return base64.b64decode(coded.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise invalid(f"{field}: expected base64 of the content of a file", field) from None
