"""User errors: one clear line, exit status 2, within seconds, and nothing written."""

import json

import pytest

OWN = "--config=configs/text_classification.py:movie_reviews,transformer"
SST2 = "--config=configs/text_classification.py:sst2"
GOOD = "review,stars\n" + "".join(
    f"a {word} film number {n},{label}\n"
    for n in range(20)
    for word, label in [("fine", "good"), ("dull", "bad")]
)


def own(path, *more):
    return [
        OWN,
        f"--config.data.train_file={path}",
        "--config.data.text_column=review",
        "--config.data.label_column=stars",
        *more,
    ]


@pytest.fixture
def refused(command, tmp_path):
    """Checks that a command fails with one line and writes nothing; returns the line."""

    def check(name, *flags, **environment):
        workdir = tmp_path / "run"
        done = command(name, f"--workdir={workdir}", *flags, **environment)
        assert done.returncode == 2, done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        assert not workdir.exists()
        assert done.stdout == ""
        return lines[0]

    return check


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([SST2, "--config.model.num_layer=2"], ["model.num_layer", "'model.num_layers'"]),
        ([SST2, "--config.model.num_layers=two"], ["config.model.num_layers", "two"]),
        ([SST2, "--config.model.num_layers=-1"], ["config.model.num_layers", "-1"]),
        ([SST2, "--config.model.num_heads=7"], ["config.model.num_heads", "7"]),
        ([SST2, "--config.mesh.tensor=3"], ["config.mesh", "tensor 3", "needs 3 devices"]),
        ([SST2, "--config.data.name=sst3"], ["sst3", "sst2", "movie_reviews", "reuters_r8"]),
        ([SST2, "--config.data.name=tfds:ag_news_subset"], ["ag_news_subset", "prepare"]),
        (["--config=configs/text_clasification.py"], ["'configs/text_classification.py'"]),
        (["--config=configs/text_classification.py:sst2,bert"], ["'bert'", "transformer"]),
        ([SST2, "--config.data.train_file="], ["config.data.train_file: is empty", "or None"]),
        ([SST2, "--steps=3"], ["steps"]),
        ([SST2, "--profile=ten"], ["--profile=ten", "such as 10", "such as 100-110"]),
        ([SST2, "more"], ["'more'"]),
        ([], ["--config"]),
        ([SST2, "--config.model=3"], ["config.model"]),
    ],
    ids=lambda value: value[-1] if value and value[0].startswith("--") else "",
)  # fmt: skip
def test_flags(refused, flags, words):
    line = refused("train", *flags)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"review,stars\n", ["header and no rows"]),
        (b"review,mark\nfine,1\n", ["stars", "mark"]),
        (GOOD.replace(",bad", ",good").encode(), ["class", "good"]),
        (GOOD.encode() + b"caf\xe9,good\n", ["UTF-8", "line 42"]),
    ],
    ids=["empty", "header only", "no label column", "one class", "broken UTF-8"],
)
def test_files_of_ones_own(refused, tmp_path, content, words):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    line = refused("train", *own(path))
    for word in [*words, "mine.csv"]:
        assert word in line


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("ablate", ["--config=configs/ablations/text_pooling.py", "--nobaselines"],
         ["--nobaselines: launch.ablate has no such flag", "it belongs to launch.train"]),
        ("ablate", ["--config=configs/ablations/text_pooling.py", "--set=name=x"],
         ["--set=name=x: names are generated from the compared values"]),
        ("sweep", [SST2, "--set=name=a,b"], ["--set=name=a,b: names are generated"]),
    ],
)  # fmt: skip
def test_flags_of_other_commands(refused, name, flags, words):
    line = refused(name, *flags)
    for word in words:
        assert word in line


@pytest.mark.parametrize("flag", ["--output=", "--results=", "--readme="])
def test_report_with_an_empty_flag(command, flag):
    done = command("report", "--output=-", flag)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert flag in done.stderr or f"{flag[:-1]} is missing" in done.stderr


def test_missing_file(refused, tmp_path):
    assert "none.csv" in refused("train", *own(tmp_path / "none.csv"))


def test_source_that_cannot_be_reached(refused, tmp_path):
    line = refused(
        "train",
        SST2,
        f"--cache_dir={tmp_path / 'empty'}",
        ATTENTION_DATA_MIRROR=str(tmp_path / "no-mirror"),
        https_proxy="http://127.0.0.1:9",
    )
    assert "sst2" in line
    assert "no-mirror" in line


