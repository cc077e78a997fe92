"""Recordings in three splits: user files and built-in data sets."""

import json

import numpy as np
import pytest
import soundfile

from tasks.common.data import manifests
from tasks.common.data.deduplication import near_duplicates
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.speech_recognition.data import (
    DataConfig,
    add_noise,
    load,
    read_clip,
    speakers_of,
)
from tasks.speech_recognition.datasets import prompts
from tasks.speech_recognition.datasets.spoken_digits import SPEAKERS
from tests.tasks.public import needed

CHARACTERS = TextConfig(tokenizer="character", min_count=1)


@pytest.fixture
def manifest(tmp_path):
    """Writes thirty clips of 0.1 s with two of a few words, and the changed rows."""

    def make(name="train.csv", **changed):
        rng = np.random.default_rng(0)
        lines = ["path,text"]
        for number in range(30):
            sound = f"é {number}.wav"
            soundfile.write(tmp_path / sound, 0.1 * rng.normal(size=800), 8000)
            words = " ".join(rng.choice(["ja", "nein", "größer"], 2)) + f" {'abcdef'[number % 6]}"
            lines.append(changed.get(f"row{number}", f"{sound},{words}"))
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return make


def own(path, **changed):
    return load(DataConfig(path=str(path), text=CHARACTERS, **changed), Paths(None, None))


def test_own_recordings_are_split_and_read(manifest):
    data = own(manifest())
    assert sum(len(clips) for clips in data.splits.values()) == 30
    assert all(len(clips) for clips in data.splits.values())
    example = data.splits["train"][0]
    assert example["samples"].dtype == np.int16
    assert example["length"] == 800
    assert data.tokenizer.decode(example["target"]) == data.splits["train"].texts[0]
    assert len(data.fingerprint) == 32
    assert DataConfig(path="a/train.csv").name == "own_train"


def test_a_folder_of_files_with_their_texts(tmp_path):
    (tmp_path / "b.wav").write_bytes(b"x")
    with pytest.raises(UserError, match=r"b.wav: has no transcript, expected a text file .*b.txt"):
        manifests.find(str(tmp_path))
    (tmp_path / "b.txt").write_text(" größer\n ja ", encoding="utf-8")
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("")
    assert [line.text for line in manifests.find(str(tmp_path))["train"]] == ["", "größer ja"]


def test_manifests_by_name_and_as_json(manifest, tmp_path):
    train = manifest()
    (tmp_path / "dev.tsv").write_text("path\ttext\né 3.wav\tja a\n", encoding="utf-8")
    rows = [{"path": str(tmp_path / "é 4.wav"), "text": text} for text in ("", "ja a")]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = own(f"{train},{tmp_path / 'dev.tsv'},{tmp_path / 'test.jsonl'}")
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [30, 1, 2]
    assert data.splits["test"][0]["target"].tolist() == [0]
    (test,) = [summary for split, summary in data.summary().items() if split == "test"]
    assert str(test) == (
        "2 examples; recordings by class: with a text 1; without a text: 1 (50.0% of recordings)"
    )
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"none of 1 examples of the test split has a label .1 record"
    ):
        own(f"{train},{tmp_path / 'dev.tsv'},{tmp_path / 'test.jsonl'}")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"row2": "nowhere.wav,ja"}, r"train.csv: line 4: no such file: .*nowhere.wav"),
        ({"row2": ",ja"}, "train.csv: line 4: has no path"),
        ({"row2": "é 2.wav"}, "train.csv: line 4 has 1 fields, expected 2 as in the header"),
        (
            {"row2": "é 2.wav,ja, nein"},
            "train.csv: line 4 has 3 fields, expected 2 as in the header; quote",
        ),
        ({"row2": 'é 2.wav,"ja'}, "train.csv: line 4 is malformed"),
    ],
)
def test_rows_that_are_wrong_are_named(manifest, changed, said):
    with pytest.raises(UserError, match=said):
        own(manifest(**changed))


