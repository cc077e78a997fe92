"""Predicts for what a person gives, with the best checkpoint of a run folder; needs no data.

python -m launch.predict --workdir=runs/sst2 --input="a gripping, funny film"
python -m launch.predict --workdir=runs/sst2 --input=- < lines.txt
python -m launch.predict --workdir=runs/sst2 --input_file=lines.txt --format=json

A task that looks at pictures draws what it found and where it looked, on request:

python -m launch.predict --workdir=runs/camvid --input=street.jpg --pictures=drawn

A model that writes text does so as its config.model.decoding says; --set changes that here:

python -m launch.predict --workdir=runs/shakespeare --input="ROMEO:"
    --set=model.decoding.temperature=0.5 --set=model.max_new_tokens=500
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.engine import cli, output

if TYPE_CHECKING:
    from launch.engine.config import Experiment
    from launch.engine.run import Predictor
    from tasks.figures import Figure

cli.define_workdir()
flags.DEFINE_multi_string("input", [], "One input; - reads one a line from standard input.")
flags.DEFINE_string("input_file", None, "A file of inputs, one a line, in UTF-8.")
flags.DEFINE_multi_string("set", [], "key=value of config.model.decoding, for this once.")
flags.DEFINE_string("pictures", None, "A folder to write pictures of what was found into, as PNG.")
flags.DEFINE_enum("format", "text", ["text", "json"], "Lines for people, or JSON lines.")

# What may differ from training.
_FREE = re.compile(r"model\.decoding\..+|model\.max_new_tokens|training\.evaluation_batch_size")
# Inputs that are read and answered together: bounds memory, and shows answers as they come.
PORTION = 2048
# Likewise where attention is kept too, to be drawn.
DRAWN_PORTION = 16


def predict() -> None:
    """The verb."""
    from launch.engine import run
    from tasks.common.errors import UserError

    folder = cli.workdir()
    config = run.saved_config(folder)
    if not cli.FLAGS.input and not cli.FLAGS.input_file:
        raise UserError("--input is missing; give a text, or - for standard input")
    if cli.FLAGS.pictures == "":
        raise UserError("--pictures is empty, expected a folder")
    config = _changed(config)
    cli.set_up_jax(config)
    task = run.restored_task(config, folder)
    predictor = run.Predictor(task, config, folder)
    for answers in _answered(predictor):
        for answer in answers:
            if cli.FLAGS.format == "json":
                print(output.as_json(answer))
            else:
                print(answer["text"])
        sys.stdout.flush()


def _answered(predictor: Predictor) -> Iterator[list[dict[str, Any]]]:
    """Answers to portions of the inputs; with --pictures each names its files."""
    if cli.FLAGS.pictures is None:
        yield from map(predictor, _portions(_inputs(), PORTION))
        return
    first = 1
    for portion in _portions(_inputs(), DRAWN_PORTION):
        answers, drawn = predictor.with_pictures(portion)
        files = write_pictures(Path(cli.FLAGS.pictures), portion, drawn, first)
        yield [{**answer, "pictures": names} for answer, names in zip(answers, files, strict=True)]
        first += len(portion)


def write_pictures(
    folder: Path,
    raw: Sequence[str],
    drawn: Sequence[Sequence[Figure]],
    first: int = 1,
) -> list[list[str]]:
    """Writes NUMBER-NAME.png, NUMBER-NAME-2.png, ... of each input; NAME is that of its file.

    Args:
      folder: made where it is not there.
      raw: the inputs.
      drawn: figures of each.
      first: number of the first input.

    Returns:
      The paths of each.

    Raises:
      UserError: the folder cannot be written.
    """
    from launch.engine import figures
    from tasks.common.errors import UserError

    found = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (source, pictures) in enumerate(zip(raw, drawn, strict=True), first):
            name = re.sub(r"[^\w.-]+", "_", Path(source).stem)[:60]
            stems = [
                f"{number:04d}-{name}{f'-{i}' if i > 1 else ''}"
                for i in range(1, len(pictures) + 1)
            ]
            found.append([str(folder / f"{stem}.png") for stem in stems])
            for path, figure in zip(found[-1], pictures, strict=True):
                Path(path).write_bytes(figures.png(figure))
    except OSError as error:
        raise UserError(f"--pictures={folder}: cannot be written ({error.strerror})") from None
    return found


def _changed(config: Experiment) -> Experiment:
    """The experiment with what --set says of decoding; anything else is part of what was trained.

    Raises:
      UserError: not key=value, or a key that is no matter of decoding, or that has no such value.
    """
    from launch.engine import config as configs
    from launch.engine import values as typed
    from tasks.common.errors import UserError

    values = configs.to_dict(config)
    known = [key for key in configs.flatten(values) if _FREE.fullmatch(key)]
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
        changes[key] = typed.parse(values, key, value)
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


def _portions(inputs: Iterator[str], size: int) -> Iterator[Sequence[str]]:
    portion: list[str] = []
    for text in inputs:
        portion.append(text)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


if __name__ == "__main__":
    cli.main(predict, __doc__)
