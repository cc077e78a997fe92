"""Comparison of attention with other libraries: time relative to PyTorch, memory, growth over T.

python -m benchmarks.attention                      (make bench installs torch)
python -m benchmarks.attention --suite=gpu
python -m benchmarks.attention --cases='decode|window' --rounds=9

Backends are all supported kernels of the registry, "auto", jax.nn and flax.linen, PyTorch's
scaled_dot_product_attention and flex_attention, and tokamax if it is installed. Cases and their
target ratios are in `benchmarks.attention_cases`. First the output and gradients of each backend
are compared with the reference on a few queries; backends that differ are not timed. Then the
rounds of the other backends alternate in one process with all cores (`benchmarks.interleaved`).
Peak memory is that of a separate process per backend.

Results are written to benchmarks/results/SUITE.json or --json, with --readme also to README.md and
its figure (`benchmarks.report`).
"""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from benchmarks import records, report
from benchmarks.attention_backends import TORCH, Prepared, backends, installed
from benchmarks.attention_cases import Case, arrays, cases, structured_mask
from benchmarks.comparison import grown_by
from benchmarks.interleaved import let_torch_wait, slope, summary, time_interleaved
from launch import cli
from tasks.common.errors import UserError

# Bytes of temporaries that a backend may use. At 8,192 positions, the weights of 8 heads alone are
# 2 GB; backends that store them would take most of the time of a run.
LIMIT = 4e9
# Number of queries that are compared with the reference.
ROWS = 64
# Maximum difference from the reference, relative to its largest number. On GPUs the tolerance of
# float32 is larger, because they multiply float32 matrices in TF32.
TOLERANCES = {"float32": 2e-4, "bfloat16": 3e-2}
GPU_FLOAT32 = 5e-3

MEMORY = Case("causal", 1, 8, 8192, causal=True)


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_enum("suite", "cpu", ["cpu", "gpu"], "Devices to measure on.")
    flags.DEFINE_string("json", None, "Output file; benchmarks/results/SUITE.json by default.")
    flags.DEFINE_string(
        "cases", "", "Regular expression that selects cases by name, sizes and dtype."
    )
    flags.DEFINE_integer("rounds", 5, "Number of rounds per case.", lower_bound=1)
    flags.DEFINE_float("shrink", 1.0, "Divisor of all lengths, for a quick run.", lower_bound=1.0)
    flags.DEFINE_bool("memory", True, "Also measure peak memory.")
    flags.DEFINE_bool("readme", False, "Also write README.md and attention.png.")
    flags.DEFINE_string("only", None, "Print the peak memory of one backend, in bytes.")


def run() -> None:
    """Runs the command."""
    values = flags.FLAGS
    try:
        wanted = [case for case in map(_shrunk, cases()) if re.search(values.cases, case.label)]
    except re.error as error:
        raise UserError(f"--cases={values.cases}: expected a regular expression: {error}") from None
    if not wanted:
        names = ", ".join(dict.fromkeys(case.name for case in cases()))
        raise UserError(f"--cases={values.cases}: expected a match with one of {names}")
    _take_devices(values.suite)
    if values.only:
        _print_memory(values.only)
        return
    waiting = let_torch_wait() if installed("torch") else None
    known = backends(values.suite)
    if TORCH not in known:
        print("torch is not installed: no ratios and no torch backends")
    path = pathlib.Path(values.json or records.FOLDER / f"{values.suite}.json")
    rows: list[dict[str, Any]] = []
    for case in wanted:
        for passed in case.passes:
            rows.append(measure(case, passed, known, values.rounds, values.suite))
            print(report.show(rows[-1]), flush=True)
            gc.collect()
            section = {"rows": rows, "growth": growth(rows), "torch_waits": waiting}
            records.put(path, "attention", section)
    if values.memory:
        records.put(path, "memory", {"case": _shrunk(MEMORY).label, "rows": memory(known)})
    if values.readme:
        report.write(path.parent)


