"""Summary of a data set before training: sizes, duplicates, shared inputs, conflicting labels.

Inputs are compared by 64-bit hashes. Case and white space of texts are ignored. In a large split,
only some evenly spaced examples are compared. Their number is limited by `EXAMPLES`, by their size
in memory (`BYTES`), and by the time to read them (`SECONDS`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data import digests
from tasks.common.data.splits import SplitSummary

BYTES = 1 << 26
"""Largest size of the compared inputs and labels of a split."""
EXAMPLES = 100_000
"""Largest number of compared examples of a split."""
SECONDS = 1.0
"""Longest time in which the compared examples of a split are read."""

# Limits of three fractions, above which there is a warning: the fraction of rows that are also in
# another split, of examples of one class, and of tokens that are truncated or left out.
_SHARED, _MAJORITY, _LOST = 0.03, 0.9, 0.2
# Quantiles of sizes by name.
_QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}
# Number of classes in a message, number of rows from which the mean size is estimated, and number
# of characters of an excerpt.
_SHOWN, _TRIED, _LETTERS = 12, 16, 60


@dataclasses.dataclass(frozen=True)
class Columns:
    """Rows of a split with their inputs and labels, and other facts that a summary contains.

    Attributes:
      count: number of rows. The rows are the examples, or parts that examples are made of, such as
        the lines of a running text.
      pair: function that takes the index of a row, and returns its input and its label. Both are
        texts, arrays, or sequences or mappings of such values. The label is None if labels are not
        to be compared.
      codes: hashes of the inputs, uint64 [count], and hashes of the labels or None; used instead of
        `pair`.
      unit: plural noun for the rows.
      name: function that takes the index of a row and returns its name, for messages.
      sizes: sizes of the examples before truncation, by unit, such as {"tokens": int [n]}.
      limits: largest size of an example that is neither truncated nor left out, by unit.
      limit_key: config key that sets `limits`; empty if there is none.
      cut: treatment of examples above the limit: "truncated" or "left out".
      unknown: fraction of unknown tokens or characters, by unit.
      facts: other facts by name, such as {"missing values": "3.1 %"}.
      shares: whether rows of different splits are compared.
    """

    count: int
    pair: Callable[[int], tuple[Any, Any]] | None = None
    codes: tuple[np.ndarray, np.ndarray | None] | None = None
    unit: str = "examples"
    name: Callable[[int], str] = "example {}".format
    sizes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    limit_key: str = ""
    cut: str = "truncated"
    unknown: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shares: bool = True


def excerpt(text: str) -> str:
    """Returns the beginning of a text in quotes, as the name of an example."""
    line = " ".join(text.split())
    return repr(line if len(line) <= _LETTERS else f"{line[: _LETTERS - 3]}...")


def segment_codes(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Computes hashes of n segments of a sequence.

    Equal segments have equal hashes. The hash is a polynomial modulo 2^64, so that sums over
    segments are differences of prefix sums.

    Args:
      codes: hash of each element of the sequence, uint64 [T].
      starts, ends: first index of each segment, and the index after its last, int [n].

    Returns:
      uint64 [n].
    """
    base = 0x9E3779B97F4A7C15
    powers = np.cumprod(np.full(len(codes), base, np.uint64), dtype=np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers, dtype=np.uint64)])
    inverse = np.full(len(codes) + 1, pow(base, -1, 2**64), np.uint64)
    inverse[0] = 1
    shifts = np.cumprod(inverse, dtype=np.uint64)[np.asarray(starts, np.int64)]
    return _mixed((sums[ends] - sums[starts]) * shifts + (ends - starts).astype(np.uint64))


def row_codes(*columns: np.ndarray) -> np.ndarray:
    """Computes a hash of each row of a table.

    Args:
      *columns: arrays [T] or [T, C] whose values have at most 8 bytes each.

    Returns:
      uint64 [T].
    """
    total, number = np.zeros(len(columns[0]), np.uint64), 0
    for array in columns:
        kind = f"u{array.dtype.itemsize}"
        for values in np.ascontiguousarray(array.reshape(len(array), -1).T).view(kind):
            number += 1
            weight = np.uint64((0xD1342543DE82EF95 * (2 * number + 1)) % 2**64)
            total += _mixed(values.astype(np.uint64) + np.uint64(number)) * weight
    return _mixed(total)


