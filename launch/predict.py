"""Predicts for what a person gives, with the best checkpoint of a run folder; needs no data.

python -m launch.predict --workdir=runs/sst2 --input="a gripping, funny film"
python -m launch.predict --workdir=runs/sst2 --input=- < lines.txt
python -m launch.predict --workdir=runs/sst2 --input_file=lines.txt --format=json

A model that writes text does so as its config.model.decoding says; --set changes that here:

python -m launch.predict --workdir=runs/shakespeare --input="ROMEO:"
    --set=model.decoding.temperature=0.5 --set=model.max_new_tokens=500
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.engine import cli

if TYPE_CHECKING:
    from launch.engine.config import Experiment

cli.define_workdir()
flags.DEFINE_multi_string("input", [], "One input; - reads one a line from standard input.")
flags.DEFINE_string("input_file", None, "A file of inputs, one a line, in UTF-8.")
flags.DEFINE_multi_string("set", [], "key=value of config.model.decoding, for this once.")
flags.DEFINE_enum("format", "text", ["text", "json"], "Lines for people, or JSON lines.")

# What may differ from training.
_FREE = re.compile(r"model\.decoding\..+|model\.max_new_tokens|training\.evaluation_batch_size")
# Inputs that are read and answered together: bounds memory, and shows answers as they come.
PORTION = 2048


def predict() -> None:
    """The verb."""
    from launch.engine import run
    from tasks.common.errors import UserError

    folder = cli.workdir()
    config = run.saved_config(folder)
    if not cli.FLAGS.input and not cli.FLAGS.input_file:
        raise UserError("--input is missing; give a text, or - for standard input")
    config = _changed(config)
    cli.set_up_jax(config)
    task = run.restored_task(config, folder)
    predictor = run.Predictor(task, config, folder)
    for portion in _portions(_inputs()):
        for answer in predictor(portion):
            if cli.FLAGS.format == "json":
                print(json.dumps(answer, ensure_ascii=False))
            else:
                print(answer["text"])
        sys.stdout.flush()


def _changed(config: Experiment) -> Experiment:
    """The experiment with what --set says of decoding; anything else is part of what was trained.

    Raises:
      UserError: not key=value, or a key that is no matter of decoding, or that has no such value.
    """
    from launch.engine import config as configs
    from launch.engine.ablation import literal
    from tasks.common.errors import UserError

    known = [key for key in configs.flatten(configs.to_dict(config)) if _FREE.fullmatch(key)]
    changes = {}
    for setting in cli.FLAGS.set:
        key, equals, value = setting.partition("=")
        key = key.removeprefix("config.")
        if not equals or key not in known:
            there_are = ", ".join(known) or "none for this model"
            raise UserError(
                f"--set={setting}: write key=value{configs.nearest(key, known)}; keys that a "
                f"prediction may change: {there_are}"
            )
        changes[key] = literal(config, key, value)
    return configs.override(config, changes) if changes else config


def _inputs() -> Iterator[str]:
    from tasks.common.errors import UserError

    for text in cli.FLAGS.input:
        if text == "-":
            yield from _lines(sys.stdin.buffer, "standard input")
        else:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(f"--input={text!r}: is not UTF-8") from None
            yield text
    if cli.FLAGS.input_file:
        path = Path(cli.FLAGS.input_file)
        try:
            with path.open("rb") as file:
                yield from _lines(file, str(path))
        except OSError as error:
            raise UserError(f"--input_file={path}: {error.strerror}") from None


def _lines(file: Any, name: str) -> Iterator[str]:
    from tasks.common.errors import UserError

    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number} is not UTF-8; convert it first") from None


def _portions(inputs: Iterator[str]) -> Iterator[Sequence[str]]:
    portion: list[str] = []
    for text in inputs:
        portion.append(text)
        if len(portion) == PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


if __name__ == "__main__":
    cli.main(predict, __doc__)
