"""Exports of the tasks that read sound, tables of series, and queries for items."""

import csv
import dataclasses
import io
import json
import random
import re
import struct
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from launch.engine import state as states
from launch.engine.predictor import Predictor
from launch.engine.steps import make_steps
from launch.exports import reader, writer
from tasks.common.audio.files import trim_silence
from tasks.task import Processor
from tests.launch.exports.test_text import assert_same
from tests.launch.serving import hostile_files
from tests.tasks import contract

NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]\d+)?")
TASKS = ("speech_recognition", "forecasting", "recommendation")


class Case(NamedTuple):
    """An export, and the predictor of the restored task, which pads to any length."""

    predictor: Predictor
    processor: Processor
    export: reader.Export
    raw: list[str]


def restored(task, model):
    return type(task).restore(task.data, model, json.loads(json.dumps(task.assets())))


def case_of(task, config, variables, folder, raw):
    writer.write_export(task, config, variables, folder)
    predictor = Predictor(task, config, make_steps(task, config), variables)
    return Case(predictor, task.processor, reader.Export(folder), raw)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a function from a name to its case with 20 valid inputs, made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            subject = contract.make_subject(name, folder)
            task = restored(subject.task, subject.task.model)
            (folder / "inputs").mkdir()
            raw = INPUTS[name](folder / "inputs", subject)
            made[name] = case_of(task, subject.config, subject.variables, folder / "export", raw)
        return made[name]

    return get


# ---------------------------------------------------------------- inputs


def write_wav(path, samples, rate=8000, **options):
    soundfile.write(path, samples, rate, **options)
    return str(path)


def sounds(folder, subject):
    """Writes sound files of several lengths, rates, channels, formats and loudnesses."""
    rng, found = np.random.default_rng(0), list(subject.raw)
    lengths = (90, 800, 1600, 1601, 3000, 8001)
    kinds = [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_24"), ("ogg", "VORBIS"),
             ("aiff", "PCM_16"), ("wav", "PCM_U8"), ("mp3", "MPEG_LAYER_III")]  # fmt: skip
    for number in range(21):
        kind, subtype = kinds[number % 7]
        rate = (8000, 16000, 44100, 8000, 11025)[number % 5]
        rate = 44100 if kind == "mp3" else rate
        size = lengths[number % 6] * rate // 8000
        samples = rng.normal(size=(size, 1 + number % 2)) * (0.02, 0.2, 0.6)[number % 3]
        if subtype != "FLOAT":
            samples = samples.clip(-1, 1)
        path = folder / f"{number:02d}.{kind}"
        found.append(write_wav(path, samples.astype(np.float32), rate, subtype=subtype))
    streamed = bytearray((folder / "00.wav").read_bytes())
    start = streamed.index(b"data") + 8
    streamed[start - 4 : start] = streamed[4:8] = b"\xff" * 4
    (folder / "stream.wav").write_bytes(streamed)
    return [*found, str(folder / "stream.wav"), f" {found[-1]} "]


def series(folder, subject):
    """Writes tables with gaps, missing cells, and several orders of columns and delimiters."""
    rng, found = random.Random(0), [*subject.raw, f"{subject.raw[0]},steps=3"]
    for number in range(20):
        mark = ",;\t"[number % 3]
        columns = [*("date", "load", "heat")[:: -1 if number % 2 else 1], "note"]
        lines = []
        for hour in range(rng.choice([2, 9, 24, 60])):
            if hour and rng.random() < 0.1:
                continue
            day, rest = divmod(hour + 24 * number, 24)
            zone = "Z" if number % 4 == 1 else ""
            cells = {"date": f"2024-02-{day + 1:02d}{' T'[number % 2]}{rest:02d}:00:00{zone}",
                     "load": f"{rng.gauss(0, 3):.3f}", "heat": f"{rng.gauss(5, 1):.5g}",
                     "note": "windy, cold"}  # fmt: skip
            if hour and rng.random() < 0.2:
                cells[rng.choice(["load", "heat"])] = rng.choice(["", "NA", "nan"])
            lines.append(mark.join(f'"{cells[c]}"' if c == "note" else cells[c] for c in columns))
        if number % 5 == 0:
            lines.reverse()
        path = folder / f"{number}.{'tsv' if mark == chr(9) else 'csv'}"
        bom = "\ufeff" if number % 6 == 0 else ""
        path.write_text(bom + "\n".join([mark.join(columns), *lines, ""]), encoding="utf-8")
        found.append(str(path) + ("", ",steps=1", ",steps=7", ",steps=16")[number % 4])
    return found