def test_files_that_are_wrong_are_named(manifest, tmp_path):
    path = manifest()
    sound = tmp_path / "é 7.wav"
    sound.write_bytes(sound.read_bytes()[:500])
    with pytest.raises(
        UserError, match=r"train.csv: line 9: .*é 7.wav: is truncated: .*skip_broken"
    ):
        own(path)
    assert sum(len(clips) for clips in own(path, skip_broken=True).splits.values()) == 29
    with pytest.raises(UserError, match=r"got 0.1 s, expected at most .*max_seconds=0.05"):
        read_clip(str(tmp_path / "é 3.wav"), DataConfig(max_seconds=0.05))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match=r"empty.csv: the file is empty"):
        own(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("path,text\n")
    with pytest.raises(UserError, match=r"header.csv: lists no files"):
        own(tmp_path / "header.csv")
    (tmp_path / "other.csv").write_text("file,words\n")
    with pytest.raises(UserError, match=r"other.csv: no column 'path' and 'text'"):
        own(tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"got 2 paths .*; .*x.csv is not named after a split"):
        manifests.find(f"{path},x.csv")


def test_commands_are_split_by_file_or_speaker(tmp_path):
    """Ten words in 200 recordings of ten speakers."""
    words = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
    rng = np.random.default_rng(0)
    rows = ["path,text,Speaker"]
    for number in range(200):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * rng.normal(size=80), 8000)
        rows.append(f"{number}.wav,{words[number % 10]},{number // 20}")
    path = tmp_path / "all.csv"
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(
        UserError, match=r"10 distinct texts in 200 .*config\.data\.split_by to file"
    ):
        own(path)
    by_file = own(path, split_by="file")
    assert [len(by_file.splits[split]) >= 10 for split in by_file.splits] == [True] * 3
    speakers = own(path, split_by="speaker")
    assert {split: len(part) for split, part in speakers.splits.items()} == {
        "train": 160,
        "validation": 20,
        "test": 20,
    }
    # The recordings of a speaker are adjacent, and contain each word twice.
    for split in ("validation", "test"):
        assert sorted(speakers.splits[split].texts) == sorted(words * 2)
    with pytest.raises(
        UserError, match=r"all\.csv: no column 'mic'; the columns are: .* set --speaker to one of"
    ):
        own(path, split_by="mic")
    path.write_text("\n".join([*rows[:40], "40.wav,yes,"]) + "\n")
    with pytest.raises(UserError, match=r"all\.csv: line 41: 'speaker' is empty"):
        own(path, split_by="speaker")
    path.write_text("\n".join(rows[:40]) + "\n")
    with pytest.raises(UserError, match=r"split_by=speaker has 2 distinct values in 39 examples"):
        own(path, split_by="speaker")
    with pytest.raises(
        UserError, match=r"--speaker: got 'speaker', but .* is no manifest and has no columns"
    ):
        own(tmp_path, split_by="speaker")
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(rows[:30]) + "\n")
    three = ",".join(str(tmp_path / f"{name}.csv") for name in ("train", "val", "test"))
    with pytest.raises(
        UserError, match=r"split_by: got 'file', but .* has all splits; remove the setting"
    ):
        own(three, split_by="file")


def test_a_text_that_could_never_be_written_is_named(manifest, tmp_path):
    train = manifest()
    other = tmp_path / "test.csv"
    other.write_text("path,text\né 1.wav,ja жил\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text("path,text\né 1.wav,ja a\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"test.csv: line 2: has characters 'жил' that the training texts lack"
    ):
        own(f"{train},{other},{tmp_path / 'val.csv'}")


def test_what_is_said_in_a_prompt():
    listed = '; Title\n\na: Press 1 for  [beep] "Joe\'s" Diner.\nb: [tone]\nc: 3D\nd: (none)\ne:\n'
    assert prompts.transcripts(listed, "en") == {"a": "press one for beep joe's diner"}
    assert prompts.transcripts("x: 2 Étés", "fr") == {"x": "deux étés"}


def test_speakers_of_the_splits_are_different_ones():
    for held_out in SPEAKERS:
        speakers = speakers_of(held_out)
        assert speakers["test"] == (held_out,)
        assert sorted(sum(speakers.values(), ())) == sorted(SPEAKERS)
        assert len(speakers["train"]) == 4