def _mixed(codes: np.ndarray) -> np.ndarray:
    """Mixes the bits of hashes (SplitMix64, Steele et al. 2014)."""
    codes = (codes ^ (codes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    codes = (codes ^ (codes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return codes ^ (codes >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class _Compared:
    """Hashes of the compared rows of a split.

    Attributes:
      rows: indices of the rows, int [m].
      inputs: uint64 [m].
      labels: uint64 [m]; None without labels.
    """

    rows: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray | None


def summarize(
    counts: Mapping[str, SplitSummary],
    columns: Mapping[str, Columns],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the summary of a data set as JSON values.

    Args:
      counts: counts by split, in the order of the splits.
      columns: columns by split.
      notes: messages of the readers about what they skipped or changed.

    Returns:
      "splits": for each split, the `counts`, "sizes", "unknown", "facts" and "compared". The
        value of "compared" has the number of rows that were compared, and the numbers of
        "duplicates" within the split, of rows that are "shared" with each earlier split, and of
        "conflicts", which are rows whose input has several labels in all splits together. Each of
        these three comes with an example.
      "notes": the messages.
      "warnings": sentences about missing classes, shared rows, large classes and lost tokens.
    """
    compared = {split: _compare(column) for split, column in columns.items()}
    conflicts = _conflicting(compared)
    splits: dict[str, Any] = {}
    for split, column in columns.items():
        found = {
            key: value
            for key, value in dataclasses.asdict(counts[split]).items()
            if key != "least_classes" and (value or key == "examples")
        }
        if not counts[split].ignored:
            del found["ignored_as"]
        found |= {
            "sizes": {
                unit: _sizes(np.asarray(sizes), column.limits.get(unit), column)
                for unit, sizes in column.sizes.items()
                if len(sizes)
            },
            "unknown": {unit: round(float(x), 6) for unit, x in column.unknown.items()},
            "facts": dict(column.facts),
        }
        if (mine := compared[split]) is not None:
            found["compared"] = _overlaps(split, columns, compared, mine, conflicts)
        splits[split] = {key: value for key, value in found.items() if value not in ({}, None)}
    return {"splits": splits, "notes": list(notes), "warnings": list(_warnings(splits))}


def _compare(column: Columns) -> _Compared | None:
    """Computes hashes of the rows of a split, by which rows are compared between splits.

    At most `EXAMPLES` rows are hashed, for at most `SECONDS`. The result is None if the split has
    no rows, or no function that reads them.
    """
    if column.codes is not None:
        inputs, labels = column.codes
        return _Compared(np.arange(column.count), inputs, labels)
    if column.pair is None or not column.count:
        return None
    began, rows, inputs, labels = time.monotonic(), [], [], []
    for index in _order(column.count, _affordable(column)):
        given, label = column.pair(index)
        rows.append(index)
        inputs.append(_code(given))
        labels.append(None if label is None else _code(label))
        if time.monotonic() - began > SECONDS:
            break
    labeled = all(label is not None for label in labels)
    return _Compared(
        np.array(rows, np.int64),
        np.array(inputs, np.uint64),
        np.array(labels, np.uint64) if labeled else None,
    )


def _affordable(column: Columns) -> int:
    """Estimates from some rows how many rows fit into `BYTES`; returns at most `EXAMPLES`."""
    tried = np.unique(np.linspace(0, column.count - 1, _TRIED).astype(np.int64))
    size = np.mean([_bytes(column.pair(int(index))) for index in tried])
    return min(column.count, EXAMPLES, max(int(BYTES / max(size, 1)), 1))


def _order(count: int, most: int) -> Iterator[int]:
    """Yields `most` evenly spaced indices.

    Reading may stop early. Therefore the indices are ordered such that the first ones, however
    many are read, are also spread over the whole range.
    """
    chosen = np.linspace(0, count - 1, most).astype(np.int64)
    stride = max(int(most * 0.618), 1)
    while np.gcd(stride, most) != 1:
        stride += 1
    return (int(chosen[number * stride % most]) for number in range(most))


def _bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    if value is None:
        return 0
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 8


def _code(value: Any) -> int:
    """Returns a 64-bit hash; for texts, it differs between processes."""
    if isinstance(value, str):
        return hash(" ".join(value.casefold().split())) & (2**64 - 1)
    return int.from_bytes(digests.code(value)[:8], "little")


def _conflicting(compared: Mapping[str, _Compared | None]) -> np.ndarray:
    """Returns the hashes of the inputs that have more than one label in all splits together."""
    given = [mine for mine in compared.values() if mine is not None and mine.labels is not None]
    if not given:
        return np.zeros(0, np.uint64)
    pairs = np.stack(
        [np.concatenate([x.inputs for x in given]), np.concatenate([x.labels for x in given])], 1
    )
    inputs, counts = np.unique(np.unique(pairs, axis=0)[:, 0], return_counts=True)
    return inputs[counts > 1]


def _overlaps(
    split: str,
    columns: Mapping[str, Columns],
    compared: Mapping[str, _Compared | None],
    mine: _Compared,
    conflicts: np.ndarray,
) -> dict[str, Any]:
    column = columns[split]
    found: dict[str, Any] = {"rows": len(mine.rows), "of": column.count, "unit": column.unit}

    def named(chosen: np.ndarray) -> str:
        return column.name(int(mine.rows[np.flatnonzero(chosen)].min()))

    order = np.argsort(mine.inputs, kind="stable")
    again = np.zeros(len(order), bool)
    again[order[1:]] = mine.inputs[order[1:]] == mine.inputs[order[:-1]]
    found["duplicates"] = int(again.sum())
    if again.any():
        found["duplicate_example"] = named(again)
    if column.shares:
        shared: dict[str, Any] = {}
        anywhere = np.zeros(len(order), bool)
        for other, theirs in compared.items():
            if other == split:
                break
            if theirs is not None:
                same = np.isin(mine.inputs, theirs.inputs)
                shared[other] = int(same.sum())
                anywhere |= same
        found["shared"] = shared
        if anywhere.any():
            found["shared_example"] = named(anywhere)
    if mine.labels is not None:
        several = np.isin(mine.inputs, conflicts)
        found["conflicts"] = int(several.sum())
        if several.any():
            found["conflict_example"] = named(several)
    return found


def _sizes(sizes: np.ndarray, limit: int | None, column: Columns) -> dict[str, Any]:
    cut = column.cut
    quantiles = np.quantile(sizes, list(_QUANTILES.values()), method="nearest")
    found: dict[str, Any] = dict(zip(_QUANTILES, map(_number, quantiles), strict=True))
    if limit is not None:
        longer = sizes[sizes > limit].astype(np.float64)
        lost = float(np.sum(longer - limit if cut == "truncated" else longer))
        total = max(float(np.sum(sizes, dtype=np.float64)), 1.0)
        found |= {"limit": limit, cut: len(longer), "lost_fraction": round(lost / total, 6)}
        if column.limit_key:
            found["limit_key"] = column.limit_key
    return found


def _number(value: Any) -> float:
    number = float(value)
    return int(number) if number.is_integer() else float(f"{number:.4g}")


def _warnings(splits: Mapping[str, Any]) -> Iterator[str]:
    train = splits.get("train", {}).get("classes", {})
    for split, found in splits.items():
        classes, unit = found.get("classes", {}), found.get("unit", "examples")
        missing = [name for name, count in train.items() if count and not classes.get(name)]
        if missing and len(train) > 1:
            shown, more = ", ".join(missing[:_SHOWN]), ", ..." * (len(missing) > _SHOWN)
            yield f"the {split} split has no {unit} of {shown}{more}, but the train split has some"
        total = sum(classes.values())
        if total and len(classes) > 1:
            name = max(classes, key=classes.__getitem__)
            if classes[name] > _MAJORITY * total:
                yield (
                    f"{classes[name] / total:.1%} of the {unit} of the {split} split are of the "
                    f"class {name}; always predicting it gives this accuracy"
                )
        for unit, x in found.get("sizes", {}).items():
            if split == "train" and "limit_key" in x and x["lost_fraction"] > _LOST:
                cut = "truncated" if "truncated" in x else "left out"
                yield (
                    f"{x['lost_fraction']:.1%} of the {unit} of the {split} split are {cut}, "
                    f"because {x['limit_key']} is {x['limit']}; a larger value keeps them"
                )
        rows = found.get("compared", {})
        for other, count in rows.get("shared", {}).items():
            if count > _SHARED * rows["rows"]:
                yield (
                    f"{count / rows['rows']:.1%} of the {rows['unit']} of the {split} split are "
                    f"also in the {other} split; metrics on them are biased"
                )


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Formats a summary as pairs (name, text) for terminals and reports.

    The first pairs have the name of a split and its counts. The others have the name of an aspect,
    such as "duplicates", and the values of all splits.

    Args:
      summary: result of `summarize`.
    """
    splits, names = summary["splits"], {field.name for field in dataclasses.fields(SplitSummary)}
    found = [
        (split, str(SplitSummary(**{key: x[key] for key in x if key in names})))
        for split, x in splits.items()
    ]

    def say(name: str, parts: Sequence[str], before: str = "") -> None:
        if parts:
            found.append((name, f"{before}{', '.join(parts)}"))

    units = dict.fromkeys(unit for split in splits.values() for unit in split.get("sizes", {}))
    for unit in units:
        given = {s: x["sizes"][unit] for s, x in splits.items() if unit in x.get("sizes", {})}
        quantiles = [" / ".join(f"{x[key]:,}" for key in _QUANTILES) for x in given.values()]
        parts = [f"{split} {text}" for split, text in zip(given, quantiles, strict=True)]
        say("sizes", parts, f"{unit}, {' / '.join(_QUANTILES)}: ")
        over = [
            f"{split} {x[cut]:,} {cut} ({x['lost_fraction']:.1%} of the {unit})"
            for split, x in given.items()
            for cut in ("truncated", "left out")
            if x.get(cut)
        ]
        limit = next((x["limit"] for x in given.values() if "limit" in x), None)
        say("too long", over, f"over {limit} {unit}: ")
    unknown = dict.fromkeys(unit for split in splits.values() for unit in split.get("unknown", {}))
    for unit in unknown:
        given = {s: x["unknown"][unit] for s, x in splits.items() if unit in x.get("unknown", {})}
        if any(given.values()):
            say("unknown", [f"{split} {x:.1%}" for split, x in given.items()], f"{unit}: ")
    others = dict.fromkeys(name for split in splits.values() for name in split.get("facts", {}))
    for name in others:
        given = {s: x["facts"][name] for s, x in splits.items() if name in x.get("facts", {})}
        if len(given) == len(splits) and len(set(given.values())) == 1:
            say(name, [next(iter(given.values()))])
        else:
            say(name, [f"{split} {text}" for split, text in given.items()])
    rows = {split: x["compared"] for split, x in splits.items() if "compared" in x}
    for split, x in rows.items():
        if x["rows"] < x["of"]:
            rest = "; duplicates among the other rows are not counted"
            say("compared", [f"{x['rows']:,} of {x['of']:,} {x['unit']} of {split}{rest}"])
    duplicates = [
        f"{split} {x['duplicates']:,} ({x['duplicates'] / x['rows']:.1%})"
        for split, x in rows.items()
        if x["duplicates"]
    ]
    none = ["none"] if rows and not duplicates else []
    say("duplicates", duplicates + none + _example(rows, "duplicate_example"))
    shared = [
        f"{count:,} {x['unit']} of {split} are also in {other} ({count / x['rows']:.1%})"
        for split, x in rows.items()
        for other, count in x.get("shared", {}).items()
        if count
    ]
    say("shared", shared + _example(rows, "shared_example"))
    conflicts = [f"{split} {x['conflicts']:,}" for split, x in rows.items() if x.get("conflicts")]
    before = "equal inputs with different labels: "
    say("conflicts", conflicts + _example(rows, "conflict_example"), before)
    return found


def _example(rows: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """Returns 'such as NAME (SPLIT)' for the first split that has an example."""
    return next(([f"such as {x[key]} ({split})"] for split, x in rows.items() if key in x), [])