def _take_devices(suite: str) -> None:
    """Selects the platform of the suite for JAX."""
    import jax

    if suite == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        found = jax.default_backend()
        raise UserError(f"--suite=gpu: JAX found only {found}, expected a GPU; use --suite=cpu")


def measure(
    case: Case, passed: str, known: Mapping[str, Any], rounds: int, suite: str
) -> dict[str, Any]:
    """Checks and times all backends on one pass of a case.

    Args:
      case: the case.
      passed: the pass, "forward" or "both".
      known: functions that prepare the backends, by name, as returned by `backends`.
      rounds: number of rounds.
      suite: "cpu" or "gpu".

    Returns:
      The row of the case: its description, the "target" ratio, and "ways", a dict by backend. For a
      timed backend, it contains the items of `summary`, the "difference" from the reference and the
      "temporaries"; for any other backend, the reason "skipped". "auto" also has the selected
      "kernel" and the reason "why".
    """
    drawn = arrays(case)
    ready: dict[str, Prepared] = {}
    found: dict[str, dict[str, Any]] = {}
    expected, cotangent, rows = _expected(case, passed, drawn)
    tolerance = TOLERANCES[case.dtype]
    if suite == "gpu" and case.dtype == "float32":
        tolerance = GPU_FLOAT32
    for name, make in known.items():
        try:
            prepared = make(case, passed, drawn, LIMIT)
            off = _difference(prepared.result(cotangent), expected, rows, passed)
        except NotImplementedError as error:
            found[name] = {"skipped": _line(error)}
            continue
        except Exception as error:
            # A failing library must not abort the others.
            found[name] = {"skipped": f"failed: {type(error).__name__}: {_line(error)}"}
            continue
        if not off <= tolerance:
            found[name] = {
                "skipped": f"got an error of {off:.1e}, expected at most {tolerance:.0e}"
            }
            continue
        ready[name] = prepared
        found[name] = {"difference": float(f"{off:.1e}")}
        if prepared.temporaries is not None:
            found[name]["temporaries"] = prepared.temporaries
    times = time_interleaved({name: one.run for name, one in ready.items()}, rounds=rounds)
    for name, one in summary(times, TORCH).items():
        found[name] |= one
    # "auto" is one of the kernels and is not measured twice.
    auto = chosen(case, drawn)
    found = {"auto": {"kernel": auto.name, "why": auto.reason, **found.get(auto.name, {})}, **found}
    return {
        "case": case.name,
        "label": case.label,
        "sizes": [case.batch, case.heads, case.key_value_heads, case.queries, case.keys, case.size],
        "dtype": case.dtype,
        "pass": passed,
        "target": case.targets.get(passed),
        "grows": case.growth,
        "ways": found,
    }


def chosen(case: Case, drawn: Mapping[str, Any]) -> Any:
    """Returns the `KernelChoice` that "auto" makes for a case and its arrays."""
    import jax

    from attention import explain_choice

    T, S = case.queries, case.keys
    query = jax.ShapeDtypeStruct((case.batch, T, case.heads, case.size), case.dtype)
    key = jax.ShapeDtypeStruct((case.batch, S, case.key_value_heads, case.size), case.dtype)
    mask = structured_mask(case, drawn["lengths"], drawn["mask"])
    return explain_choice(query, key, key, mask=mask, bias=drawn["bias"])


