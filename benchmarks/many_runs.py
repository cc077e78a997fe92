"""Time of `launch.ablate --on`, relative to sequential execution, and equality of the tables.

python -m benchmarks.many_runs
python -m benchmarks.many_runs --ways=local --seeds=2

The ablation has three poolings of text classification, on generated texts; with 4 seeds these are
12 short runs. A first command fills the caches of data, baselines and compilation. Then the time of
these commands is measured: sequential execution; "local", --on=local:N with as many processes as
cores; and "ray", a local Ray cluster of two nodes, each with half of the cores, that loses a node
after half of the runs (needs requirements-ray.txt). A table that differs from that of sequential
execution is an error. Results are written to benchmarks/results/many_runs.json or --json.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from benchmarks import records
from launch import cli
from launch.engine.environment import usable_cores
from launch.runs import on_ray

WAYS = ("local", "ray")
CONFIG = "configs/ablations/text_pooling.py"
# Keys of records and rows that are not compared, because they depend on the machine, the time or
# the directory.
_OTHER = ("seconds", "device", "timing", "command", "directories")


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_enum("ways", WAYS, WAYS, "Placements besides sequential execution.")
    flags.DEFINE_integer("seeds", 4, "Number of seeds of each of the 3 experiments.", lower_bound=1)
    flags.DEFINE_integer("steps", 60, "Steps of each run.", lower_bound=10)
    flags.DEFINE_bool("warm", True, "Fill the caches first; not needed after an earlier command.")
    flags.DEFINE_string("json", None, "Output file.")


def run() -> None:
    """Runs the command."""
    values = flags.FLAGS
    path = pathlib.Path(values.json or records.FOLDER / "many_runs.json")
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        write_texts(base / "texts.csv")
        if values.warm:
            _wait(_begin(base / "warm", 1))
        rows = {"sequential": measure(base / "sequential")}
        reference = table(base / "sequential")
        for way in values.ways:
            rows[way] = _MEASURES[way](base / way)
            if found := "; ".join(differences(table(base / way), reference)):
                raise SystemExit(f"{way}: differs from sequential execution: {found}")
    whole = rows["sequential"]["seconds"]
    for way, row in rows.items():
        row["ratio"] = round(row["seconds"] / whole, 2)
        print(f"{way}: {row}", flush=True)
    runs = 3 * values.seeds
    records.put(path, "many_runs", {"runs": runs, "steps": values.steps, "rows": rows})


def write_texts(path: pathlib.Path, rows: int = 240) -> None:
    """Writes texts whose class follows from one of their words."""
    words = random.Random(0)
    lines = ["review,stars"]
    for row in range(rows):
        label, other = words.choice([("good", "superb"), ("bad", "awful")])
        plain = words.choices(["film", "plot", "scene", "actor", "very", "ending"], k=6)
        lines.append(f"{' '.join(plain)} {other} {row},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(folder: pathlib.Path, *more: str) -> dict[str, Any]:
    """Runs the ablation and returns its seconds and the load of the machine before it."""
    load, began = os.getloadavg()[0], time.monotonic()
    _wait(_begin(folder, flags.FLAGS.seeds, *more))
    return {"seconds": round(time.monotonic() - began, 1), "load": round(load, 1)}


def measure_local(folder: pathlib.Path) -> dict[str, Any]:
    """Runs the ablation with --on=local:N."""
    on = f"local:{len(usable_cores())}"
    return {"on": on, **measure(folder, f"--on={on}")}


def measure_ray(folder: pathlib.Path) -> dict[str, Any]:
    """Runs the ablation on a cluster of two nodes that loses one of them half way."""
    with _cluster() as (cluster, node):
        load, began = os.getloadavg()[0], time.monotonic()
        process = _begin(folder, flags.FLAGS.seeds, f"--on=ray:{cluster.address}")
        half = 3 * flags.FLAGS.seeds // 2
        while len(list(folder.glob("*/result.json"))) < half:
            if process.poll() is not None:
                raise SystemExit("ray: the command ended before half of the runs")
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        killed = round(time.monotonic() - began, 1)
        _wait(process)
    seconds = round(time.monotonic() - began, 1)
    retried = pathlib.Path(f"{folder}.err").read_text(encoding="utf-8").count("its node was lost")
    return {"on": "ray", "seconds": seconds, "load": round(load, 1), "node_killed_after": killed,
            "retried_runs": retried}  # fmt: skip


_MEASURES = {"local": measure_local, "ray": measure_ray}


@contextlib.contextmanager
def _cluster() -> Iterator[tuple[Any, Any]]:
    """Starts a cluster of two nodes on this machine; yields the cluster and the node to kill."""
    os.environ.update(on_ray.SETTINGS)
    from ray.cluster_utils import Cluster

    cores = max(len(usable_cores()) // 2, 1)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False}
    )
    try:
        node = cluster.add_node(num_cpus=cores)
        cluster.wait_for_nodes()
        yield cluster, node
    finally:
        cluster.shutdown()


def _begin(folder: pathlib.Path, seeds: int, *more: str) -> subprocess.Popen[bytes]:
    steps = flags.FLAGS.steps
    half = steps // 2
    every = {"steps": steps, "evaluate_every": half, "log_every": half, "batch_size": 16}
    words = [
        sys.executable, "-m", "launch.ablate", f"--config={CONFIG}", f"--workdir={folder}",
        f"--seeds={seeds}", *(f"--set=training.{key}={n}" for key, n in every.items()),
        f"--data={folder.parent / 'texts.csv'}", "--text=review", "--label=stars", *more,
    ]  # fmt: skip
    with open(f"{folder}.err", "wb") as errors:
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)


def _wait(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"{' '.join(map(str, process.args))}: status {process.returncode}")


def table(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the table and the records of an ablation."""
    found = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    rows = [row for compared in found["comparisons"] for row in compared["runs"]]
    return {"runs": found["runs"], "failures": found["failures"], "rows": rows}


def differences(found: Any, expected: Any, path: str = "") -> Iterator[str]:
    """Yields a line for each value that differs from the expected one.

    Floats differ if their relative difference exceeds 1e-5, because XLA adds numbers in another
    order if it has another number of threads.
    """
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in sorted({*found, *expected} - {*_OTHER}):
            yield from differences(found.get(key), expected.get(key), f"{path}/{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{path}/{number}")
    elif isinstance(found, float) and isinstance(expected, float):
        if not math.isclose(found, expected, rel_tol=1e-5):
            yield f"{path}: {found}, not {expected}"
    elif found != expected:
        yield f"{path}: {found}, not {expected}"


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
