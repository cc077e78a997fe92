"""Handling of closed standard streams, of encodings that lack characters, and of closed pipes."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any

_HANDLER = "attention.backslashreplace"


def reopen_closed() -> bool:
    """Reopens closed standard streams on the null device.

    Otherwise the next opened file would get the file descriptor of the stream, and receive the
    output that is meant for the stream.

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
        # If another file already has that descriptor, the null device gets a different one.
        stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)
    return closed


def tolerate_narrow_encodings() -> None:
    """Makes stdout and stderr escape characters outside their encoding, such as \\xf6.

    The first escape prints a notice on standard error.
    """
    notified = False

    def escaped(error: Any) -> tuple[str | bytes, int]:
        nonlocal notified
        found = codecs.backslashreplace_errors(error)
        if not notified:
            notified = True
            print(
                f"output: characters outside the encoding {error.encoding} are written as "
                f"escapes; set PYTHONIOENCODING=utf-8",
                file=sys.stderr,
            )
        return found

    codecs.register_error(_HANDLER, escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def as_json(value: Any, indent: int | None = None) -> str:
    """Returns JSON, with JSON escapes for characters that standard output cannot encode."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def discard_closed() -> None:
    """Discards buffered output of closed pipes, so that exiting raises no second error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
