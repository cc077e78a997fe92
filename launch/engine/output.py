"""Standard output and standard error with any encoding, and after their reader has gone."""

from __future__ import annotations

import codecs
import json
import os
import sys
from typing import Any

_HANDLER = "attention.backslashreplace"


def reopen_closed() -> bool:
    """Opens what was closed of standard input, output and error on the null device: otherwise the
    next file gets its number, and what libraries write to it.

    Returns:
      Whether standard output was closed.
    """
    closed = sys.stdout is None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        # Another file may have the number by now; then the null device stands beside it.
        stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)
    return closed


def tolerate_narrow_encodings() -> None:
    """Lets both streams write a character that their encoding lacks as its escape, such as \\xf6.

    A message on standard error says so, once.
    """
    said = False

    def escaped(error: UnicodeError) -> tuple[str | bytes, int]:
        nonlocal said
        found = codecs.backslashreplace_errors(error)
        if not said:
            said = True
            print(
                f"output: encoding {error.encoding} lacks some characters, which are written as "
                "escapes; set PYTHONIOENCODING=utf-8",
                file=sys.stderr,
            )
        return found

    codecs.register_error(_HANDLER, escaped)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def as_json(value: Any, indent: int | None = None) -> str:
    """Returns JSON that standard output can encode: characters it lacks are JSON's own escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def discard_closed() -> None:
    """Sends what a stream still holds nowhere if its reader has gone, so that no second error comes
    at exit.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