def test_workdir_with_another_run(command, tiny, tmp_path):
    flags = [*tiny, f"--workdir={tmp_path}", "--nobaselines", "--config.training.steps=10"]
    assert command("train", *flags).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = command("train", *flags, "--config.optimizer.learning_rate=0.5")
    assert done.returncode == 2
    assert "optimizer.learning_rate" in done.stderr
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_folder_without_a_run_or_checkpoint(command, tmp_path, name):
    more = ["--input=fine"] if name == "predict" else []
    done = command(name, f"--workdir={tmp_path}", *more)
    assert done.returncode == 2
    assert "contains no run" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_damaged_run_folder(command, tiny, tmp_path):
    flags = [*tiny, f"--workdir={tmp_path}", "--nobaselines", "--config.training.steps=20"]
    assert command("train", *flags).returncode == 0
    for file in (tmp_path / "checkpoints" / "20" / "state" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    done = command("predict", f"--workdir={tmp_path}", "--input=fine")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "checkpoints/20" in done.stderr
    (tmp_path / "assets.json").write_text('{"labels": ["bad", "good"]}')
    done = command("predict", f"--workdir={tmp_path}", "--input=fine")
    assert done.returncode == 2
    assert "assets.json" in done.stderr
    (tmp_path / "config.json").write_text(json.dumps({"task": "text_classification"}))
    done = command("predict", f"--workdir={tmp_path}", "--input=fine")
    assert done.returncode == 2
    assert "config.json" in done.stderr


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("train", ["--config=configs/ablations/text_pooling.py"],
         ["is an ablation file", "python -m launch.ablate"]),
        # The unknown flag is named, not the file, since the flag belongs to the right command.
        ("train", ["--config=configs/ablations/text_pooling.py", "--seeds=2"],
         ["--seeds: launch.train has no such flag", "launch.ablate"]),
        ("ablate", [SST2], ["is the config of one experiment", "launch.train or launch.sweep"]),
        ("ablate", ["--config=configs/ablations/text_pooling.py:sst2"], ["takes no argument"]),
        ("train", ["--config", "configs/text_classification.py", "sst2"],
         ["'sst2': is not a flag", "write --config=configs/text_classification.py:sst2"]),
        ("train", ["configs/text_classification.py:sst2"],
         ["write --config=configs/text_classification.py:sst2"]),
        ("train", ["--config=configs/text_classification.py,sst2"],
         ["a colon before the argument: configs/text_classification.py:sst2"]),
        ("train", ["--config=text_classification:sst2"],
         ["write --config=configs/text_classification.py"]),
        ("train", ["--config=configs/none_such.py"], ["there are configs/detection.py"]),
        ("train", [SST2, "--model.num_layers=2"], ["write --config.model.num_layers=VALUE"]),
        ("train", [SST2, "--num_layers=2"], ["write --config.model.num_layers=VALUE"]),
        ("train", [SST2, "--batch_size", "2"], ["write --config.training.batch_size=VALUE"]),
        ("train", [SST2, "--set=model.num_layers=2"], ["write --config.KEY=VALUE"]),
        ("train", [SST2, "--config.model.name=bigru"],
         ["config.model.name: 'bigru' has no key", "by the argument of the config file"]),
        ("train", ["--config=configs/translation.py", "--config.model.num_layers=-1"],
         ["config.model.num_layers: got -1, expected at least 1"]),
        ("train", ["--config=configs/recommendation.py:sasrec", "--config.model.num_heads=0"],
         ["config.model.num_heads: got 0, expected at least 1"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[0].startswith("--") else "",
)  # fmt: skip
def test_messages_name_culprit_and_remedy(refused, name, flags, words):
    line = refused(name, *flags)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("bert-base-uncased",
         ["--from=bert-base-uncased: no such directory", "hf download bert-base-uncased"]),
        ("google-bert/bert-base-cased", ["hf download google-bert/bert-base-cased",
                                         "--local-dir bert-base-cased"]),
        ("/no/such/place", ["--from=/no/such/place: no such directory"]),
        ("configs/translation.py", ["is a file; give its directory, --from=configs"]),
    ],
)  # fmt: skip
def test_source_of_weights_that_is_no_directory(refused, source, words):
    line = refused("import_weights", f"--from={source}")
    for word in words:
        assert word in line


@pytest.mark.parametrize("setting", ["model.decoding.beam=4", "model.decoding.beam"])
def test_options_of_a_prediction(setting):
    from launch.engine.config import load_file
    from launch.engine.prediction_options import with_options
    from tasks.common.errors import UserError

    config = load_file("configs/language_modeling.py")
    with pytest.raises(UserError, match=r"no such key \(did you mean 'model\.decoding\.beam_size"):
        with_options(config, [setting])
    with pytest.raises(UserError, match=r"model\.num_layers: is fixed by the training; keys that"):
        with_options(config, ["model.num_layers=2"])
    with pytest.raises(UserError, match=r"write --set=model\.decoding\.top_k=VALUE"):
        with_options(config, ["model.decoding.top_k"])


def test_folder_that_contains_runs(command, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text("{}")
    done = command("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert f"name one of the runs in it: {tmp_path / 'first'}" in done.stderr
    done = command("evaluate", f"--workdir={tmp_path / 'first' / 'config.json'}")
    assert "it is a file; name the run directory" in done.stderr
    done = command("predict", f"--export={tmp_path / 'first'}", "--input=x")
    assert done.returncode == 2
    assert "export this run directory with launch.export" in done.stderr


def test_report_of_run_directories(command, tiny_run, tmp_path):
    folder, _ = tiny_run
    for results in (folder, folder.parent):
        done = command("report", f"--results={results}")
        assert done.returncode == 0, done.stderr
        assert "## text_classification: own_reviews" in done.stdout
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    done = command("report", f"--results={tmp_path}")
    assert done.returncode == 2
    assert "has no finished run" in done.stderr
