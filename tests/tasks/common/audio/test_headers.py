"""Sound files as streams, phones and broken recorders leave them; the bytes are written by hand."""

import io
import struct

import numpy as np
import pytest
import soundfile

from tasks.common import errors
from tasks.common.audio.files import read_audio, to_pcm
from tasks.common.errors import UserError
from tasks.speech_recognition.data import DataConfig, read_clip

RATE = 8000
VALUES = (np.arange(1000) % 100 * 100).astype("<i2")
SOUND = VALUES.tobytes()
EXPECTED = VALUES / np.float32(32768)
LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"
GUID = b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"


def wav(data=SOUND, *, riff=None, size=None, kind=1, channels=1, rate=RATE, bits=16,
        extension=b"", before=b"", after=b""):  # fmt: skip
    """Returns a WAV file, with `riff` and `size` in its header instead of the true sizes."""
    block = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits) + extension
    body = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + before + b"data"
    body += struct.pack("<I", len(data) if size is None else size) + data + after
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def rf64(size, data=SOUND):
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 0, size, 1000, 0)
    layout = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    body = b"WAVE" + sizes + layout + b"data" + b"\xff" * 4 + data
    return b"RF64" + b"\xff" * 4 + body


def au(size):
    head = struct.pack(">4sIIIII", b".snd", 24, size, 3, RATE, 1)
    return head + VALUES.astype(">i2").tobytes()


def read(data):
    return read_audio(data, RATE, "x.wav")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x80000000, 0x7FFFF000, 0x7FFFFFDB, 0xFFFFFFDA])
@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF, 0x7FFFF024, None])
def test_streams_are_read_to_their_end(size, riff):
    for before, end in ((b"", b""), (LIST, b""), (b"", b"\x07")):
        data = wav(VALUES.tobytes() + end, riff=riff, size=size, before=before)
        np.testing.assert_array_equal(read(data), EXPECTED)


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63, 2000])
def test_streams_of_64_bit_sizes(size):
    np.testing.assert_array_equal(read(rf64(size)), EXPECTED)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 2000])
def test_au_streams(size):
    np.testing.assert_array_equal(read(au(size)), EXPECTED)


