"""Decoding of text files of the user: UTF-8, or the encoding of the byte order mark."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import TextIO

from tasks.common.data.regular_files import expect_regular
from tasks.common.errors import UserError

# The mark of UTF-32 comes first because it begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(name: str | Path) -> str:
    """Returns the text of a file.

    Raises:
      UserError: the file cannot be read, is empty, or is not text in a supported encoding.
    """
    path = Path(name).expanduser()
    if os.path.isdir(path):  # False for names that are no path
        raise UserError(f"{str(name) or path}: is a folder, expected a text file")
    expect_regular(path, str(name))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        # A name with a zero byte.
        raise UserError(f"{str(name)!r}: cannot be read ({error})") from error
    text = decode_text(data, str(name))
    if not text.strip():
        raise UserError(f"{name}: the file is empty")
    return text


def open_text(name: str) -> TextIO:
    """Opens a text file in its encoding, without translation of line ends.

    Raises:
      UserError: the file cannot be read.
    """
    path = Path(name).expanduser()
    expect_regular(path, name)
    try:
        with path.open("rb") as file:
            start = file.read(4)
        return path.open(encoding=detect_encoding(start), newline="")
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        # A name with a zero byte.
        raise UserError(f"{name!r}: cannot be read ({error})") from error


def decode_text(data: bytes, name: str) -> str:
    """Decodes the content of a text file.

    Args:
      data: the content.
      name: of the file, for messages.

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
                f"{name}: has zero bytes, expected text in UTF-8; save the file as UTF-8"
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
    """Returns the encoding given by the first four bytes of a file; UTF-8 without a mark."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def decoding_error(name: str) -> UserError:
    """Returns the error that names the line of a file that could not be decoded."""
    try:
        read_text(name)
    except UserError as error:
        return error
    return UserError(f"{name}: changed while it was read")


def split_lines(text: str) -> list[str]:
    """Splits a text at line ends alone: LF, CR LF, or CR in a file without LF.

    Unlike `str.splitlines`, it does not split at U+2028, form feeds and other separators, which
    occur within lines. A line end at the very end of the text starts no line.
    """
    end = "\n" if "\n" in text else "\r"
    return [line.removesuffix("\r") for line in text.removesuffix(end).split(end)]
