"""Builds the results file of the accelerator suite from records of `make test-accelerators`.

python -m benchmarks.accelerators

The tables are in benchmarks/README.md. No program ran on a GPU or TPU: the numbers are those that
the compilers report.
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
    """Returns one row for each compiled step of each record."""
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
                    # If the machine does other work, the wall time may exceed the CPU time.
                    "seconds": round(min(sum(step["seconds"].values()), step["cpu_seconds"]), 1),
                }
            )
    return found


def programs(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the registers, spills and shared memory of the programs of the kernel "triton".

    There is one row for each device, dtype, head size and program. Its numbers are the largest of
    all cases, which have different options.
    """
    found: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for words, case in _kernel_cases(folder):
        device, _, _, dtype, size, *_ = words
        for program, numbers in case.get("programs", {}).items():
            key = device, dtype, int(size), program.removeprefix("attend_")
            names = ("device", "dtype", "size", "program")
            row = found.setdefault(key, dict(zip(names, key, strict=True)) | {"cases": 0})
            row["cases"] += 1
            for name in ("registers", "spill_stores", "shared"):
                row[name] = max(row.get(name, 0), numbers[name])
    return [found[key] for key in sorted(found)]


def kernels(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns one row for each kernel and device.

    It contains the number of compiled cases, the number of refused cases by reason, and the median
    and longest CPU seconds of a compilation.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for (device, kernel, *_), case in _kernel_cases(folder):
        start = {
            "kernel": kernel,
            "device": device,
            "compiled": 0,
            "cpu_seconds": [],
            "refused": {},
        }
        row = found.setdefault((kernel, device), start)
        if "refused" in case:
            reason = case["refused"].partition("; supported by")[0].removeprefix(f"{kernel}: ")
            row["refused"][reason] = row["refused"].get(reason, 0) + 1
        elif "error" not in case:
            row["compiled"] += 1
            row["cpu_seconds"].append(case["cpu_seconds"])
    for row in found.values():
        spent = sorted(row.pop("cpu_seconds")) or [0.0]
        row |= {"median_seconds": spent[len(spent) // 2], "longest_seconds": spent[-1]}
    return [found[key] for key in sorted(found)]


def _kernel_cases(folder: pathlib.Path) -> list[tuple[list[str], dict[str, Any]]]:
    """Returns the words of the name, and the record, of each case of tests/accelerators/kernels."""
    found = []
    for path in sorted((folder / "kernels").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found += [(name.split("-"), case) for name, case in record["cases"].items()]
    return found


def versions(folder: pathlib.Path) -> dict[str, str]:
    """Returns the versions of the compilers of all records."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*/*.json")):
        found |= json.loads(path.read_text(encoding="utf-8")).get("versions", {})
    return found


def _by_kind(collectives: list[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Returns the number of executions and the bytes of each kind of collective in one step."""
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
    sections = {"accelerator_steps": {"rows": steps(RECORDS)}}
    sections["accelerator_kernels"] = {"rows": kernels(RECORDS), "programs": programs(RECORDS)}
    sections = {name: section for name, section in sections.items() if section["rows"]}
    if not sections:
        raise SystemExit(f"{RECORDS}: has no records; run make test-accelerators first")
    for name, section in sections.items():
        records.put(TARGET, name, {"compilers": versions(RECORDS), **section})
    print(f"written: {TARGET}")


if __name__ == "__main__":
    app.run(main)
