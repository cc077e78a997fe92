"""Sound files of many kinds, and features that padding does not change."""

import io

import jax
import numpy as np
import pytest
import soundfile

from tasks.common.audio import augmentation, files
from tasks.common.audio import features as audio
from tasks.common.audio.augmentation import SoundAugmentation
from tasks.common.audio.features import LogMelConfig
from tasks.common.errors import UserError

RATE = 8000


def tone(rate, seconds=0.25, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def written(samples, rate, subtype="PCM_16", kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype=subtype, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("rate", "subtype", "kind", "channels", "tolerance"),
    [
        (8000, "PCM_16", "WAV", 1, 1e-4),
        (8000, "PCM_U8", "WAV", 1, 1e-2),
        (8000, "FLOAT", "WAV", 2, 1e-6),
        (44100, "PCM_24", "WAV", 2, 1e-3),
        (16000, "PCM_16", "FLAC", 1, 1e-3),
    ],
)
def test_files_of_any_width_rate_and_channels(rate, subtype, kind, channels, tolerance):
    samples = np.stack([tone(rate)] * channels, axis=1)
    found = files.read_audio(written(samples, rate, subtype, kind), RATE)
    assert found.dtype == np.float32
    expected = tone(RATE)
    assert abs(len(found) - len(expected)) <= 1
    # Where a filter has nothing to look at, it has ripples.
    middle = slice(200, 1800)
    np.testing.assert_allclose(found[middle], expected[middle], atol=tolerance)


def test_channels_are_averaged():
    samples = np.stack([tone(RATE), -tone(RATE)], axis=1)
    assert abs(files.read_audio(written(samples, RATE, "FLOAT"), RATE)).max() < 1e-6


def test_what_is_no_sound_is_named(tmp_path):
    whole = written(tone(RATE), RATE)
    with pytest.raises(UserError, match=r"cut.wav: is truncated: 1022 bytes are missing"):
        files.read_audio(whole[:3022], RATE, "cut.wav")
    with pytest.raises(UserError, match=r"x.wav: not a readable audio file"):
        files.read_audio(b"RIFF....WAVE what", RATE, "x.wav")
    with pytest.raises(UserError, match=r"empty.wav: the file is empty"):
        files.read_audio(b"", RATE, "empty.wav")
    with pytest.raises(UserError, match=r"nowhere.wav: no such file"):
        files.read_audio(tmp_path / "nowhere.wav", RATE)
    bad = tone(RATE)
    bad[5] = np.nan
    with pytest.raises(UserError, match="not finite"):
        files.read_audio(written(bad, RATE, "FLOAT"), RATE, "nan.wav")


def test_a_file_without_samples_is_silence_of_no_length():
    assert files.read_audio(written(np.zeros(0), RATE), RATE).shape == (0,)
    assert files.read_audio(written(np.zeros(0), 44100), RATE).shape == (0,)


def test_features_do_not_depend_on_padding():
    config = LogMelConfig()
    rng = np.random.default_rng(0)
    lengths = np.array([2000, 700, 1, 0])
    samples = rng.normal(size=(4, 2000)).astype(np.float32)
    compute = jax.jit(lambda x, lengths: audio.log_mel(x, lengths, config))
    features, frames = compute(samples, lengths)
    assert frames.tolist() == [22, 6, 1, 0]
    assert features.shape == (4, 22, 40)
    assert np.isfinite(features).all()
    assert not features[3].any()
    for row, length in enumerate(lengths):
        alone = np.zeros((4, 2000), np.float32)
        alone[0, :length] = samples[row, :length]
        again, count = compute(alone, np.array([length, 0, 0, 0]))
        assert count[0] == frames[row]
        np.testing.assert_allclose(again[0], features[row], atol=1e-4)


def test_silence_is_the_floor():
    features, _ = audio.log_mel(np.zeros((1, 800), np.float32), np.array([800]), LogMelConfig())
    np.testing.assert_allclose(features, np.log(1e-6), rtol=1e-6)


def test_silent_ends_are_taken_off():
    rng = np.random.default_rng(0)
    quiet = 10 ** (-40 / 20) * 0.5 * rng.normal(size=3000)
    loud, between = tone(RATE), np.zeros(1000)
    clip = files.to_pcm(np.concatenate([quiet, loud, between, loud, quiet]))
    short = files.trim_silence(clip, 25.0)
    assert short.dtype == np.int16
    assert 5000 <= len(short) < 5600
    assert len(files.trim_silence(clip, 80.0)) == len(clip)
    for same in (clip, np.zeros(500, np.int16), np.zeros(0, np.int16), np.ones(1, np.int16)):
        assert len(files.trim_silence(same, 0.0)) == len(same)
    assert len(files.trim_silence(np.zeros(500, np.int16), 25.0)) == 500
    assert len(files.trim_silence(np.ones(1, np.int16), 25.0)) == 1
    assert not len(files.trim_silence(np.zeros(0, np.int16), 25.0))


def keys(count):
    return jax.vmap(jax.random.key)(np.arange(count))


def test_speed_changes_pitch_and_length():
    config = SoundAugmentation(speed=0.2)
    samples = np.stack([tone(RATE)] * 3).astype(np.float32)
    changed, lengths = augmentation.augment_samples(samples, np.full(3, 2000), keys(3), config)
    for row, length in zip(np.asarray(changed), np.asarray(lengths), strict=True):
        rate = 2000 / length
        assert 0.8 < rate < 1.21
        assert not row[length:].any()
        crossings = np.sum(np.diff(np.sign(row[:length])) != 0)
        assert abs(crossings / (length / RATE) / 2 - 440 * rate) < 15
    assert len(set(np.asarray(lengths).tolist())) > 1


def test_noise_has_the_ratio_asked_for_and_silence_stays():
    samples = np.stack([tone(RATE), np.zeros(2000)]).astype(np.float32)
    noisy, _ = augmentation.augment_samples(
        samples, np.full(2, 2000), keys(2), SoundAugmentation(noise=(10.0, 10.0))
    )
    added = np.asarray(noisy - samples)
    ratio = 10 * np.log10(np.square(samples[0]).mean() / np.square(added[0]).mean())
    assert abs(ratio - 10) < 0.5
    assert not added[1].any()


def test_another_throat_stretches_the_bands():
    bands = np.arange(40)
    hill = np.exp(-np.square((bands - 20) / 2)).astype(np.float32)
    features = np.tile(hill, (30, 3, 1))
    warped = np.asarray(augmentation.perturb_bands(features, keys(30), SoundAugmentation(warp=0.2)))
    # All frames of an example are equal, and the peak moves by at most a fifth.
    assert (warped == warped[:, :1]).all()
    peaks = warped[:, 0].argmax(axis=1)
    assert peaks.min() >= 16
    assert peaks.max() <= 25
    assert len(set(peaks.tolist())) > 4


def test_another_microphone_adds_a_smooth_curve_to_all_frames():
    features = np.random.default_rng(0).normal(size=(200, 4, 41)).astype(np.float32)
    changed = augmentation.perturb_bands(features, keys(200), SoundAugmentation(equalizer=6.0))
    added = np.asarray(changed) - features
    np.testing.assert_allclose(added, np.tile(added[:, :1], (1, 4, 1)), atol=1e-5)
    curves = added[:, 0]
    # Lines between six knots of 6 dB.
    np.testing.assert_allclose(np.diff(curves[:, :9], 2), 0, atol=1e-4)
    assert 10 / np.log(10) * curves[:, ::8].std() == pytest.approx(6, rel=0.1)
    assert augmentation.perturb_bands(features, keys(200), SoundAugmentation()) is features


def test_masks_hide_stretches_of_frames_and_bands():
    config = SoundAugmentation(time_masks=1, time_width=4, band_masks=1, band_width=3)
    features = np.random.default_rng(0).normal(size=(20, 12, 8)).astype(np.float32)
    frames = np.full(20, 9)
    hidden = np.asarray(augmentation.spec_augment(features, frames, keys(20), config)) != features
    assert not hidden[:, 9:].any()
    frames_hidden = hidden[:, :9].all(axis=2).sum(axis=1)
    bands_hidden = hidden[:, :9].all(axis=1).sum(axis=1)
    assert set(frames_hidden.tolist()) == {0, 1, 2, 3, 4}
    assert set(bands_hidden.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sample_rate": 0}, "sample_rate: got 0, expected at least 1"),
        ({"hop": float("nan")}, "hop: got nan, expected a number above 0"),
        ({"lowest": 4000.0}, r"lowest: got 4000.0, expected a number in \[0, 4000\)"),
        ({"bands": 400}, "bands: got 400, expected fewer"),
    ],
)
def test_sizes_that_make_no_sense_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        LogMelConfig(**changed)
    with pytest.raises(ValueError, match=r"noise: got .* expected smallest and largest"):
        SoundAugmentation(noise=(20.0, 5.0))


def test_channels_that_cancel_each_other_are_named(tmp_path, capsys):
    both = np.stack([tone(RATE), -0.9995 * tone(RATE)], axis=1)
    (tmp_path / "a.wav").write_bytes(written(both, RATE, "FLOAT"))
    assert 0 < np.abs(files.read_audio(tmp_path / "a.wav", RATE)).max() < 3e-4
    assert "a.wav: its channels cancel each other" in capsys.readouterr().err
    (tmp_path / "b.wav").write_bytes(written(np.stack([tone(RATE), 0 * tone(RATE)], axis=1), RATE))
    files.read_audio(tmp_path / "b.wav", RATE)
    assert capsys.readouterr().err == ""
