"""Results file of the accelerator suite, from the records of `make test-accelerators`.

python -m benchmarks.accelerators

The tables are in benchmarks/README.md. Nothing of it ran on a GPU or TPU: the numbers are those of
the compilers.
"""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from absl import app

from benchmarks import records

RECORDS = pathlib.Path(__file__).parents[1] / "build" / "accelerators"
TARGET = records.FOLDER / "accelerators.json"


def steps(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a row for each compiled step, by config, machine and step."""
    found = []
    for path in sorted((folder / "steps").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for step in record["steps"]:
            found.append(
                {
                    "config": record["config"],
                    "topology": record["topology"],
                    "mesh": {axis: size for axis, size in record["mesh"].items() if size > 1},
                    "memory": record["memory"],
                    "step": step["step"],
                    "bytes_per_device": step["bytes_per_device"],
                    "peak": step["peak"],
                    "flops": step["flops"],
                    "collectives": _by_kind(step["collectives"]),
                    "kernels": _by_name(step["kernels"]),
                    "seconds": round(sum(step["seconds"].values()), 1),
                }
            )
    return found


def versions(folder: pathlib.Path) -> dict[str, str]:
    """Returns the versions of the compilers of all records."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*/*.json")):
        found |= json.loads(path.read_text(encoding="utf-8")).get("versions", {})
    return found


def _by_kind(collectives: list[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Returns kind -> number of executions and bytes in one step."""
    found: dict[str, list[int]] = {}
    for one in collectives:
        row = found.setdefault(one["kind"], [0, 0])
        row[0] += one["count"] or 1
        row[1] += one["bytes"] * (one["count"] or 1)
    return found


def _by_name(kernels: list[Mapping[str, Any]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for one in kernels:
        found[one["kernel"]] += one["calls"]
    return dict(found)


def main(_: Any) -> None:
    """Writes the results file."""
    rows = steps(RECORDS)
    if not rows:
        raise SystemExit(f"{RECORDS}: has no records; run make test-accelerators first")
    records.put(TARGET, "accelerator_steps", {"compilers": versions(RECORDS), "rows": rows})
    print(f"written: {TARGET}")


if __name__ == "__main__":
    app.run(main)