def growth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fits the exponents with which time and temporaries grow with T, for each backend."""
    found = {}
    for name, measured in report.points(rows).items():
        measured.sort()
        if len(measured) < 3:
            continue
        sizes, times, bytes_ = zip(*measured, strict=True)
        found[name] = {"lengths": list(sizes), "time": round(slope(sizes, times), 2)}
        if all(bytes_):
            found[name]["memory"] = round(slope(sizes, bytes_), 2)
    return found


def memory(known: Mapping[str, Any]) -> dict[str, Any]:
    """Measures for each backend the peak memory of a process and the temporaries of its program."""
    case, found = _shrunk(MEMORY), {}
    drawn = arrays(case)
    for name, make in known.items():
        try:
            temporaries = make(case, "both", drawn, LIMIT).temporaries
        except Exception as error:
            found[name] = {"skipped": _line(error)}
            continue
        values = flags.FLAGS
        if values.suite == "gpu":
            # The memory of the process does not include that of the GPU.
            found[name] = {"grown": None, "temporaries": temporaries}
            continue
        options = [f"--suite={values.suite}", f"--shrink={values.shrink}", f"--only={name}"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.attention", *options],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            found[name] = {"skipped": done.stderr.strip().splitlines()[-1][:120]}
            continue
        found[name] = {"grown": int(done.stdout.split()[-1]), "temporaries": temporaries}
        print(f"{name:>14}: {found[name]['grown'] / 1e6:,.0f} MB at the peak", flush=True)
    auto = chosen(case, drawn).name
    return {"auto": {"kernel": auto, **found[auto]}, **found}


def _print_memory(name: str) -> None:
    """Prints the memory growth of this process during one call of a backend, after compilation."""
    case = _shrunk(MEMORY)
    prepared = backends(flags.FLAGS.suite)[name](case, "both", arrays(case), LIMIT)
    # The input arrays exist already, so they do not count.
    print(grown_by(lambda: None, lambda _: prepared.run()))


def _expected(case: Case, passed: str, drawn: Mapping[str, Any]) -> tuple[list, Any, Any]:
    """Computes the expected results of a few queries by the reference.

    Returns:
      The output, or the gradients of query, key, value and a learned bias; the cotangent, which is
      0 for other queries; and the indices of the queries.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from attention import attend, masks

    rows = np.unique(np.linspace(0, case.queries - 1, ROWS).astype(int))
    mask, bias = drawn["mask"], drawn["bias"]
    chosen = None if mask is None else masks.dense(jnp.asarray(mask[:, :, rows]))
    cotangent = np.zeros_like(drawn["cotangent"])
    cotangent[:, rows] = drawn["cotangent"][:, rows]
    moving = [drawn["query"][:, rows], drawn["key"], drawn["value"]]
    # The inputs are rounded to the tested dtype, but the computation is in float32.
    moving = [jnp.asarray(x, case.dtype).astype(jnp.float32) for x in moving]
    if bias is not None:
        bias = jnp.asarray(bias[:, :, rows], case.dtype).astype(jnp.float32)

    def forward(query, key, value, bias):
        return attend(query, key, value, mask=chosen, bias=bias, implementation="reference")

    with jax.default_matmul_precision("highest"):
        out, backward = jax.vjp(forward, *moving, bias)
        if passed == "forward":
            return [np.asarray(out)], cotangent, rows
        rounded = jnp.asarray(cotangent[:, rows], case.dtype).astype(jnp.float32)
        gradients = backward(rounded)[: 4 if case.bias == "learned" else 3]
    return [np.asarray(x) for x in gradients], cotangent, rows


def _difference(given: list, expected: list, rows: Any, passed: str) -> float:
    """Returns the largest difference from the expected arrays, relative to their largest number."""
    import numpy as np

    given = list(given)
    if len(given) != len(expected):
        return float("inf")
    given[0] = given[0][:, rows]
    if len(given) == 4:
        given[3] = given[3][:, :, rows]
    differences = [
        float(np.max(np.abs(mine - right)) / np.max(np.abs(right)))
        for mine, right in zip(given, expected, strict=True)
    ]
    return max(differences) if all(map(np.isfinite, differences)) else float("inf")


def _shrunk(case: Case) -> Case:
    """Returns the case with its lengths divided by --shrink."""
    by = flags.FLAGS.shrink
    if by == 1:
        return case
    lengths = {name: max(1, int(getattr(case, name) / by)) for name in ("queries", "keys")}
    return dataclasses.replace(case, **lengths)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