def queries(folder, subject):
    """Returns users, titles in another case, unknown titles with and without a near one."""
    rng = random.Random(0)
    found = [*subject.raw, "", " ", "user:u3", "USER: u11 ", "user:ghost", "user:", "i3;i4; I5"]
    found += ["i3; what is this; i44", ";;", "i1.0", "unknown", "i3; i3"]
    for _ in range(10):
        parts = rng.sample([f"i{n}" for n in range(20)], rng.randint(1, 14))
        found.append("; ".join(parts))
    return found


INPUTS = {"speech_recognition": sounds, "forecasting": series, "recommendation": queries}


# ---------------------------------------------------------------- equality


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_those_of_the_predictor(exported, name):
    predictor, _, export, raw = exported(name)
    assert len(raw) >= 20
    expected = predictor(raw)
    assert_same(export(raw), expected)
    assert_same([answer for one in raw[:3] for answer in export([one])], expected[:3])


@pytest.mark.parametrize("name", TASKS)
def test_arrays_are_those_of_the_processor(exported, name):
    _, processor, export, raw = exported(name)
    examples = processor.encode(raw)
    for index, one in enumerate(raw):
        (row,) = export.encode(one).rows
        for field in processor.signature():
            if field in row:
                expected, found = examples[index][field], row[field]
                assert np.asarray(found).dtype == expected.dtype, field
                if field in ("seen", "calendar"):
                    # Padded to the longest of the inputs.
                    expected = expected[: len(found)]
                np.testing.assert_array_equal(found, expected, err_msg=f"{field} of {one!r}")


@pytest.mark.parametrize("name", TASKS)
def test_verifies(exported, name):
    assert exported(name).export.verify() < 1e-5


@pytest.mark.parametrize("name", ["speech_recognition", "forecasting"])
def test_the_content_of_a_file_gives_the_answer_of_its_path(exported, name):
    predictor, _, export, raw = exported(name)
    plain = [one for one in raw if "," not in one.rpartition("/")[2]][:6]
    contents = [reader.read_content(one) for one in plain]
    for found, expected in zip(export(contents), predictor(plain), strict=True):
        assert_same({**found, "input": expected["input"]}, expected)
        assert found["input"] is None


@pytest.mark.parametrize("name", TASKS)
def test_lines_to_print_are_those_of_the_predictor(exported, name):
    predictor, _, export, raw = exported(name)
    for found, expected in zip(export(raw), predictor(raw), strict=True):
        # The last digit may be rounded otherwise.
        pairs = [(NUMBER.sub("#", x["text"]), NUMBER.findall(x["text"])) for x in (found, expected)]
        assert pairs[0][0] == pairs[1][0]
        for pair in zip(pairs[0][1], pairs[1][1], strict=True):
            digit = 10.0 ** -len(pair[1].partition(".")[2].partition("e")[0])
            assert float(pair[0]) == pytest.approx(float(pair[1]), rel=2e-5, abs=1.1 * digit)


# ---------------------------------------------------------------- sound


def message(export, raw):
    with pytest.raises(reader.InputError) as caught:
        export.encode(raw)
    found = str(caught.value)
    assert "\n" not in found
    assert found.startswith("input ")
    return found


def wav(samples, rate=8000, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("no/such/file.wav", "No such file"),
        ("", "expected a file"),
        ("x\0y", "not a path"),
        ("x" * 5000, "cannot be read"),
        (".", "is a folder"),
        (b"", "empty"),
        (b"\0", "not sound"),
        (b"plain text that is no sound at all", "not sound"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not sound"),
        (wav(np.zeros(1000))[:-500], "truncated: 500 bytes"),
        (wav(np.zeros(0)), "no samples"),
        (wav(np.full(100, np.nan, np.float32), subtype="FLOAT"), "not finite"),
        (wav(np.zeros(8000 * 60 + 1)), "at most 60 s"),
        (wav(np.zeros(8000 * 62)), "longer than 60 s"),
        (wav(np.zeros(100), rate=100), "100 samples per second"),
        (hostile_files.silence("FLAC", 55, 655_350), "more than 33,554,432 in all"),
        (hostile_files.piped_flac(hostile_files.silence("FLAC", 62)), "longer than 60 s"),
    ],
)
def test_mistakes_with_sound(exported, raw, expected):
    assert expected in message(exported("speech_recognition").export, raw)


