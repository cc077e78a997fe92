"""Headers of sound files that libsndfile alone would misread: streams, cut files, phone formats.

A program that writes sound to a pipe cannot go back to fill in how long it is: the sizes in the
header are 0, or as large as can be.
"""

from __future__ import annotations

# Sizes from here on are placeholders: 0xFFFFFFFF (ffmpeg), 0x80000000 (arecord), 0x7FFFF000 (sox).
_PLACEHOLDER = 0x7FFFF000
_LARGEST = 0xFFFFFFFF
_WAVES = {b"RIFF": "little", b"RIFX": "big", b"RF64": "little"}
# Bytes at a place -> a kind that libsndfile does not read.
_OTHERS = (
    (4, b"ftyp", "MPEG-4 audio (m4a, mp4, 3gp)"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75", "Windows Media Audio"),
    (0, b"ADIF", "AAC"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"MThd", "MIDI, which holds notes and no sound"),
)


def unsupported_kind(data: bytes) -> str | None:
    """Returns the name of a known kind of file that is not supported; None for all others."""
    for place, mark, kind in _OTHERS:
        if data[place : place + len(mark)] == mark:
            return kind
    return None


def with_true_sizes(data: bytes) -> bytes:
    """Returns a WAV or AU file with the sizes that it has, where its header has placeholders.

    Args:
      data: a file of any kind; others, and those with real sizes, come back as they are.
    """
    if data[:4] == b".snd" and data[8:12] == bytes(4):
        # The sign of an unknown size.
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
    """Returns by how many bytes a file is shorter than its header says; libsndfile reads what there
    is.

    Args:
      data: after `with_true_sizes`; of WAV, AIFF, AU, Wave64 and Ogg, 0 for other kinds.
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
    """Returns the rate in the header of a WAV file; None if there is none."""
    order = _WAVES.get(data[:4])
    for at, name, _ in _chunks(data, order) if order else ():
        if name == b"fmt ":
            return int.from_bytes(data[at + 12 : at + 16], order)
    return None


def _chunks(data: bytes, order: str, start: int = 12):
    """Place, name and size of each chunk that begins within the file."""
    place = start
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], order)
        yield place, data[place : place + 4], size
        place += 8 + size + size % 2


def _data_chunk(data: bytes) -> tuple[int, int, int] | None:
    """Where the samples of a WAV file begin, their size in bytes, and, if that stands in a chunk of
    64-bit sizes, where these begin; else 0.
    """
    order = _WAVES.get(data[:4])
    if order is None or data[8:12] != b"WAVE":
        return None
    long = 0
    for place, name, size in _chunks(data, order):
        if name == b"ds64" and data[:4] == b"RF64":
            long = place + 8
        elif name == b"data":
            if long and size == _LARGEST:
                return place + 8, int.from_bytes(data[long + 8 : long + 16], order), long
            return place + 8, size, 0
    return None


def _are_chunks(data: bytes, start: int) -> bool:
    """Whether a file consists of chunks from here to its end, as of an empty recording with notes;
    samples do not look like that.
    """
    place = start
    for place, name, size in _chunks(data, _WAVES[data[:4]], start):
        if not (name.isascii() and name.decode().isprintable()) or place + 8 + size > len(data):
            return False
        place += 8 + size + size % 2
    return place >= len(data)


def _wave64_end(data: bytes) -> int:
    place = 40
    while place + 24 <= len(data):
        size = int.from_bytes(data[place + 16 : place + 24], "little")
        if data[place : place + 4] == b"data":
            return place + size
        place += max(size + -size % 8, 24)
    return 0


def _ogg_end(data: bytes) -> int:
    """Where the last page ends that begins within the file."""
    place = 0
    while data[place : place + 4] == b"OggS":
        segments = data[place + 26] if place + 26 < len(data) else 0
        table = data[place + 27 : place + 27 + segments]
        if len(table) < segments or place + 27 > len(data):
            return max(place + 27 + segments, len(data) + 1)
        place += 27 + segments + sum(table)
    # What is left of a page's mark.
    return len(data) + 1 if b"OggS".startswith(data[place:]) and data[place:] else place
