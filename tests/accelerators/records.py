"""Files with the reports of the compilers, which `benchmarks.accelerators` reads."""

import json
import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def folder(kind: str) -> pathlib.Path:
    """Returns the folder of one kind of records, "kernels" or "steps"."""
    base = os.environ.get("ATTENTION_ACCELERATOR_RECORDS", ROOT / "build" / "accelerators")
    return pathlib.Path(base) / kind


def write(kind: str, name: str, record: dict) -> None:
    """Writes a record, in place of an earlier one of the same name."""
    folder(kind).mkdir(parents=True, exist_ok=True)
    path = folder(kind) / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read(kind: str, name: str) -> dict | None:
    """Returns a record, or None."""
    path = folder(kind) / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
