"""Timings of the kernels on this machine, from which "auto" selects a kernel.

python -m benchmarks.tune                      # all classes of options, minutes
python -m benchmarks.tune --options=decode --seconds=0.2

All supported kernels of the registry are timed, forward and forward + backward, at a few sizes, in
single and half precision. The results replace the entries of this kind of device in
attention/kernels/timings.json with the same sizes and options; other entries stay.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from benchmarks import records
from benchmarks.attention_backends import house_backends
from benchmarks.attention_cases import Case, arrays
from benchmarks.interleaved import time_interleaved
from launch import cli
from tasks.common.errors import UserError

CLASSES = ("dense", "causal", "sparse", "array", "bias", "decode")
DTYPES = {"float32": "single", "bfloat16": "half"}
LIMIT = 4e9
"""Bytes of temporaries beyond which a kernel is not measured, and so never selected."""

# B, N, T, H of common models. "auto" uses the nearest entry for other sizes.
SIZES = ((8, 8, 32, 64), (8, 8, 128, 64), (4, 8, 512, 64), (1, 8, 2048, 64), (4, 8, 512, 128))
LONG = (1, 8, 8192, 64)
DECODES = ((1, 8, 512, 64), (8, 8, 512, 64), (1, 8, 4096, 64), (8, 8, 4096, 64))


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_enum(
        "options", [], CLASSES, "Classes of options to measure; all by default."
    )
    flags.DEFINE_integer("rounds", 3, "Number of rounds.", lower_bound=1)
    flags.DEFINE_float("seconds", 0.05, "Minimum seconds per timing.", lower_bound=0.0)
    flags.DEFINE_integer("longest", 8192, "Largest length.", lower_bound=1)
    flags.DEFINE_string("timings", None, "Output file; attention/kernels/timings.json by default.")


def run() -> None:
    """Runs the command."""
    from attention.kernels import dispatch

    values = flags.FLAGS
    path = pathlib.Path(values.timings or dispatch.TIMINGS)
    wanted = [
        (options, case)
        for options, case in grid()
        if options in (values.options or CLASSES) and case.keys <= values.longest
    ]
    if not wanted:
        raise UserError(f"--longest={values.longest}: no sizes remain; raise --longest")
    entries = []
    for options, case in wanted:
        entry = measure(options, case, values.rounds, values.seconds)
        if entry["forward"]:
            entries.append(entry)
            write(path, dispatch.device_kind(), entries)
            shown = entry["both"] or entry["forward"]
            ranked = sorted(shown.items(), key=lambda one: one[1])
            times = ", ".join(f"{name} {number:g} ms" for name, number in ranked)
            print(f"{case.label}: {times}", flush=True)


def grid() -> Iterator[tuple[str, Case]]:
    """Yields the class of options and the case of each entry that can be measured."""
    for dtype in DTYPES:
        for options in CLASSES[:-1]:
            for batch, heads, length, size in (*SIZES, LONG):
                if options in ("array", "bias") and length > 2048:
                    continue
                how = {
                    "dense": {},
                    "causal": {"causal": True},
                    "sparse": {"causal": True, "window": min(256, length // 4)},
                    "array": {"scattered": True},
                    "bias": {"bias": "constant"},
                }[options]
                yield options, Case(options, batch, heads, length, size, dtype=dtype, **how)
        for batch, heads, keys, size in DECODES:
            yield (
                "decode",
                Case(
                    *("decode", batch, heads, 1, size),
                    keys=keys,
                    dtype=dtype,
                    lengths=True,
                    cached=True,
                    passes=("forward",),
                ),
            )


def measure(options: str, case: Case, rounds: int, least: float) -> dict[str, Any]:
    """Measures one entry of timings.json.

    The entry has no times of kernels that do not support the case.
    """
    drawn, found = arrays(case), {"forward": {}, "both": {}}
    for passed in case.passes:
        runs = {}
        for name, make in house_backends().items():
            try:
                runs[name] = make(case, passed, drawn, LIMIT).run
            except NotImplementedError:
                continue
        for name, times in time_interleaved(runs, rounds=rounds, least=least).items():
            found[passed][name] = float(f"{1e3 * statistics.median(times):.3g}")
    return {
        "batch": case.batch,
        "heads": case.heads,
        "queries": case.queries,
        "keys": case.keys,
        "size": case.size,
        "dtype": DTYPES[case.dtype],
        "options": options,
        **found,
    }


def write(path: pathlib.Path, kind: str, entries: list[dict[str, Any]]) -> None:
    """Writes entries to a file of timings.

    They replace the entries of this kind of device with the same sizes and options.
    """
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = {_key(entry): entry for entry in entries}
    kept = {_key(entry): entry for entry in whole.get(kind, {}).get("entries", ())}
    machine = records.machine()
    whole[kind] = {
        "measured": {name: machine[name] for name in ("processor", "cores", "versions")},
        "entries": sorted((kept | new).values(), key=_key),
    }
    path.write_text(_text(whole), encoding="utf-8")


def _key(entry: Mapping[str, Any]) -> tuple:
    return tuple(
        entry[name] for name in ("options", "dtype", "queries", "keys", "size", "batch", "heads")
    )


def _text(whole: Mapping[str, Any]) -> str:
    """Returns the timings as JSON with one line per entry, so that diffs are readable."""
    devices = []
    for kind, device in sorted(whole.items()):
        entries = ",\n".join(f"   {json.dumps(entry)}" for entry in device["entries"])
        measured = f'  "measured": {json.dumps(device["measured"])}'
        inner = f'{measured},\n  "entries": [\n{entries}\n  ]'
        devices.append(f" {json.dumps(kind)}: {{\n{inner}\n }}")
    return "{\n" + ",\n".join(devices) + "\n}\n"


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
