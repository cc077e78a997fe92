"""Small files that stand for much data, and files with false headers."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import soundfile
from PIL import Image


def compressed_zeros(size: int) -> bytes:
    """Returns zlib data of zeros, about a thousandth of their size."""
    compressor, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, compressor.compress(bytes(size % (1 << 20))), compressor.flush()])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, pixels: bytes, *more: bytes, depth: int = 8, kind: int = 0
) -> bytes:
    """Returns a PNG of compressed pixels, with more chunks; kind 0 is gray, 2 RGB, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [
        png_chunk(b"IHDR", header),
        *more,
        png_chunk(b"IDAT", pixels),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def blank_png(width: int, height: int, kind: int = 0) -> bytes:
    """Returns a black PNG."""
    channels = {0: 1, 2: 3, 6: 4}[kind]
    return png(width, height, compressed_zeros(height * (1 + width * channels)), kind=kind)


def text_png() -> bytes:
    """Returns a PNG with 200 compressed texts of 900 kB."""
    text = zlib.compress(bytes(900_000))
    texts = [png_chunk(b"zTXt", b"%d\0\0" % n + text) for n in range(200)]
    return png(8, 8, zlib.compress(bytes(72)), *texts)


def tiled_tiff(side: int, tile: int, data: bytes) -> bytes:
    """Returns a TIFF of `side` x `side` gray pixels in one tile, which is larger, of zlib data."""
    tags = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1),
            (322, tile), (323, tile), (324, 0), (325, len(data))]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag == 324 else value) for tag, value in tags
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", 0) + data


def scanned_jpeg(side: int, scans: int) -> bytes:
    """Returns a progressive JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * scans + content[-2:]


def silence(kind: str, seconds: float, rate: int = 8000, subtype: str | None = None) -> bytes:
    """Returns a sound file of silence in a format of libsndfile."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, format=kind, subtype=subtype) as sound:
        block, left = np.zeros(1 << 20, np.float32), int(seconds * rate)
        while left > 0:
            sound.write(block[:left])
            left -= len(block)
    return buffer.getvalue()


def piped_flac(content: bytes) -> bytes:
    """Returns a FLAC file as written to a pipe: without number of samples and checksum."""
    changed = bytearray(content)
    assert changed[:4] == b"fLaC"
    changed[21] &= 0xF0
    changed[22:42] = bytes(20)
    return bytes(changed)


def piped_wav(content: bytes, size: int) -> bytes:
    """Returns a WAV file as written to a pipe, with a placeholder for its size."""
    changed, at = bytearray(content), content.index(b"data")
    changed[4:8] = changed[at + 4 : at + 8] = struct.pack("<I", size)
    return bytes(changed)
