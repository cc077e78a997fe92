"""Random changes of files: those that keep their meaning, and those that may destroy it.

A change takes a random generator and the content of a file; what it did is its name. All are pure
functions of the generator, so a case is reproduced by its seed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence

ODD = (
    "", " ", "nan", "NaN", "None", "null", "inf", "-1", "0", "1e400", "1,5", "1.234,5", "9" * 30,
    "true", "[1]", "{}", '"', '""', ",", ";", "\t", "=1+1", "\u2028", "\x0c", "\x85", "\u0000",
    "\ufeff", "\ud83d\ude00", "a\u0301", "\u202ex", "../..", "31.12.2024", "2024-13-01",
    "x" * 140_000,
)  # fmt: skip
BYTES = (b'"', b",", b";", b"\t", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\", b"{", b"'")


def table(rows: Sequence[Sequence[str]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL,
          end: str = "\n") -> str:  # fmt: skip
    """Returns a CSV of rows; the first row is the header."""
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return buffer.getvalue()


def json_lines(rows: Sequence[Sequence[str]]) -> str:
    """Returns the same rows as JSON lines."""
    return "".join(
        json.dumps(dict(zip(rows[0], row, strict=True)), ensure_ascii=bool(number % 2)) + "\n"
        for number, row in enumerate(rows[1:])
    )


def encoded(rng: random.Random, text: str) -> tuple[str, bytes]:
    """Returns text in an encoding that its first bytes announce, or in UTF-8."""
    name, mark, encoding = rng.choice(
        [
            ("UTF-8", b"", "utf-8"),
            ("UTF-8 with a mark", codecs.BOM_UTF8, "utf-8"),
            ("UTF-16 LE", codecs.BOM_UTF16_LE, "utf-16-le"),
            ("UTF-16 BE", codecs.BOM_UTF16_BE, "utf-16-be"),
            ("UTF-32 LE", codecs.BOM_UTF32_LE, "utf-32-le"),
        ]
    )
    return name, mark + text.encode(encoding)


def respelled(
    rng: random.Random,
    rows: Sequence[Sequence[str]],
    *,
    header: bool = True,
    json: bool = True,
    extra: bool = True,
) -> tuple[str, str, bytes]:
    """Returns another spelling of a table: rows or columns in another order, other delimiters and
    quotes.

    Returns:
      What was done, the extension, and the content.
    """
    done, rows = [], [list(row) for row in rows]
    if rng.random() < 0.3:
        body = rows[header:]
        rng.shuffle(body)
        rows, done = rows[:header] + body, [*done, "rows shuffled"]
    if header and rng.random() < 0.3:
        order = rng.sample(range(len(rows[0])), len(rows[0]))
        rows, done = [[row[i] for i in order] for row in rows], [*done, "columns shuffled"]
    if header and extra and rng.random() < 0.3:
        rows = [[*row, "more" if number == 0 else f"x; {number}, y"]
                for number, row in enumerate(rows)]  # fmt: skip
        done.append("another column")
    if json and header and rng.random() < 0.25:
        name, data = encoded(rng, json_lines(rows))
        return ", ".join([*done, "JSON lines", name]), rng.choice([".jsonl", ".NDJSON"]), data
    delimiter = rng.choice(",;\t")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    text = table(rows, delimiter, quoting, rng.choice(["\n", "\r\n"]))
    if rng.random() < 0.3:
        text = text.rstrip("\r\n") + rng.choice(["", "\n\n\n"])
    extension = rng.choice([".csv", ".CSV", ".tsv"] if delimiter == "\t" else [".csv", ".Csv"])
    name, data = encoded(rng, text)
    return ", ".join([*done, f"delimiter {delimiter!r}, quotes {quoting}", name]), extension, data


def damaged(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Bytes changed, put in, taken out, doubled or cut off; or another file altogether."""
    kind = rng.choice(["change", "insert", "insert", "delete", "double", "cut", "other", "latin"])
    place = rng.randrange(len(data) + 1)
    if kind == "change":
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 5])):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return "bytes changed", bytes(changed)
    if kind == "insert":
        new = rng.choice(BYTES)
        return f"{new!r} at {place}", data[:place] + new + data[place:]
    if kind == "delete":
        end = place + rng.choice([1, 1, 40])
        return f"{place}:{end} taken out", data[:place] + data[end:]
    if kind == "double":
        end = min(place + rng.randrange(1, 200), len(data))
        return f"{place}:{end} doubled", data[:end] + data[place:end] + data[end:]
    if kind == "cut":
        return f"cut at {place}", data[:place]
    if kind == "latin":
        text = data.decode("utf-8", "replace").replace("\u4e2d", "\xe9")
        return "Latin-1", text.encode("latin-1", "replace")
    return rng.choice(
        [
            ("nothing", b""),
            ("spaces", b" \n\n\t\n"),
            ("random bytes", rng.randbytes(500)),
            ("gzip", gzip.compress(data)),
            ("zip", b"PK\x03\x04" + rng.randbytes(300)),
        ]
    )


def odd_cells(
    rng: random.Random, rows: Sequence[Sequence[str]], odd: Sequence[str] = ODD
) -> tuple[str, list[list[str]]]:
    """Returns a table with cells of other types, rows of other lengths, or another header."""
    rows = [list(row) for row in rows]
    kind = rng.choice(["cell", "cell", "cell", "column", "short", "long", "header", "twice", "row"])
    number = rng.randrange(1, len(rows))
    place = rng.randrange(len(rows[0]))
    value = rng.choice(odd)
    if kind == "cell":
        rows[number][place] = value
    elif kind == "column":
        for row in rows[1:]:
            row[place] = value
    elif kind == "short":
        del rows[number][place]
    elif kind == "long":
        rows[number].insert(place, value)
    elif kind == "header":
        rows[0][place] = value
    elif kind == "twice":
        rows[0][place] = rows[0][(place + 1) % len(rows[0])]
    else:
        rows[number] = [value] * len(rows[0])
    return f"{kind} {number}, {place}: {value[:20]!r}", rows


def odd_json(rng: random.Random, value: object) -> tuple[str, object]:
    """Returns a JSON value in which one inner value, key or item is another one."""
    value = json.loads(json.dumps(value))
    places: list[tuple[object, object]] = []

    def walk(inner: object) -> None:
        keys = inner if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    walk(value)
    holder, key = rng.choice(places)
    kind = rng.choice(["other", "other", "other", "delete", "double"])
    new: object = None
    if kind == "delete":
        del holder[key]
    elif kind == "double" and isinstance(holder, list):
        holder.append(holder[key])
    else:
        new = rng.choice(
            [None, True, False, 0, -1, 1.5, 10**12, float("nan"), float("inf"), "", "0", "1", "x",
             [], [1], {}, {"a": 1}, "\u2028", [[]], str(holder[key])]
        )  # fmt: skip
        holder[key] = new
    return f"{kind} {key!r}: {new!r}", value


Change = Callable[[random.Random], tuple[str, bytes]]