def test_chunks_around_the_samples_are_no_sound():
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"
    np.testing.assert_array_equal(read(wav(before=odd, after=odd + LIST)), EXPECTED)
    np.testing.assert_array_equal(read(wav(VALUES[:999].tobytes()[:-1] + b"", after=LIST)),
                                  EXPECTED[:998])  # fmt: skip
    big = b"RIFX" + struct.pack(">I", 2036) + b"WAVEfmt "
    big += struct.pack(">IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + b"data"
    big += struct.pack(">I", 2000) + VALUES.astype(">i2").tobytes()
    np.testing.assert_array_equal(read(big), EXPECTED)


def test_an_empty_recording_is_refused_by_its_name(tmp_path):
    for number, data in enumerate((wav(b""), wav(b"", after=LIST), wav(b"", size=0xFFFFFFFF))):
        assert read(data).shape == (0,)
        file = tmp_path / f"{number}.wav"
        file.write_bytes(data)
        with pytest.raises(UserError, match=rf"{number}.wav: got no samples at \d+ Hz, expec"):
            read_clip(str(file), DataConfig())


@pytest.mark.parametrize("trim", [0.0, 25.0])
def test_silence_stays_silence(trim):
    data = wav(np.zeros(3000, "<i2").tobytes(), size=0)
    found = read_clip(data, DataConfig(trim=trim), "x.wav")
    assert found.dtype == np.int16
    assert len(found) == 3000
    assert not found.any()


def test_recordings_that_are_shorter_than_their_header_says_are_refused():
    kinds = {
        "WAV": (wav(size=2600, riff=2636), "600 bytes"),
        "RF64": (rf64(2600), "600 bytes"),
        "AU": (au(2600), "600 bytes"),
    }
    for kind, sub in (("AIFF", "PCM_16"), ("W64", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.3 * np.sin(np.arange(8000) / 9), RATE, format=kind, subtype=sub)
        data = buffer.getvalue()
        assert len(read_audio(data, RATE, "whole")) == 8000
        kinds[f"{kind} {sub}"] = (data[:-3], "bytes")
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(48000) / 9), 48000, format="MP3")
    assert len(read_audio(buffer.getvalue(), 48000, "whole")) == 48000
    kinds["MP3"] = (buffer.getvalue()[: len(buffer.getvalue()) // 2], "samples")
    for kind, (data, what) in kinds.items():
        with pytest.raises(UserError, match=f"x: is truncated: .*{what} are missing") as refused:
            read_audio(data, RATE, "x")
        assert kind
        assert "\n" not in str(refused.value)


def test_a_flac_stream_does_not_know_how_long_it_is():
    buffer = io.BytesIO()
    soundfile.write(buffer, EXPECTED, RATE, format="FLAC", subtype="PCM_16")
    data = bytearray(buffer.getvalue())
    # The 36 bits of the number of samples: 0 is unknown.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(read(bytes(data)), EXPECTED)
    # A number that no memory holds.
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    with pytest.raises(UserError, match=r"is truncated: .* samples are missing"):
        read(bytes(data))


@pytest.mark.parametrize(
    ("data", "kind", "bits", "extension", "expected"),
    [
        (bytes([0, 128, 192, 255]), 1, 8, b"", [-1, 0, 0.5, 127 / 128]),
        (b"\0\0\x40\0\0\x80\xff\xff\x7f", 1, 24, b"", [0.5, -1, 1 - 2**-23]),
        (struct.pack("<3i", 2**30, -(2**31), 0), 1, 32, b"", [0.5, -1, 0]),
        (struct.pack("<3f", 0.5, -1, 1), 3, 32, b"", [0.5, -1, 1]),
        (struct.pack("<3d", 0.5, -1, 1), 3, 64, b"", [0.5, -1, 1]),
        # G.711: the codes of the largest and the smallest steps.
        (bytes([0xAA, 0x2A, 0xD5]), 6, 8, b"", [32256 / 32768, -32256 / 32768, 8 / 32768]),
        (bytes([0x80, 0x00, 0xFF]), 7, 8, b"", [32124 / 32768, -32124 / 32768, 0]),
        (
            struct.pack("<2h", 16384, -16384),
            0xFFFE,
            16,
            struct.pack("<HHIH", 22, 16, 4, 1) + GUID,
            [0.5, -0.5],
        ),
        (
            struct.pack("<2f", 0.25, -1),
            0xFFFE,
            32,
            struct.pack("<HHIH", 22, 32, 4, 3) + GUID,
            [0.25, -1],
        ),
    ],
)
def test_widths_by_hand(data, kind, bits, extension, expected, capsys):
    for size in (None, 0xFFFFFFFF, 0):
        found = read(wav(data, kind=kind, bits=bits, extension=extension, size=size))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert capsys.readouterr().err == ""


def test_any_number_of_channels_is_averaged():
    data = struct.pack("<8h", *range(0, 8000, 1000))
    found = read(wav(data, channels=4))
    np.testing.assert_allclose(found * 32768, [1500, 5500])


@pytest.mark.parametrize("peak", [1.01, 2.0, 30000.0, 1e30])
def test_samples_beyond_one_are_scaled_with_a_message(peak, capsys):
    errors._warned.clear()
    wave = np.array([0, 0.5, -1, 0.25], "<f4") * np.float32(peak)
    data = wav(wave.tobytes(), kind=3, bits=32)
    for _ in range(2):
        found = read(data)
        np.testing.assert_allclose(found, [0, 0.5, -1, 0.25], rtol=1e-6)
    assert capsys.readouterr().err == (
        f"x.wav: has samples up to {np.float32(peak):.5g}, beyond 1; all samples are divided by "
        f"this peak\n"
    )
    # Nothing wraps around.
    assert to_pcm(found).tolist() == [0, 16384, -32768, 8192]
    slow = read_audio(data, 4000, "x.wav")
    assert np.abs(slow).max() <= 1


def test_what_stays_within_one_is_left_as_it_is(capsys):
    wave = np.array([0, 0.5, -1, 1], "<f4")
    np.testing.assert_array_equal(read(wav(wave.tobytes(), kind=3, bits=32)), wave)
    # Channels beyond 1 whose mean is not.
    pair = np.array([[3, -2], [1, 0]], "<f4")
    found = read(wav(pair.tobytes(), kind=3, bits=32, channels=2))
    np.testing.assert_allclose(found, [0.5, 0.5])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_refused(value):
    data = np.array([0.0, value], "<f8").tobytes()
    with pytest.raises(UserError, match=r"x.wav: has samples that are not finite"):
        read(wav(data, kind=3, bits=64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wav(rate=0), "has a rate of 0 samples per second, expected 1000 to 1000000"),
        (wav(rate=1), "has a rate of 1 samples per second"),
        (wav(rate=2**31 - 1), "has a rate of 2147483647 samples per second"),
        (wav(channels=0), "not a readable audio file .*convert it to WAV or FLAC"),
        (wav()[:36], "not a readable audio file"),
        (
            b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(99),
            "is MPEG-4 audio .*; convert it to",
        ),
        (b"\0\0\0\x1cftyp3gp4\0\0\0\0" + bytes(99), "is MPEG-4 audio"),
        (b"#!AMR\n" + bytes(99), "is AMR, which is not supported; convert"),
        (b"\x1a\x45\xdf\xa3" + bytes(99), "is WebM or Matroska"),
        (b"\xff\xf1\x50\x80" + bytes(99), "is AAC, which"),
        (
            b"a letter, no sound at all",
            r"not a readable audio file .*\(.*ormat.*\); convert it "
            r"to WAV or FLAC",
        ),
    ],
)
def test_what_cannot_be_read_says_what_to_do(data, message):
    with pytest.raises(UserError, match=f"x.wav: {message}") as refused:
        read(data)
    assert "\n" not in str(refused.value)


def test_any_damage_of_a_byte_is_one_line_or_sound():
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    soundfile.write(buffer, EXPECTED, RATE, format="FLAC", subtype="PCM_16")
    for whole in (wav(after=LIST), rf64(2000), au(2000), buffer.getvalue()):
        for _ in range(100):
            data = bytearray(whole)
            for place in rng.integers(60, size=rng.integers(1, 4)):
                data[place] = rng.integers(256)
            data = data[: len(data) - rng.integers(2) * rng.integers(len(data))]
            try:
                found = read(bytes(data)) if data else np.zeros(0)
            except UserError as error:
                found = np.zeros(0)
                said = str(error)
                if not said.startswith("x.wav: ") or "\n" in said:
                    raise
            assert np.isfinite(found).all()
