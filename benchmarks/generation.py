"""Tokens per second of generation, compared with transformers in PyTorch and with CTranslate2.

python -m benchmarks.generation                    (make bench installs torch and transformers)
python -m benchmarks.generation --models=translation --batch=1 --beams=4 --rounds=3

The models are the Transformers of configs/translation.py and configs/language_modeling.py, with
batches of 1 and 32, greedy and with 4 beams. All implementations have the same float32 weights and
generate the same number of tokens, without an end token. At least `EQUAL` of the sequences must be
equal to those of transformers; rounding may decide between nearly equal scores. The time includes
the encoding of the source or the prompt.

The rounds of all implementations alternate in one process. Results are written to
benchmarks/results/cpu.json or --json.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import sys
from typing import Any

import jax
from absl import flags

from benchmarks import generators, records, report
from benchmarks.attention_backends import installed
from benchmarks.interleaved import let_torch_wait, summary, time_interleaved
from launch import cli

# Fraction of sequences that must be equal to those of transformers.
EQUAL = 0.9
# Target: maximum ratio of this project's time to that of transformers.
TARGET = 0.67


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_enum(
        "models", list(generators.CONFIGS), list(generators.CONFIGS), "Models to time."
    )
    flags.DEFINE_multi_integer("batch", [1, 32], "Batch sizes.", lower_bound=1)
    flags.DEFINE_multi_integer("beams", [1, 4], "Numbers of beams; 1 is greedy.", lower_bound=1)
    flags.DEFINE_integer("rounds", 7, "Number of rounds.", lower_bound=1)
    flags.DEFINE_float("seconds", 0.3, "Minimum seconds per timing.", lower_bound=0.0)
    flags.DEFINE_string("json", None, "Output file; benchmarks/results/cpu.json by default.")
    flags.DEFINE_bool("readme", False, "Also write README.md and attention.png.")


def run() -> None:
    """Runs the command."""
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    waiting = let_torch_wait() if installed("torch") else None
    path = pathlib.Path(values.json or records.FOLDER / "cpu.json")
    rows = []
    for name, batch, beams in itertools.product(values.models, values.batch, values.beams):
        rows.append(measure(generators.problem(name, batch), beams))
        print(show(rows[-1]), flush=True)
        records.put(path, "generation", {"rows": rows, "torch_waits": waiting})
    if values.readme:
        report.write(path.parent)


def measure(given: generators.Problem, beams: int) -> dict[str, Any]:
    """Times all implementations on one case.

    Returns:
      The row of the case: model, sizes, and "ways", the results of each implementation by name.
      These are the milliseconds of `summary`; "tokens_per_second"; "equal", the fraction of
      sequences that are equal to this project's; and "over", this project's time divided by that of
      the implementation. If an implementation is not installed, there is only "skipped".
    """
    values, threads = flags.FLAGS, os.cpu_count() or 1
    makers = {"here": functools.partial(generators.here, given, beams)}
    skipped = {}
    if installed("torch") and installed("transformers"):
        import torch

        torch.set_num_threads(threads)
        makers["transformers"] = functools.partial(generators.with_transformers, given, beams)
        if installed("ctranslate2"):
            makers["CTranslate2"] = functools.partial(
                generators.with_ctranslate2, given, beams, threads
            )
    for name in ("transformers", "CTranslate2"):
        if name not in makers:
            skipped[name] = {"skipped": "is not installed"}
    runs = {name: make() for name, make in makers.items()}
    found = {name: generate() for name, generate in runs.items()}
    expected, B = found["here"], len(given.tokens)
    equal = {name: float((one == expected).all(axis=1).mean()) for name, one in found.items()}
    if equal.get("transformers", 1.0) < EQUAL:
        sys.exit(
            f"{given.name}, batch {B}, {beams} beams: only {equal['transformers']:.0%} of the "
            "sequences are equal to those of transformers"
        )
    timed = summary(time_interleaved(runs, rounds=values.rounds, least=values.seconds), "here")
    for name, one in timed.items():
        one["tokens_per_second"] = round(1e3 * B * given.new / one["milliseconds"])
        one["equal"] = round(equal[name], 3)
        low, high = one.pop("ratio_range")
        one["over"] = round(1 / one.pop("ratio"), 3)
        one["over_range"] = [round(1 / high, 3), round(1 / low, 3)]
    return {
        "model": given.name,
        "batch": B,
        "beams": beams,
        "lengths": [given.tokens.shape[1], given.new],
        "target": TARGET,
        "ways": timed | skipped,
    }


def show(row: dict[str, Any]) -> str:
    """Formats a row for the terminal."""
    method = "greedy" if row["beams"] == 1 else f"{row['beams']} beams"
    lines = [f"{row['model']}, batch {row['batch']}, {method}"]
    for name, one in row["ways"].items():
        if "skipped" in one:
            lines.append(f"{name:>14}: {one['skipped']}")
            continue
        ratio = "" if name == "here" else f"; this project takes {one['over']:.2f} times as long"
        lines.append(
            f"{name:>14}: {one['tokens_per_second']:,} tokens/s, {one['milliseconds']:.4g} ms"
            f"{ratio}, {one['equal']:.0%} equal"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
