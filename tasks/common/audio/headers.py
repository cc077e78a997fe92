"""Checks and corrections of headers of audio files that libsndfile does not read correctly.

These are files whose header has no length, truncated files, and formats of phone recordings, such
as M4A and AMR. A program that writes audio to a pipe cannot fill in the length afterwards, so the
sizes in the header are 0 or placeholders.
"""

from __future__ import annotations

# Sizes from this value on are placeholders: 0xFFFFFFFF (ffmpeg), 0x80000000 (arecord), 0x7FFFF000
# (sox).
_PLACEHOLDER = 0x7FFFF000
_LARGEST = 0xFFFFFFFF
_WAVES = {b"RIFF": "little", b"RIFX": "big", b"RF64": "little"}
# For each format that libsndfile does not read: an offset, the bytes at that offset, and its name.
_OTHERS = (
    (4, b"ftyp", "MPEG-4 audio (m4a, mp4, 3gp)"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75", "Windows Media Audio"),
    (0, b"ADIF", "AAC"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"MThd", "MIDI, which has notes but no audio"),
)


def unsupported_kind(data: bytes) -> str | None:
    """Returns the name of the format of a file if it is known and not supported, or else None."""
    for offset, mark, kind in _OTHERS:
        if data[offset : offset + len(mark)] == mark:
            return kind
    return None


def with_true_sizes(data: bytes) -> bytes:
    """Corrects sizes in the header of a WAV or AU file that are 0 or placeholders.

    In a WAV file, they are replaced by the true sizes. In an AU file, a size of 0 is replaced by
    0xFFFFFFFF, which means that the size is unknown.

    Args:
      data: content of a file; files of other formats are returned unchanged.
    """
    if data[:4] == b".snd" and data[8:12] == bytes(4):
        # In AU files, 0xFFFFFFFF denotes an unknown size.
        return data[:8] + b"\xff" * 4 + data[12:]
    found = _data_chunk(data)
    if found is None:
        return data
    start, size, long = found
    rest = len(data) - start
    largest = 1 << 62 if long else _PLACEHOLDER
    if not (size >= largest or (size == 0 and rest and not _are_chunks(data, start))):
        return data
    order = _WAVES[data[:4]]
    changed = bytearray(data)
    changed[4:8] = min(len(data) - 8, _LARGEST).to_bytes(4, order)
    changed[start - 4 : start] = min(rest, _LARGEST).to_bytes(4, order)
    if long:
        changed[long : long + 16] = (len(data) - 8).to_bytes(8, order) + rest.to_bytes(8, order)
        changed[4:8] = changed[start - 4 : start] = b"\xff" * 4
    return bytes(changed)


def missing_bytes(data: bytes) -> int:
    """Returns the number of bytes that are missing according to the header of a file.

    libsndfile reads truncated files without an error.

    Args:
      data: content of a WAV, AIFF, AU, Wave64 or Ogg file after `with_true_sizes`; the result is 0
        for other formats.
    """
    end = 0
    if data[:4] in _WAVES:
        found = _data_chunk(data)
        end = found[0] + found[1] if found else 0
    elif data[:4] == b"FORM":
        end = next((at + 8 + size for at, name, size in _chunks(data, "big") if name == b"SSND"), 0)
    elif data[:4] == b".snd" and data[8:12] != b"\xff" * 4:
        end = int.from_bytes(data[4:8], "big") + int.from_bytes(data[8:12], "big")
    elif data[:4] == b"riff":
        end = _wave64_end(data)
    elif data[:4] == b"OggS":
        end = _ogg_end(data)
    return max(end - len(data), 0)


def sample_rate(data: bytes) -> int | None:
    """Returns the sample rate in the header of a WAV file; None for other files."""
    order = _WAVES.get(data[:4])
    for at, name, _ in _chunks(data, order) if order else ():
        if name == b"fmt ":
            return int.from_bytes(data[at + 12 : at + 16], order)
    return None


def _chunks(data: bytes, order: str, start: int = 12):
    """Yields offset, name and size of each chunk that begins within the file."""
    offset = start
    while offset + 8 <= len(data):
        size = int.from_bytes(data[offset + 4 : offset + 8], order)
        yield offset, data[offset : offset + 4], size
        offset += 8 + size + size % 2


def _data_chunk(data: bytes) -> tuple[int, int, int] | None:
    """Finds the samples in a WAV file.

    Returns:
      The offset and the size of the samples, and the offset of the 64-bit sizes of an RF64 file, or
      0 if they are not used. None if the file has no samples.
    """
    order = _WAVES.get(data[:4])
    if order is None or data[8:12] != b"WAVE":
        return None
    long = 0
    for offset, name, size in _chunks(data, order):
        if name == b"ds64" and data[:4] == b"RF64":
            long = offset + 8
        elif name == b"data":
            if long and size == _LARGEST:
                return offset + 8, int.from_bytes(data[long + 8 : long + 16], order), long
            return offset + 8, size, 0
    return None


def _are_chunks(data: bytes, start: int) -> bool:
    """Returns True if the bytes from `start` on are chunks of metadata instead of samples."""
    end = start
    for offset, name, size in _chunks(data, _WAVES[data[:4]], start):
        if not (name.isascii() and name.decode().isprintable()) or offset + 8 + size > len(data):
            return False
        end = offset + 8 + size + size % 2
    return end >= len(data)


def _wave64_end(data: bytes) -> int:
    offset = 40
    while offset + 24 <= len(data):
        size = int.from_bytes(data[offset + 16 : offset + 24], "little")
        if data[offset : offset + 4] == b"data":
            return offset + size
        offset += max(size + -size % 8, 24)
    return 0


def _ogg_end(data: bytes) -> int:
    """Returns the offset at which an Ogg file should end, which is the end of its last page.

    If the file is truncated, the last page is the last one that begins within the file.
    """
    offset = 0
    while data[offset : offset + 4] == b"OggS":
        segments = data[offset + 26] if offset + 26 < len(data) else 0
        table = data[offset + 27 : offset + 27 + segments]
        if len(table) < segments or offset + 27 > len(data):
            return max(offset + 27 + segments, len(data) + 1)
        offset += 27 + segments + sum(table)
    # If the file ends within the mark "OggS" of a page, at least one byte is missing.
    return len(data) + 1 if b"OggS".startswith(data[offset:]) and data[offset:] else offset
