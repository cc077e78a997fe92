"""Predicts for what a person gives, with the best checkpoint of a run folder; needs no data.

python -m launch.predict --workdir=runs/sst2 --input="a gripping, funny film"
python -m launch.predict --workdir=runs/sst2 --input=- < lines.txt
python -m launch.predict --workdir=runs/sst2 --input_file=lines.txt --format=json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.engine import cli

cli.define_workdir()
flags.DEFINE_multi_string("input", [], "One input; - reads one a line from standard input.")
flags.DEFINE_string("input_file", None, "A file of inputs, one a line, in UTF-8.")
flags.DEFINE_enum("format", "text", ["text", "json"], "Lines for people, or JSON lines.")

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


def _inputs() -> Iterator[str]:
    from tasks.common.errors import UserError

    for text in cli.FLAGS.input:
        if text == "-":
            yield from _lines(sys.stdin.buffer, "standard input")
        else:
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