def test_a_stream_with_sizes_of_zero_is_read_to_its_end(exported):
    export = exported("speech_recognition").export
    samples = np.arange(-300, 300, dtype=np.int16)
    data = bytearray(wav(samples))
    data[4:8] = data[40:44] = struct.pack("<I", 0)
    np.testing.assert_array_equal(export.encode(bytes(data)).rows[0]["samples"], samples)


def test_a_limit_of_the_caller_bounds_sounds_without_a_length(exported):
    export = exported("speech_recognition").export
    samples = np.arange(-8000, 8000, dtype=np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="FLAC")
    piped = hostile_files.piped_flac(buffer.getvalue())
    assert soundfile.info(io.BytesIO(piped)).frames > 1 << 60
    for data in (buffer.getvalue(), piped, hostile_files.piped_wav(wav(samples), 0)):
        np.testing.assert_array_equal(export.encode(data, 2.0).rows[0]["samples"], samples)
        with pytest.raises(reader.InputError, match=r"expected at most 1.9 s; cut it"):
            export.encode(data, 1.9)
        with pytest.raises(reader.InputError, match=r"longer than 0.5 s; cut it"):
            export.encode(data, 0.5)


def test_an_empty_recording_with_notes_has_no_samples(exported):
    data = bytearray(wav(np.zeros(0)))
    data += b"LIST" + struct.pack("<I", 4) + b"note"
    assert "no samples" in message(exported("speech_recognition").export, bytes(data))


def test_truncated_ogg_is_refused(exported):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(size=8000) / 10
    soundfile.write(buffer, noise, 8000, format="OGG", subtype="VORBIS")
    data = buffer.getvalue()
    assert "truncated" in message(exported("speech_recognition").export, data[:-100])
    exported("speech_recognition").export.encode(data)


@pytest.mark.parametrize("decibels", [0.0, 10.0, 25.0, 60.0])
def test_trims_as_the_project(decibels):
    rng = np.random.default_rng(0)
    clips = [np.zeros(500), rng.normal(size=40), rng.normal(size=100) * 1e-5]
    clips += [
        np.concatenate([np.zeros(n), rng.normal(size=900), np.zeros(3 * n)]) for n in (64, 999)
    ]
    clips += [rng.normal(size=5000) * np.hanning(5000) ** power for power in (1, 4)]
    for clip in clips:
        samples = np.round(clip * 3000).astype(np.int16)
        expected = trim_silence(samples, decibels)
        np.testing.assert_array_equal(reader._trimmed(samples, decibels), expected)


