"""Exports of text tasks: equal predictions for any batch size, and errors."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch.exports import reader, writer
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tests.tasks import contract
from tests.tasks.common.huggingface import test_unigrams as unigrams

TEXT_TASKS = ("text_classification", "language_modeling", "translation", "sequence_copy")


def inputs_of(subject, count=20):
    """Returns valid inputs of a task: its own, and variations in length, case and script."""
    rng = random.Random(0)
    if subject.name == "sequence_copy":
        return ["".join(rng.choices("0123456789", k=rng.randint(1, 6))) for _ in range(count)]
    words = " ".join(subject.raw).replace("[MASK]", "").split()
    words += ["日本語", "naïve", "İstanbul", "don\u2019t", "ﬁne", "😀", "a\u0301b", "中文字"]
    found = list(subject.raw)
    while len(found) < count:
        text = " ".join(rng.choices(words, k=rng.randint(1, 6)))
        if any("[MASK]" in raw for raw in subject.raw):
            text += " [MASK]" * rng.randint(1, 2)
        found.append(rng.choice([text, text.upper(), text + "\n", f"  {text}!"]))
    return found


def assert_same(found, expected):
    """Compares answers: floats to 1e-5, all else exactly, in the same order of keys."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            if key != "text":
                assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, float):
        # Answers are rounded to four digits.
        assert found == pytest.approx(expected, abs=1.1e-4)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns subject, export and folder of a task, made once each."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            subject = contract.make_subject(name, folder)
            writer.write_export(subject.task, subject.config, subject.variables, folder / "export")
            made[name] = subject, reader.Export(folder / "export"), folder / "export"
        return made[name]

    return get


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_answers_are_those_of_the_predictor(exported, name):
    subject, export, _ = exported(name)
    raw = inputs_of(subject)
    expected = subject.predictor(raw)
    assert_same(export(raw), expected)
    alone = [answer for one in raw[:3] for answer in export([one])]
    if "id" not in export.signature["inputs"]:
        assert_same(alone, expected[:3])


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_outputs_are_those_of_the_predictor(exported, name):
    subject, export, _ = exported(name)
    raw = inputs_of(subject, 7)
    examples = subject.task.processor.encode(raw)
    expected = subject.predictor.outputs(examples)
    rows = [row for one in raw for row in export.encode(one).rows]
    assert len(rows) == len(examples)
    for index, outputs in enumerate(export.run(rows)):
        for key, value in outputs.items():
            whole = expected[key][index]
            part = whole[tuple(slice(n) for n in value.shape)]
            np.testing.assert_allclose(value, part, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_golden_outputs_verify_and_a_change_of_weights_is_found(exported, name, tmp_path):
    _, export, folder = exported(name)
    assert export.verify() <= export.signature["tolerance"]
    other = reader.Export(folder)
    names = list(export.weights)
    other.__dict__["weights"] = {**export.weights, names[0]: export.weights[names[0]] + 1}
    changed = [n for n in names if np.abs(export.weights[n]).max() > 0]
    other.__dict__["weights"] |= {n: export.weights[n] * -3 for n in changed}
    with pytest.raises(reader.InputError, match="golden inputs"):
        other.verify()


def test_no_program_has_a_custom_call(exported):
    from jax import export as jax_export

    for name in TEXT_TASKS:
        _, export, folder = exported(name)
        for program in export.signature["programs"]["predict"]:
            loaded = jax_export.deserialize(bytearray((folder / program["file"]).read_bytes()))
            assert loaded.platforms == ("cpu", "cuda", "tpu")
            # Checks of the batch size, which XLA evaluates while compiling.
            called = set(re.findall(r"custom_call @(\w+)", loaded.mlir_module()))
            assert called <= {"shape_assertion"}


def test_attention_is_exported(exported, tmp_path):
    subject, _, _ = exported("text_classification")
    writer.write_export(
        subject.task, subject.config, subject.variables, tmp_path / "e", with_attention=True
    )
    export = reader.Export(tmp_path / "e")
    row = export.encode(subject.raw[0]).rows[0]
    (weights,) = export.run([row], "attention")
    assert weights
    for value in weights.values():
        assert np.isfinite(value).all()


@pytest.mark.parametrize(
    "config",
    [
        TextConfig(ngrams=3, character_ngrams=(2, 4), min_count=1),
        TextConfig(stem="english", ngrams=2, unique=True, min_count=1, lower_case=False),
        TextConfig(tokenizer="bpe", vocabulary_size=300, min_count=1),
        TextConfig(tokenizer="wordpiece", vocabulary_size=120, min_count=1, max_length=7),
        TextConfig(tokenizer="character", min_count=1),
    ],
    ids=lambda config: config.tokenizer + str(config.ngrams),
)
def test_tokenizers_are_equal(config, tmp_path):
    texts = [
        "The films were running, don't they? It’s FINE",
        "中文字 and かな 한국어 \u0e20\u0e32\u0e29\u0e32 नमस्ते",
        "ﬁne a\u0301b 😀 x\ty\nz  a_b 1.5 — “quoted” \ud800",
        "", " ", "running runs ran run", "a b a b a b c",
    ]  # fmt: skip
    expect_equal_tokenizers(Tokenizer.fit(texts, config), texts, tmp_path)


def test_unigram_tokenizers_are_equal(tmp_path):
    tokenizer = unigrams.tokenizer_of(unigrams.write(tmp_path / "xlm", unigrams.whole()))
    expect_equal_tokenizers(tokenizer, unigrams.TEXTS, tmp_path)


def expect_equal_tokenizers(tokenizer, texts, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    other = reader.Tokenizer(tmp_path / "tokenizer.json")
    assert other.size == tokenizer.size
    for mine, theirs in zip(other.encode(texts), tokenizer.encode_batch(texts), strict=True):
        assert mine.tolist() == theirs.tolist()
        assert other.decode(mine) == tokenizer.decode(mine)


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_odd_inputs_give_an_answer_or_one_line(exported, name):
    subject, export, _ = exported(name)
    for raw in contract.ODD:
        try:
            expected = subject.predictor([raw])
        except UserError:
            with pytest.raises(reader.InputError) as error:
                export([raw])
            assert "\n" not in str(error.value)
        else:
            assert_same(export([raw]), expected)


@pytest.mark.parametrize("name", ["translation", "sequence_copy"])
def test_streams_end_with_the_greedy_answer(exported, name):
    subject, export, _ = exported(name)
    processor = subject.task.processor
    for raw in inputs_of(subject, 4)[:3]:
        parts = list(export.stream(raw))
        outputs = subject.predictor._gathered(processor.encode([raw]), subject.steps.predict_fast)
        (expected,) = processor.decode([raw], outputs)
        assert parts[-1]["output"] == expected["output"]
        assert all(expected["output"].startswith(part["output"].rstrip("\ufffd"))
                   for part in parts)  # fmt: skip


def test_a_classifier_streams_nothing(exported):
    _, export, _ = exported("text_classification")
    with pytest.raises(reader.InputError, match="token by token"):
        next(export.stream("a"))


def test_a_step_only_depends_on_its_state(exported):
    """The inputs of prefill are no inputs of the step: all arrays that it takes are used."""
    from jax import export as jax_export

    _, export, folder = exported("translation")
    for program in export.signature["programs"]["step"]:
        loaded = jax_export.deserialize(bytearray((folder / program["file"]).read_bytes()))
        _, arrays = jax.tree.unflatten(loaded.in_tree, loaded.in_avals)[0]
        assert "token" in arrays
        assert not set(arrays) & set(export.signature["inputs"])


def test_a_folder_that_exists_is_kept(exported, tmp_path):
    subject, _, folder = exported("text_classification")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already exists"):
        writer.write_export(subject.task, subject.config, subject.variables, folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damaged_json(folder):
    (folder / "signature.json").write_text("{", encoding="utf-8")


def other_format(folder):
    path = folder / "signature.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'), encoding="utf-8")


def short_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def no_weights(folder):
    (folder / "weights.safetensors").unlink()


def no_program(folder):
    (folder / "programs" / "predict-0.stablehlo").unlink()


def damaged_program(folder):
    (folder / "programs" / "predict-0.stablehlo").write_bytes(b"program")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("[1]", encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [damaged_json, other_format, short_weights, no_weights, no_program, damaged_program,
     no_tokenizer, damaged_tokenizer],
)  # fmt: skip
def test_a_damaged_export_is_named_in_one_line(exported, damage, tmp_path):
    _, _, folder = exported("text_classification")
    shutil.copytree(folder, tmp_path / "e")
    damage(tmp_path / "e")
    with pytest.raises(reader.InputError, match=r"^[^\n]+$"):
        reader.Export(tmp_path / "e")(["a"])


def test_the_copied_file_predicts_without_the_project(exported, tmp_path):
    subject, _, folder = exported("text_classification")
    code = (
        "import sys, runpy\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('flax', 'attention', 'tasks', 'launch', 'optax'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.argv = ['predict.py', *sys.argv[1:]]\n"
        f"runpy.run_path({str(folder / 'predict.py')!r}, run_name='__main__')\n"
    )
    raw = subject.raw[0]
    done = subprocess.run(
        [sys.executable, "-c", code, f"--input={raw}", "--format=json"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert_same([json.loads(done.stdout)], subject.predictor([raw]))
    assert pathlib.Path(folder / "README.md").exists() is False


@pytest.mark.slow
def test_streams_of_the_copied_file(exported, tmp_path):
    """Bytes that are not UTF-8, a missing file and a closed pipe: one line and status 2."""
    _, _, folder = exported("text_classification")
    program = [sys.executable, str(folder / "predict.py")]
    for flags, given, words in (
        (["--input=-"], b"fine\n\xff\xfe\n", "standard input: line 2 is not UTF-8"),
        ([f"--input_file={tmp_path / 'none'}"], b"", "cannot be read"),
        ([], b"", "--input is missing"),
        ([f"--export={tmp_path}", "--input=a"], b"", "no export"),
    ):
        done = subprocess.run([*program, *flags], input=given, capture_output=True)
        assert done.returncode == 2
        assert words in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1
    with subprocess.Popen(
        [*program, "--input=a"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as closed:
        closed.stdout.close()
        _, error = closed.communicate()
    assert closed.returncode == 2
    assert error == b"error: the reader of the output has closed the pipe\n"


def test_a_missing_package_is_named(exported, tmp_path):
    subject, _, folder = exported("sequence_copy")
    copy = shutil.copytree(folder, tmp_path / "copy")
    with (copy / "requirements.txt").open("a") as file:
        file.write("no-such-package==1.0\n")
    with pytest.raises(reader.InputError, match=r"no-such-package is not installed.* pip install"):
        reader.Export(copy)
    done = subprocess.run(
        [sys.executable, copy / "predict.py", f"--input={subject.raw[0]}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no-such-package is not installed" in done.stderr
