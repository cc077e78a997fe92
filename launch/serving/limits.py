"""Limits of the sizes of inputs, checked before an input is decoded."""

from __future__ import annotations

import io

import numpy as np

from launch.exports.reader import Raw, declared_pixels, image_formats
from launch.serving.options import Options
from launch.serving.problems import invalid

# Numbers of pixels, samples and cells above which decoding needs much memory.
_LARGE_PIXELS, _LARGE_SAMPLES, _LARGE_CELLS = 4_000_000, 4_000_000, 100_000
# A sound with this number of frames or more has an unknown length.
_UNKNOWN_FRAMES = 1 << 60
_CELL_ENDS = b",;\t\r\n"


def expect_size(raw: Raw, kind: str, options: Options, field: str) -> bool:
    """Checks the size of an input against the limits of the server, before it is decoded.

    Args:
      raw: text, or content of a file.
      kind: kind of the input: "text", "image", "sound" or "table".
      options: options of the server.
      field: name of the input in messages.

    Returns:
      Whether decoding needs much memory.

    Raises:
      Problem: the input is empty or too large.
    """
    if isinstance(raw, str):
        if len(raw) > options.max_text:
            raise invalid(
                f"{field}: got {len(raw)} characters, expected at most {options.max_text}",
                field,
            )
        return False
    if not raw:
        raise invalid(f"{field}: is empty, expected the content of a file", field)
    if kind == "image":
        if (pixels := _pixels(raw)) > options.max_pixels:
            raise invalid(
                f"{field}: got {pixels} pixels, expected at most {options.max_pixels}", field
            )
        return pixels > _LARGE_PIXELS
    if kind == "sound":
        seconds, samples = _length(raw)
        if seconds > options.max_sound_s:
            raise invalid(
                f"{field}: got {seconds:.1f} seconds, expected at most {options.max_sound_s:g}",
                field,
            )
        return samples > _LARGE_SAMPLES
    cells = sum(map(raw.count, (bytes([end]) for end in _CELL_ENDS)))
    if cells > options.max_cells:
        raise invalid(f"{field}: got {cells} cells, expected at most {options.max_cells}", field)
    return cells > _LARGE_CELLS


def _pixels(content: bytes) -> int:
    """Reads the number of pixels from the header of an image.

    The number is 0 if the header cannot be read; the error is raised later, when the image is
    decoded.
    """
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=image_formats()) as image:
                return declared_pixels(image)
    except Image.DecompressionBombError:
        return np.iinfo(np.int64).max
    except Exception:
        # Damaged files raise many exceptions; the reader names the reason.
        return 0


def _length(content: bytes) -> tuple[float, int]:
    """Reads the duration in seconds and the number of samples from the header of a sound.

    Both are 0 if the header cannot be read; the error is raised later, when the sound is decoded.
    If the header has no length, the duration is 0 and the number of samples is large. Decoding then
    fails if the sound exceeds the maximum duration.
    """
    import soundfile

    try:
        found = soundfile.info(io.BytesIO(content))
        frames = found.frames
        if not 0 < frames < _UNKNOWN_FRAMES:
            return 0.0, _UNKNOWN_FRAMES
        return frames / found.samplerate, frames
    except (RuntimeError, ZeroDivisionError, TypeError):
        return 0.0, 0