def test_padding_to_a_longer_program_changes_no_transcript(exported):
    _, _, export, raw = exported("speech_recognition")
    rows = [export.encode(one).rows[0] for one in raw[:4]]
    sizes = [program["sizes"]["length"] for program in export.signature["programs"]["predict"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 8000 * 60
    outputs = []
    for bucket in (0, 1):
        batch = export.batch(rows, range(len(rows)), bucket, len(rows))
        outputs.append(export.program("predict", bucket)(batch))
    np.testing.assert_array_equal(outputs[0]["tokens"], outputs[1]["tokens"])
    np.testing.assert_allclose(outputs[0]["score"], outputs[1]["score"], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- tables

HEAD = "date,load,heat\n"
ROWS = "2024-01-01 00:00,1,2\n2024-01-01 01:00,3,4\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (HEAD, "no rows"),
        ("1,2,3\n" + ROWS, "no column 'load'"),
        ("date,load\n2024-01-01,1\n", "no column 'heat'"),
        ("when,load,heat\n" + ROWS, "has no time column, expected one called date"),
        ("date,load,heat,heat\n2024-01-01,1,2,3\n", "several columns 'heat'"),
        (HEAD + "2024-01-01 00:00,1\n", "line 2: got 2 fields, expected 3"),
        (HEAD + ROWS + '2024-01-01 02:00,"1,5",2\n', "line 4: 'load' is '1,5'"),
        (HEAD + ROWS + "01/02/2024,1,2\n", "line 4: 'date' is '01/02/2024'"),
        (HEAD + ROWS + "1704067200,1,2\n", "line 4: 'date'"),
        (HEAD + "2024-01-01 00:00+01:00,1,2\n", "without a UTC offset"),
        (HEAD + "2024-02-30,1,2\n", "expected a time"),
        (HEAD + ROWS + "2024-01-01 00:00,9,9\n", "two rows"),
        (HEAD + ROWS + "2024-01-01 01:10,9,9\n", "nearer than half a step"),
        (HEAD + "2024-01-01,1,2\n2030-01-01,1,2\n", "has 2 rows for 52609 time steps"),
        (HEAD + "".join(f"2024-01-{d:02d},1,2\n" for d in range(1, 9)), "apart"),
        (HEAD + "2024-01-01,,\n", "no value within the last 24 time steps"),
        (HEAD + "2024-01-01,1e300,1\n", "too large"),
        (HEAD + '2024-01-01,"1,2\n', "correct it"),
        ('{"date": "2024-01-01", "load": 1}\n', "JSON"),
        ("\xff\xfe", "UTF-8"),
    ],
)
def test_mistakes_in_tables(exported, text, expected):
    export = exported("forecasting").export
    assert expected in message(export, text.encode("latin-1"))


@pytest.mark.parametrize(
    ("limit", "expected"), [(131_072, "line 1: field larger than"), (1 << 30, "no column 'load'")]
)
def test_a_long_cell_is_an_error_of_one_short_line(exported, limit, expected):
    export = exported("forecasting").export
    before = csv.field_size_limit(limit)
    try:
        found = message(export, b"a" * 200_000 + b",b\n1,2\n")
    finally:
        csv.field_size_limit(before)
    assert expected in found
    assert len(found) < 300


@pytest.mark.parametrize("steps", ["0", "17", "-1", "x", "", "1.5"])
def test_mistakes_in_the_number_of_steps(exported, steps):
    _, _, export, raw = exported("forecasting")
    assert "expected a number from 1 to 16" in message(export, f"{raw[0]},steps={steps}")


def test_points_after_decimal_commas_are_not_guessed(exported, tmp_path):
    export = exported("forecasting").export
    options = {**export.signature["encode"][0], "grouped": ["load"]}
    encode = reader.ENCODERS["read_series"](options, tmp_path)
    with pytest.raises(reader.InputError, match="decimal point"):
        encode({"raw": (HEAD + "2024-01-01,1.234,2.5\n").encode()})
    encode({"raw": (HEAD + "2024-01-01,1.2,2.345\n").encode()})


@pytest.mark.slow
@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_intervals_are_those_of_the_predictor(exported, tmp_path, head):
    subject = contract.make_subject("forecasting", tmp_path / "made")
    task = restored(subject.task, dataclasses.replace(subject.task.model, head=head))
    variables = states.evaluation_variables(make_steps(task, subject.config).init())
    raw = exported("forecasting").raw
    case = case_of(task, subject.config, variables, tmp_path / "export", raw)
    expected = case.predictor(raw)
    assert {"forecast", "level_0.1", "level_0.9"} < set(expected[0])
    assert_same(case.export(raw), expected)


# ---------------------------------------------------------------- queries


def test_a_query_of_too_many_items_is_an_error(exported):
    predictor, processor, export, _ = exported("recommendation")
    assert export.signature["programs"]["predict"][0]["sizes"] == {"seen": 20}
    names = processor.events.names
    (answer,) = export(["; ".join(names)])
    assert answer["recommendations"] == []
    assert answer["text"] == predictor(["; ".join(names)])[0]["text"]


def test_few_unknown_titles_have_suggestions(exported):
    predictor, _, export, _ = exported("recommendation")
    raw = "; ".join(f"i{n}" for n in range(100, 3000))
    (answer,) = export([raw])
    assert answer == predictor([raw])[0]
    near = list(answer["unknown"].values())
    assert len(near) == 2900
    assert None not in near[:20]
    assert set(near[20:]) == {None}


def test_answers_are_json(exported):
    for name in TASKS:
        _, _, export, raw = exported(name)
        json.dumps(export(raw[:3]), allow_nan=False)
