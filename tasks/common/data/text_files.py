"""Decoding of user text files in UTF-8 or in the encoding given by a byte order mark."""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tasks.common.data.regular_files import expect_regular
from tasks.common.errors import UserError

# The UTF-32 mark must precede the UTF-16 mark, because the former begins with the latter.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(name: str | Path) -> str:
    """Reads and decodes a text file.

    Raises:
      UserError: the file cannot be read, is empty, or is not text in a supported encoding.
    """
    path = Path(name).expanduser()
    if os.path.isdir(path):  # os.path.isdir returns False for names that are not valid paths
        raise UserError(f"{str(name) or path}: is a folder, expected a text file")
    expect_regular(path, str(name))
    with _readable(str(name)):
        data = path.read_bytes()
    text = decode_text(data, str(name))
    if not text.strip():
        raise UserError(f"{name}: the file is empty")
    return text


def open_text(name: str) -> TextIO:
    """Opens a text file with its detected encoding, without translating line ends.

    Raises:
      UserError: the file cannot be read.
    """
    path = Path(name).expanduser()
    expect_regular(path, name)
    with _readable(name):
        with path.open("rb") as file:
            start = file.read(4)
        return path.open(encoding=detect_encoding(start), newline="")


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Converts errors of opening or reading a file within the context to `UserError`s."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        # The name contains a zero byte.
        raise UserError(f"{name!r}: cannot be read ({error})") from error


def decode_text(data: bytes, name: str) -> str:
    """Decodes the content of a text file.

    Args:
      data: content of the file.
      name: name of the file, for messages.

    Raises:
      UserError: the content is not text in a supported encoding; the message names the line.
    """
    encoding = detect_encoding(data[:4])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        if encoding == "utf-8" and b"\0" in data[:1000]:
            raise UserError(
                f"{name}: contains zero bytes, expected text in UTF-8; save the file as UTF-8"
            ) from None
        raise UserError(
            f"{name}: line {line} is not {encoding.removesuffix('-sig').upper()} "
            f"(byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"{name}: line {line} has a zero byte, expected text in UTF-8; save the file as UTF-8"
        )
    return text


def detect_encoding(start: bytes) -> str:
    """Returns the encoding of a file according to its byte order mark; UTF-8 without a mark.

    Args:
      start: the first four bytes of the file.
    """
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def decoding_error(name: str) -> UserError:
    """Returns the error for a file that cannot be decoded; it names the first malformed line."""
    try:
        read_text(name)
    except UserError as error:
        return error
    return UserError(f"{name}: the file changed while it was being read")


def split_lines(text: str) -> list[str]:
    """Splits a text at line ends: LF, CR LF, or CR if the text has no LF.

    Unlike `str.splitlines`, this does not split at U+2028, form feeds and other separators, which
    may occur within lines. A line end at the end of the text does not start another line.
    """
    end = "\n" if "\n" in text else "\r"
    return [line.removesuffix("\r") for line in text.removesuffix(end).split(end)]
