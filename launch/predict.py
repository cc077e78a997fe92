"""Predicts for what a person gives, with the best checkpoint of a run folder; needs no data.

python -m launch.predict --workdir=runs/sst2 --input="a gripping, funny film"
python -m launch.predict --workdir=runs/sst2 --input=- < lines.txt
python -m launch.predict --workdir=runs/sst2 --input_file=lines.txt --format=json
python -m launch.predict --workdir=runs/mine --input_file=new.csv > predicted.csv

Of a table the column that the run was trained on is read; its rows are printed as CSV with the
predictions beside, or with --format=json under "row".

A task that looks at pictures draws what it found and where it looked, on request:

python -m launch.predict --workdir=runs/camvid --input=street.jpg --figures=drawn

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

from launch import cli

if TYPE_CHECKING:
    from launch.engine.config import Experiment
    from launch.engine.inputs import Input
    from launch.engine.predictor import Predictor
    from tasks.figures import Figure

cli.define_workdir()
flags.DEFINE_multi_string("input", [], "One input; - reads one a line from standard input.")
flags.DEFINE_string(
    "input_file",
    None,
    "A file of inputs, one a line; or a table (.csv, .tsv, .jsonl) with the column that the run "
    "was trained on, whose rows are written with the predictions beside.",
)
flags.DEFINE_multi_string("set", [], "key=value of config.model.decoding, for this once.")
flags.DEFINE_string("figures", None, "Directory for figures of the predictions, as PNG files.")
flags.DEFINE_string("pictures", None, "Former name of --figures.")
flags.DEFINE_enum("format", "text", ["text", "json"], "Lines for people, or JSON lines.")

# What may differ from training.
_FREE = re.compile(r"model\.decoding\..+|model\.max_new_tokens|training\.evaluation_batch_size")
# Inputs that are read and answered together: bounds memory, and shows answers as they come.
PORTION = 2048
# Likewise where attention is kept too, to be drawn.
DRAWN_PORTION = 16


def predict() -> None:
    """The verb."""
    from launch.engine import inputs
    from launch.runs import directory
    from tasks.common.errors import UserError

    folder = cli.workdir()
    config = directory.saved_config(folder)
    if not cli.FLAGS.input and not cli.FLAGS.input_file:
        raise UserError("--input is missing; give a text, or - for standard input")
    if cli.FLAGS.pictures is not None:
        print("--pictures is now --figures", file=sys.stderr)
        cli.FLAGS.figures = cli.FLAGS.pictures
    if cli.FLAGS.figures == "":
        raise UserError("--figures is empty, expected a directory")
    config = _changed(config)
    cli.set_up_jax(config)
    task = directory.restored_task(config, folder)
    predictor = directory.load_predictor(task, config, folder)
    given = inputs.read_inputs(cli.FLAGS.input, cli.FLAGS.input_file, task)
    written = inputs.Answers(cli.FLAGS.format)
    for portion, answers in _answered(predictor, given):
        written.write(portion, answers)


def _answered(
    predictor: Predictor, given: Iterator[Input]
) -> Iterator[tuple[Sequence[Input], list[dict[str, Any]]]]:
    """Yields portions of the inputs and their answers; with --figures each names its files."""
    if cli.FLAGS.figures is None:
        for portion in _portions(given, PORTION):
            yield portion, predictor([one.raw for one in portion])
        return
    first = 1
    for portion in _portions(given, DRAWN_PORTION):
        raw = [one.raw for one in portion]
        answers, drawn = predictor.with_figures(raw)
        files = write_figures(Path(cli.FLAGS.figures), raw, drawn, first)
        key = "figures" if cli.FLAGS.pictures is None else "pictures"
        named = zip(answers, files, strict=True)
        yield portion, [{**answer, key: names} for answer, names in named]
        first += len(portion)


def write_figures(
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
    from launch.reporting import figures
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
        raise UserError(f"--figures={folder}: cannot be written ({error.strerror})") from None
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
                f"--set={setting}: write key=value{configs.did_you_mean(key, known)}; keys that a "
                f"prediction may change: {there_are}"
            )
        changes[key] = typed.parse(values, key, value)
    return configs.override(config, changes) if changes else config


def _portions(inputs: Iterator[Input], size: int) -> Iterator[Sequence[Input]]:
    portion: list[Input] = []
    for one in inputs:
        portion.append(one)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


if __name__ == "__main__":
    cli.main(predict, __doc__)
