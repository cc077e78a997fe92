"""Growth of time and memory of train steps with one size of the data at a time.

python -m benchmarks.scaling
python -m benchmarks.scaling --cases=items --cases=image

Each point is a process of its own with random data. Its time is the median of steps after the
first; its memory is the growth of the resident set from before the model is built to the peak in
these steps. Exponents are fitted by least squares on logarithms, over the larger half of the sizes,
because constant costs dominate at small sizes. The largest sizes of some cases have a target for
the peak of the whole process. Results are written to benchmarks/results/cpu.json or --json.
"""

from __future__ import annotations

import importlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from benchmarks import records, report
from benchmarks.comparison import grown_by, resident_peak
from benchmarks.interleaved import slope
from benchmarks.steps import MODELS
from launch import cli
from tasks.common.errors import UserError

Step = Callable[[int], float]


class Case(NamedTuple):
    """A model with one size that varies.

    Attributes:
      what: the model and its fixed sizes, as a text for the report.
      size: name of the size that varies.
      model: name of the module of `benchmarks.steps`.
      sizes: values of the size.
      build: function that takes the module and a size, and returns a function that takes steps.
      target: largest peak of the process in bytes at the largest size; None for no target.
    """

    what: str
    size: str
    model: str
    sizes: tuple[int, ...]
    build: Callable[[Any, int], Step]
    target: float | None = None


def _texts(module: Any, batch_size: int, length: int, mixer: str) -> Step:
    config = _changed(
        module,
        {"model.mixer": mixer, "model.max_length": length, "data.text.max_length": length},
    )
    return module.jax_step(config, module.batches(batch_size, length, count=1))


def _of_length(mixer: str) -> Callable[[Any, int], Step]:
    return lambda module, length: _texts(module, 1, length, mixer)


def _of_batch(module: Any, batch_size: int) -> Step:
    return module.jax_step(*module.setup(batch_size))


def _of_vocabulary(module: Any, size: int) -> Step:
    module.CHARACTERS = size
    return module.jax_step(*module.setup())


def _of_items(module: Any, items: int) -> Step:
    from launch.engine import config as configs

    module.ITEMS = items
    config, part = module.setup()
    # The loss of configs/recommendation.py for large catalogs.
    return module.jax_step(configs.override(config, {"model.objective.name": "gbce"}), part)


def _of_image(module: Any, side: int) -> Step:
    from launch.engine import config as configs

    config, _ = module.setup(2)
    config = configs.override(config, {"data.image_size": (side, side)})
    return module.jax_step(config, module.batches(config, count=1))


def _changed(module: Any, changes: Mapping[str, Any]) -> Any:
    from benchmarks.comparison import experiment
    from launch.engine import config as configs

    return configs.override(experiment(module.CONFIG), changes)


CASES = {
    "length": Case(
        "Transformer classifier, batch 1", "tokens", "transformer",
        (256, 1024, 4096, 16_384), _of_length("dot_product"),
    ),
    "length_linear": Case(
        "Transformer classifier with linear attention, batch 1", "tokens", "transformer",
        (1_000, 10_000, 100_000), _of_length("linear"), 8e9,
    ),
    "length_window": Case(
        "Transformer classifier with a sliding window, batch 1", "tokens", "transformer",
        (1_000, 10_000, 100_000), _of_length("sliding_window"), 8e9,
    ),
    "batch": Case(
        "Transformer classifier, 32 tokens", "texts", "transformer", (16, 64, 256, 1024), _of_batch
    ),
    "vocabulary": Case(
        "Language model, batch 12, 64 tokens", "vocabulary", "language_model",
        (100, 1_000, 10_000, 100_000), _of_vocabulary,
    ),
    "items": Case(
        "SASRec with gBCE, batch 32, 50 events", "items", "sasrec",
        (1_000, 10_000, 100_000, 1_000_000), _of_items, 8e9,
    ),
    "image": Case(
        "U-Net, batch 2", "pixels per side", "unet", (64, 128, 256, 512), _of_image
    ),
}  # fmt: skip


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_enum("cases", list(CASES), list(CASES), "Cases to measure.")
    flags.DEFINE_integer("largest", None, "Largest size; larger ones are left out.", lower_bound=1)
    flags.DEFINE_float("seconds", 2.0, "Minimum seconds per timing.", lower_bound=0.0)
    records.define_output()
    flags.DEFINE_enum("only", None, list(CASES), "Print one point of a case as JSON.")
    flags.DEFINE_integer("size", None, "Size to use with --only.", lower_bound=1)


def run() -> None:
    """Runs the command."""
    values = flags.FLAGS
    if values.only:
        if values.size is None:
            raise UserError(f"--only={values.only}: needs --size")
        print(json.dumps(point(CASES[values.only], values.size)))
        return
    path = records.output()
    for name in values.cases:
        row = measure(name)
        print(show(row), flush=True)
        records.put_row(path, "scaling", "case", row, CASES)
    if values.readme:
        report.write(path.parent)


def measure(name: str) -> dict[str, Any]:
    """Measures all sizes of a case, each in a process of its own.

    Returns:
      The row of the case, with the "points" and, for two or more sizes, the "exponents".
    """
    case, values = CASES[name], flags.FLAGS
    points = []
    for size in case.sizes:
        if values.largest is not None and size > values.largest:
            continue
        options = [f"--only={name}", f"--size={size}", f"--seconds={values.seconds}"]
        points.append(records.alone("benchmarks.scaling", *options))
    row = {"case": name, "what": case.what, "size": case.size, "target": case.target}
    return row | {"points": points, "exponents": exponents(points)}


def point(case: Case, size: int) -> dict[str, Any]:
    """Takes steps of one size in this process.

    Returns:
      The "size", the median "milliseconds" of a step, the bytes of memory by which the process has
      "grown", and the bytes of its "peak".
    """
    module = importlib.import_module(f"benchmarks.steps.{case.model}")
    importlib.import_module(MODELS[case.model].task)
    seconds: list[float] = []

    def built() -> Step:
        step = case.build(module, size)
        step(1)
        return step

    def stepped(step: Step) -> None:
        while len(seconds) < 3 or sum(seconds) < flags.FLAGS.seconds:
            began = time.perf_counter()
            step(1)
            seconds.append(time.perf_counter() - began)

    grown = grown_by(built, stepped)
    milliseconds = round(1e3 * statistics.median(seconds), 3)
    return {"size": size, "milliseconds": milliseconds, "grown": grown, "peak": resident_peak()}


def exponents(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fits the exponents of time and memory over the larger half of the sizes.

    Returns:
      The exponents "time" and "memory"; empty for fewer than two sizes.
    """
    last = points[-max(2, (len(points) + 1) // 2) :]
    if len(last) < 2:
        return {}
    sizes = [one["size"] for one in last]
    return {
        name: round(slope(sizes, [one[field] for one in last]), 2)
        for name, field in (("time", "milliseconds"), ("memory", "grown"))
    }


def show(row: Mapping[str, Any]) -> str:
    """Formats a row for the terminal."""
    lines = [f"{row['case']}: {row['what']}"]
    for one in row["points"]:
        lines.append(
            f"{one['size']:>12,} {row['size']}: {one['milliseconds']:,.3g} ms, "
            f"{one['grown'] / 1e6:,.0f} MB, process {one['peak'] / 1e6:,.0f} MB"
        )
    grows = ", ".join(f"{name} ~ size^{found}" for name, found in row["exponents"].items())
    return "\n".join([*lines, grows] if grows else lines)


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
