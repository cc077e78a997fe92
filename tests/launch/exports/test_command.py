"""launch.export and launch.predict --export as a user types them; the export elsewhere."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from launch.exports import writer
from launch.exports.card import render
from tests.launch.conftest import ROOT
from tests.launch.exports.test_text import assert_same, inputs_of
from tests.tasks import contract


@pytest.fixture(scope="module")
def run(tiny_run):
    """Returns the run directory of `tiny_run`, which exports only read."""
    return tiny_run[0]


@pytest.fixture(scope="module")
def exported(run, command, tmp_path_factory):
    target = tmp_path_factory.mktemp("exports") / "tiny"
    done = command("export", f"--workdir={run}", f"--output={target}", "--input=a fine film")
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    return target


@pytest.mark.slow
def test_the_export_predicts_as_the_run(run, exported, command, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text("review,more\na lovely film,1\na dull plot,2\n\u597d\u770b,3\n", "utf-8")
    flags = (f"--input_file={table}", "--format=json", "--input=x")
    expected = command("predict", f"--workdir={run}", *flags)
    found = command("predict", f"--export={exported}", *flags)
    assert found.returncode == expected.returncode == 0, found.stderr
    pairs = [map(json.loads, done.stdout.splitlines()) for done in (found, expected)]
    assert_same(*map(list, pairs))


@pytest.mark.slow
def test_options_and_files_are_those_of_runs(run, exported, command, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text("id,review\n1,a lovely film\n2,the plot\n3,dull\n")
    given = (f"--input_file={table}", "--threshold=0.9", "--top_k=1")
    files = []
    for source in (f"--workdir={run}", f"--export={exported}"):
        files.append(tmp_path / f"{len(files)}.jsonl")
        done = command("predict", source, *given, f"--output={files[-1]}")
        assert done.returncode == 0, done.stderr
    assert files[0].read_text() == files[1].read_text()
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert [line["id"] for line in lines] == ["1", "2", "3"]
    assert all(len(line["predicted_probabilities"]) == 1 for line in lines)
    for line in lines:
        (best,) = line["predicted_probabilities"].items()
        assert line["predicted_label"] == (best[0] if best[1] >= 0.9 else None)
    done = command("predict", f"--export={exported}", *given[:1], "--positive=other")
    assert done.returncode == 2
    assert "--positive: got 'other', expected one of the classes bad, good" in done.stderr


@pytest.mark.slow
def test_the_card_has_data_results_and_baselines(exported):
    text = (exported / "README.md").read_text(encoding="utf-8")
    assert "model-index" in text
    assert "| train |" in text
    assert "baseline nb_svm" in text
    signature = json.loads((exported / "signature.json").read_text(encoding="utf-8"))
    files = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert set(signature["sha256"]) == files - {"signature.json", "README.md"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--output={target}",), "--workdir is missing"),
        (("--workdir={run}",), "--output is missing"),
        (("--workdir={run}", "--output={target}"), "already exists"),
        (("--workdir={none}", "--output={none}"), "no run"),
        (("--workdir={run}", "--output={none}", "--batch_size=4"), "needs --format=onnx"),
        (("--workdir={run}", "--output={none}", "--format=onnx", "--batch_size=0"), "at least 1"),
        (
            ("--workdir={run}", "--output={none}", "--set=model.num_layers=2"),
            "is fixed by the training",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, exported, command, tmp_path, flags, expected):
    known = {"run": run, "target": exported, "none": tmp_path / "none"}
    done = command("export", *(flag.format(**known) for flag in flags))
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_flags_of_runs_are_refused_with_an_export(run, exported, command):
    done = command("predict", f"--export={exported}", f"--workdir={run}", "--input=x")
    assert done.returncode == 2
    assert "--workdir: cannot be combined with --export" in done.stderr


def test_a_card_without_a_result_says_so(tmp_path):
    subject = contract.make_subject("sequence_copy", tmp_path)
    signature = writer.write_export(
        subject.task, subject.config, subject.variables, tmp_path / "export"
    )
    text = render(signature, subject.config, tmp_path, 3, tmp_path / "none")
    assert "The run has no result yet" in text
    assert "None" not in text


@pytest.mark.slow
def test_the_commands_of_the_page_work(run, cache, tmp_path):
    page = (ROOT / "docs" / "DEPLOYING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    commands = [shlex.split(line) for line in "".join(blocks).splitlines()]
    # The server and curl have tests of their own.
    started = [w for w in commands if w[0] == "python" and "launch.serve" not in w]
    assert len(started) >= 3
    table = tmp_path / "new.csv"
    table.write_text("review\na lovely film\n")
    for words in started:
        words = [
            re.sub(r"(^|=)(runs/movie_reviews|exported)\b", rf"\g<1>{tmp_path}/\2", word)
            .replace(f"{tmp_path}/runs/movie_reviews", str(run))
            .replace("=new.csv", f"={table}")
            .replace("=predicted.csv", f"={tmp_path}/predicted.csv")
            for word in words[1:]
        ]  # fmt: skip
        if words[0] == "-m":
            words[2:2] = [f"--cache_dir={cache}"]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)


# ---------------------------------------------------------------- minimal environment

# Predicts with predict.py of each folder, for the inputs of a JSON file, one batch and two sizes.
PROGRAM = """
import importlib.util, json, sys
assert not any(importlib.util.find_spec(n) for n in ("flax", "optax", "attention", "launch"))
for folder, raw in json.load(open(sys.argv[1])).items():
    spec = importlib.util.spec_from_file_location("predict", folder + "/predict.py")
    predict = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(predict)
    export = predict.Export(folder)
    export.verify()
    answers = {}
    for size in (3, 8):
        export.signature["batch_size"] = size
        answers[size] = export(raw)
    print(json.dumps({"folder": folder, "answers": answers}), flush=True)
"""


@pytest.mark.slow
def test_every_export_works_in_a_minimal_environment(tmp_path):
    wanted, inputs, expected = set(), {}, {}
    for name in contract.TASKS:
        subject = contract.make_subject(name, tmp_path / name)
        target = tmp_path / f"{name}-export"
        writer.write_export(subject.task, subject.config, subject.variables, target)
        raw = inputs_of(subject) if name == "text_classification" else subject.raw * 10
        # One at a time: the length of a copy that does not end depends on its batch.
        answers = {one: subject.predictor([one])[0] for one in dict.fromkeys(raw)}
        inputs[str(target)], expected[str(target)] = raw, [answers[one] for one in raw]
        wanted |= set((target / "requirements.txt").read_text(encoding="utf-8").split())
    (tmp_path / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", *sorted(wanted)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = subprocess.run(
        [python, "-c", PROGRAM, tmp_path / "inputs.json"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(lines) == len(contract.TASKS)
    for line in lines:
        for answers in line["answers"].values():
            assert_same(answers, expected[line["folder"]])
