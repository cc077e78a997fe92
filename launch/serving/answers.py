"""Conversion of answers to the response format that Hugging Face's inference API has for a task.

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
    """Returns at most "top_k" labels with their probabilities as scores, best first."""
    ranked = item.answer["probabilities"].items()
    found = [{"label": label, "score": score} for label, score in ranked]
    return found[: parameters.get("top_k")]


def translation(item: Item, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the translation in the format of the task "translation"."""
    return [{"translation_text": item.answer["output"]}]


def generation(item: Item, parameters: Mapping[str, Any]) -> list[Any]:
    """Returns the prompt and its completion as one text, or the best words for each [MASK]."""
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
    """Returns the transcript in the format of the task "automatic-speech-recognition"."""
    return {"text": item.answer["output"]}


def image_text(item: Item, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the text in the format of the task "image-to-text"."""
    return [{"generated_text": item.answer["output"]}]


def objects(item: Item, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns label, score, box in pixels and, if available, mask of each object."""
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
    """Returns the answer unchanged, as printed by `launch.predict --format=json`."""
    return item.answer


# Task -> function that converts an answer; answers of other tasks are returned unchanged.
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
    """Returns whether answers of a task are ranked lists, so that "top_k" is supported."""
    return SHAPES.get(task) in _RANKED


def answers(task: str, items: Sequence[Item], parameters: Mapping[str, Any], many: bool) -> Any:
    """Returns the body of a response with the answers to all inputs of a request.

    Args:
      task: name of the model's task.
      items: inputs with their answers.
      parameters: parameters of the request, see `read_parameters`.
      many: whether "inputs" was a list; if not, most tasks return a single answer.
    """
    shape = SHAPES.get(task, plain)
    found = [shape(item, parameters) for item in items]
    if shape is translation:
        return [one for row in found for one in row]
    # Text classification returns a list with an entry for each input, even for a single input.
    return found if many or task == "text_classification" else found[0]


def read_parameters(given: Any, task: str) -> dict[str, Any]:
    """Checks the parameters of a request: only "top_k", for tasks with ranked answers.

    Args:
      given: value of "parameters"; None if missing.
      task: name of the model's task.

    Raises:
      Problem: a parameter is unknown or has a wrong value.
    """
    if given is None:
        return {}
    known = ("top_k",) if is_ranked(task) else ()
    if not known and given:
        raise invalid("parameters: not supported by this model; leave them out", "parameters")
    known_keys(given, known, "parameters")
    most = given.get("top_k")
    if most is None:
        return {}
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise invalid("parameters.top_k: expected an integer of at least 1", "parameters.top_k")
    return {"top_k": most}


def read_inputs(given: Any, kind: str, most: int) -> tuple[list[Raw], list[str], bool]:
    """Reads the value of "inputs" in a request.

    Args:
      given: value of "inputs": an input or a list of inputs. An input is a text for the kind
        "text", or the content of a file in base64.
      kind: kind of a raw input: "text", "image", "sound" or "table".
      most: maximum number of inputs.

    Returns:
      Raw inputs, their names for messages, and whether "inputs" was a list.

    Raises:
      Problem: an input has a wrong type, or there are too many inputs or none.
    """
    many = isinstance(given, list)
    if many and not given:
        raise invalid("inputs: got an empty list, expected at least one input", "inputs")
    if many and len(given) > most:
        raise invalid(f"inputs: got {len(given)} inputs, expected at most {most}", "inputs")
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
            raise invalid(
                f"{field}: has half of a surrogate pair, expected Unicode text", field
            ) from None
        return value
    # The string is content, never the name of a file of the server.
    coded = value[match.end() :] if (match := _DATA_URL.match(value)) else value
    try:
        return base64.b64decode(coded.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise invalid(f"{field}: expected the content of a file in base64", field) from None