def test_noise_has_the_ratio_asked_for():
    rng = np.random.default_rng(0)
    samples = np.round(3000 * np.sin(np.arange(8000) / 5)).astype(np.int16)
    added = add_noise(samples, 10, rng).astype(float) - samples
    ratio = 10 * np.log10(np.square(samples.astype(float)).mean() / np.square(added).mean())
    assert abs(ratio - 10) < 0.2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "spoken_digit"}, "did you mean 'spoken_digits'"),
        ({"held_out": "anna"}, "held_out: got .*, expected one of george"),
        ({"held_out": "official"}, "held_out: got .*, expected one of george"),
        ({"test_size": 3}, "test_size: got 3, expected at least 4"),
        ({"max_seconds": 0}, "max_seconds: got 0, expected a number above 0"),
        ({"split_by": "speaker"}, "split_by: got 'speaker', expected 'text', because path is not"),
        (
            {"split_by": "", "path": "x"},
            "split_by: got '', expected text, file or the name of a column",
        ),
        ({"trim": -1.0}, "trim: got -1.0, expected 0 or more decibels"),
        ({"dynamic_range": np.inf}, "dynamic_range: got inf, expected 0 or more decibels"),
        (
            {"dynamic_range": 30.0, "normalised": False},
            "dynamic_range: got 30.0, expected 0",
        ),
        (
            {"text": TextConfig(stem="english")},
            r"text\.stem: got 'english', expected None, because output tokens are decoded to texts",
        ),
    ],
)
def test_configs_that_make_no_sense_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        DataConfig(**changed)


def test_spoken_digits_and_strings_of_them():
    small = {"train_size": 40, "silence": 0.1, "validation_size": 10, "test_size": 20}
    with needed():
        single = load(DataConfig(name="spoken_digits"), Paths.default())
    assert [len(single.splits[split]) for split in single.splits] == [2250, 250, 500]
    assert single.tokenizer.size == 3 + 10
    trimmed = load(DataConfig(name="spoken_digits", trim=25.0), Paths.default()).splits["test"]
    before = single.splits["test"].lengths["samples"]
    assert (trimmed.lengths["samples"] <= before).all()
    assert 0.4 < trimmed.lengths["samples"].mean() / before.mean() < 0.95
    official = load(DataConfig(name="spoken_digits", held_out="official"), Paths.default())
    assert [len(official.splits[split]) for split in official.splits] == [2400, 300, 300]
    strings = load(DataConfig(**small), Paths.default())
    train, test = (strings.splits[split] for split in ("train", "test"))
    assert train.texts[-4:] == [""] * 4
    assert all(train.texts[:40])
    assert np.abs(train[40]["samples"]).max() < 2000
    assert len(strings.splits["validation"]) == 10
    assert strings.conditions == ("", "long", "snr_20", "snr_10", "snr_5", "snr_0", "silence")
    assert np.bincount(test.groups).tolist() == [20, 5, 5, 5, 5, 5, 5]
    words = [len(text.split()) for text in test.texts]
    assert min(words[:20]) >= 3
    assert max(words[:20]) <= 7
    assert min(words[20:25]) >= 8
    # The same strings again, with noise; and nothing said.
    assert test.texts[25:30] == test.texts[:5]
    assert not np.array_equal(test[25]["samples"], test[0]["samples"])
    assert test.texts[-5:] == [""] * 5
    assert test[len(test) - 1]["target"].tolist() == [0]


@pytest.mark.slow
def test_prompts_are_split_without_near_duplicates():
    with needed():
        data = load(DataConfig(name="prompts_en", text=CHARACTERS), Paths.default())
    # With 9 clips, and 14 clips of a separate condition without speech.
    assert [len(data.splits[split]) for split in data.splits] == [433 + 9, 60, 54 + 14]
    train, test = (data.splits[split].texts for split in ("train", "test"))
    assert train[433:] == [""] * 9
    assert not data.splits["test"][54]["samples"].any()
    np.testing.assert_array_equal(data.splits["test"].groups, np.repeat([0, 1], [54, 14]))
    train, test = train[:433], test[:54]
    assert not near_duplicates(train, test).any()
    assert set("".join(test)) <= set("abcdefghijklmnopqrstuvwxyz' ")


def test_silent_recordings_are_named(manifest, tmp_path, capsys):
    path = manifest()
    for number in (3, 5):
        soundfile.write(tmp_path / f"é {number}.wav", np.zeros(800), 8000)
    own(path)
    assert capsys.readouterr().err == (
        f"{path}: 2 recordings are silent, such as {tmp_path / 'é 3.wav'}: every sample is 0\n"
    )
    for file in tmp_path.glob("*.wav"):
        soundfile.write(file, np.zeros(800), 8000)
    with pytest.raises(
        UserError, match=r"all 30 recordings are silent \(every sample is 0\); check"
    ):
        own(path)
