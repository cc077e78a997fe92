"""Tables of the benchmark report: formats of cells, and sections about whole commands and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.reporting.formatting import table_lines

Row = Mapping[str, Any]


def met_or_not(ratio: float, target: float) -> str:
    """Returns 'met' if the ratio is at most the target, else 'not met'."""
    return "met" if ratio <= target else "not met"


def format_outcome(ratio: float | None, target: float) -> str:
    """Formats a ratio with its target, such as '1.10 (at most 1.2: met)'; "" if it is None."""
    if ratio is None:
        return ""
    return f"{ratio:.2f} (at most {target:g}: {met_or_not(ratio, target)})"


def format_ratio(one: Mapping[str, Any], field: str = "ratio") -> str:
    """Formats a ratio with its lowest and highest round, such as '1.10 (1.02 to 1.30)'."""
    low, high = one[f"{field}_range"]
    return f"{one[field]:.2f} ({low:.2f} to {high:.2f})"


def way_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names of all implementations in the rows, in order."""
    return list(dict.fromkeys(name for row in rows for name in row["ways"]))


def format_items(values: Mapping[str, Any]) -> str:
    """Formats names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def format_number(value: float | None) -> str:
    """Formats a number with three digits, or with all digits of its integer part."""
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def format_megabytes(value: int | None) -> str:
    """Formats bytes in whole megabytes."""
    return "" if value is None else f"{value / 1e6:,.0f} MB"


def format_size(size: int | None) -> str:
    """Formats bytes in megabytes with three digits."""
    return "" if size is None else f"{size / 1e6:.3g} MB"


def startup(section: Mapping[str, Any]) -> list[str]:
    """Returns the section of `benchmarks.startup`."""
    table = []
    for row in section["rows"]:
        here, targets = row["ways"]["here"], row["targets"]
        cells = [row["model"], f"`{row['what']}`"]
        for state in ("cold", "warm"):
            first, others = here[f"{state} 1"], row["ways"].keys() - {"here"}
            met = (
                f" (at most {targets[state]}: {met_or_not(first, targets[state])})"
                if targets
                else ""
            )
            cells += [f"{first:.1f}{met}", f"{here[f'{state} 10']:.1f}"]
            cells += [
                f"{row['ways'][way][f'{state} 1']:.1f}" if way in others else "-"
                for way in ("torch", "torch compiled")
            ]
        table.append(cells)
    steps = ["first step", "tenth step", "torch, first step", "torch compiled, first step"]
    header = [f"{state}: {step}" for state in ("cold", "warm") for step in steps]
    return [
        "Seconds from the start of `launch.train` to the end of a step, with imports and the "
        "reading of prepared data, with an empty compilation cache (cold) and with that of an "
        "earlier run (warm). Those of PyTorch are from `import torch` to the end of the first step "
        f"on a batch in memory. Number of rounds, whose medians are shown: {section['rounds']}.",
        "",
        *table_lines(["model", "config", *header], table),
    ]


def pipelines(section: Mapping[str, Any]) -> list[str]:
    """Returns the section of `benchmarks.pipelines`."""
    table = []
    for row in section["rows"]:
        faster = row["pipeline"] / row["step"]
        met = "met" if faster >= row["target"] else "not met"
        rates = [f"{row[name]:,.0f}" for name in ("pipeline", "step")]
        outcome = f"{faster:.1f} (at least {row['target']:g}: {met})"
        table.append([row["task"], f"`{row['config']}`", str(row["batch_size"]), *rates, outcome])
    header = ["task", "config", "batch size", "pipeline, examples/s", "train step, examples/s"]
    return [
        "Examples per second of the input pipeline without a model, and of the train step on "
        "batches in memory, each with the whole machine.",
        "",
        *table_lines([*header, "ratio"], table),
    ]


def scaling(section: Mapping[str, Any]) -> list[str]:
    """Returns the section of `benchmarks.scaling`."""
    table = []
    for row in section["rows"]:
        points = row["points"]
        cells = [row["what"], row["size"], ", ".join(f"{one['size']:,}" for one in points)]
        cells.append(", ".join(format_number(one["milliseconds"]) for one in points))
        cells.append(", ".join(f"{one['grown'] / 1e6:,.0f}" for one in points))
        found = row["exponents"]
        cells += [f"{found[name]:.2f}" if found else "" for name in ("time", "memory")]
        peak, target = points[-1]["peak"], row["target"]
        met = f" (at most {format_megabytes(target)}: {met_or_not(peak, target)})" if target else ""
        table.append([*cells, f"{format_megabytes(peak)}{met}"])
    header = ["train step", "size", "values", "ms", "MB", "exponent of time", "exponent of memory"]
    return [
        "Milliseconds of a train step, and growth of the process from before the model is built to "
        "the peak in steps after the first, for each value of one size. An exponent b means that "
        "time or memory grows with size^b over the larger half of the values. The last column is "
        "the peak of the whole process at the largest value.",
        "",
        *table_lines([*header, "peak of the process"], table),
    ]


def latency(section: Mapping[str, Any]) -> list[str]:
    """Returns the section of `benchmarks.latency`."""
    table = []
    for row in section["rows"]:
        for one in row["programs"]:
            sizes = ", ".join(f"{name} {size}" for name, size in one["sizes"].items())
            times = [format_number(one[name]) for name in ("p50", "p90")]
            table.append([row["task"], f"`{row['config']}`", row["model"], sizes, *times])
    return [
        "Milliseconds of a call of an exported program with one random input and initial "
        "parameters, without pre- and postprocessing.",
        "",
        *table_lines(["task", "config", "model", "sizes", "p50, ms", "p90, ms"], table),
    ]
