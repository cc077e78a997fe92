"""The pages of docs/applications: every command is executed, and every name on them exists.

Small data sets under the names of public ones replace them, so nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import chdir
from typing import Any

import pytest
from PIL import Image

from launch import command_line
from launch.engine import values as typed
from launch.engine.config import flatten, load_file, load_values, task_names
from launch.reporting import faithfulness_table, insertion, results
from launch.runs.ablation import load_ablation
from tasks.common.data.paths import Paths
from tests import small_data
from tests.launch import own_data
from tests.launch import test_import_weights as bert
from tests.launch.conftest import ROOT, write_csv
from tests.pages import Shell, commands, launched

FOLDER = ROOT / "docs" / "applications"
PAGES = sorted(FOLDER.glob("*.md"))
NAMES = [page.stem for page in PAGES]
# Values that make every command short, of the keys that a config has and a command does not give.
SHORT = {
    "training.steps": 2,
    "training.batch_size": 4,
    "training.evaluation_batch_size": 8,
    "training.evaluate_every": 2,
    "training.log_every": 2,
}

# Flags of every command, which launch/cli.py defines.
SHARED_FLAGS = ("data_dir", "cache_dir", "data_mirror")


@dataclasses.dataclass(frozen=True)
class Case:
    """Data of a page.

    Attributes:
      sets: data sets of `tests.small_data` that the page names.
      write: writes the user files of the page into a folder.
      small: further values that make models and data small, by key; for a tuple, of each item.
    """

    sets: tuple[str, ...]
    write: Callable[[pathlib.Path], None]
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _own(task: str, folder: pathlib.Path) -> None:
    """Writes the tiny user files of a task into a new folder."""
    folder.mkdir(parents=True)
    own_data.CASES[task].write(folder)


def _write_reviews(folder: pathlib.Path) -> None:
    write_csv(folder / "reviews.csv")
    write_csv(folder / "new.csv", rows=9, seed=1)
    write_csv(folder / "labeled.csv", rows=20, seed=2)


def _write_masked(folder: pathlib.Path) -> None:
    _own("language_modeling", folder / "own")
    (folder / "own" / "x.txt").rename(folder / "reviews.txt")
    bert.write(folder / "bert-base-uncased", bert.BERT, bert.bert_shapes() | bert.HEAD)


def _write_text(folder: pathlib.Path) -> None:
    (row,) = small_data.running_text("train", 200)
    (folder / "mine.txt").write_text(row["text"], encoding="utf-8")


def _write_pairs(folder: pathlib.Path) -> None:
    _own("translation", folder / "mine")
    (folder / "mine" / "train.de").rename(folder / "mine" / "train.fr")


def _write_photos(folder: pathlib.Path) -> None:
    _own("image_classification", folder / "photos")
    shutil.copy(folder / "photos" / "dog" / "00.png", folder / "shoe.png")
    with Image.open(folder / "photos" / "cat" / "00.png") as image:
        image.save(folder / "photos" / "cat" / "001.jpg")


def _write_masks(folder: pathlib.Path) -> None:
    _own("segmentation", folder / "mine")
    images = folder / "mine" / "images"
    shutil.copy(images / "00.png", folder / "street.png")
    with Image.open(images / "00.png") as image:
        image.save(images / "a.jpg")
    shutil.copy(folder / "mine" / "masks" / "00.png", folder / "mine" / "masks" / "a.png")
    (folder / "mine" / "classes.txt").write_text("sky\nground\n")


def _write_boxes(folder: pathlib.Path) -> None:
    _own("detection", folder / "images")
    (folder / "images" / "x.json").rename(folder / "mine.json")
    shutil.copy(folder / "images" / "00.png", folder / "cells.png")


def _write_events(folder: pathlib.Path) -> None:
    _own("recommendation", folder / "own")
    text = (folder / "own" / "x.csv").read_text()
    for old, new in {"u0,": "ann,", "i3,": "Soap,", "i4,": "Comb,"}.items():
        text = text.replace(old, new)
    (folder / "events.csv").write_text(text)
    (folder / "users.csv").write_text("user\nann\nu1\n")


def _write_series(folder: pathlib.Path) -> None:
    _own("forecasting", folder / "own")
    (folder / "own" / "x.csv").rename(folder / "load.csv")


def _write_clips(folder: pathlib.Path) -> None:
    _own("speech_recognition", folder / "clips")
    shutil.copy(folder / "clips" / "00.wav", folder / "said.wav")
    for number in range(48):
        # Eight commands, two words, of each of six speakers.
        target = folder / "commands" / ("go", "stop")[number % 2] / f"s{number // 8}_{number}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "clips" / f"{number:02d}.wav", target)
    (script,) = re.findall(r"```sh\n(echo path.*?done)\n", text_of("speech_recognition"), re.S)
    subprocess.run(["sh", "-c", script], cwd=folder, check=True)
    _write_manifests(folder, "clips")


def _write_lines(folder: pathlib.Path) -> None:
    _own("handwriting_recognition", folder / "lines")
    shutil.copy(folder / "lines" / "00.png", folder / "line.png")
    _write_manifests(folder, "lines")


def _write_manifests(folder: pathlib.Path, name: str) -> None:
    """Moves the manifest of a folder above it, and writes one of new files without texts."""
    header, *rows = (folder / name / "x.csv").read_text().splitlines()
    (folder / f"{name}.csv").write_text("\n".join([header, *(f"{name}/{row}" for row in rows)]))
    new = [f"{name}/{row.split(',')[0]}" for row in rows[:3]]
    (folder / "new.csv").write_text("\n".join(["path", *new]) + "\n")


SMALL_ENCODER = {
    "model.model_size": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.feedforward_size": 16,
}
SMALL_TRANSCRIBER = {
    "data.train_size": 8,
    "data.validation_size": 4,
    "data.test_size": 4,
    "model.transcriber.state_size": 8,
    "model.transcriber.embedding_size": 8,
    "model.transcriber.decoding.method": "greedy",
    "model.transcriber.decoding.beam_size": 1,
    **SMALL_ENCODER,
}
CASES = {
    "text_classification": Case(("sst2", "movie_reviews"), _write_reviews),
    "masked_language_modeling": Case(
        ("sst2", "movie_reviews"),
        _write_masked,
        {**SMALL_ENCODER, "data.length": 16, "data.text.vocabulary_size": 200},
    ),
    "language_modeling": Case(
        ("tiny_shakespeare",),
        _write_text,
        {**SMALL_ENCODER, "data.length": 16, "model.max_length": 16},
    ),
    "translation": Case(
        ("multi30k",),
        _write_pairs,
        {
            "data.text.vocabulary_size": 300,
            "data.text.min_count": 1,
            "data.train_size": 20,
            "data.validation_size": 4,
            "data.test_size": 4,
            "model.decoder_layers": 1,
            "model.state_size": 8,
            "model.embedding_size": 8,
            **SMALL_ENCODER,
        },
    ),
    "image_classification": Case(
        ("fashion_mnist",),
        _write_photos,
        {
            "model.channels": 4,
            "model.num_layers": 1,
            "model.model_size": 16,
            "model.feedforward_size": 16,
        },
    ),
    "segmentation": Case(
        ("camvid",),
        _write_masks,
        {
            "data.image_size": 32,
            "model.channels": 4,
            "training.evaluation_batch_size": 4,
        },
    ),
    "detection": Case(
        ("nuclei",),
        _write_boxes,
        {
            "data.image_size": 64,
            "model.backbone.channels": 4,
            "model.backbone.depths": 1,
            "model.pyramid_channels": 8,
            "model.rpn.pre_nms_top_k": 16,
            "model.rpn.post_nms_top_k": 8,
            "model.heads.samples": 8,
            "model.heads.mask_channels": 8,
            "model.heads.hidden_size": 8,
            "model.queries": 4,
            "model.model_size": 8,
            "model.num_heads": 2,
            "model.feedforward_size": 8,
            "model.encoder_layers": 1,
            "model.decoder_layers": 1,
        },
    ),
    "recommendation": Case(
        (),
        _write_events,
        {
            "data.path": "events.csv",
            "data.max_length": 8,
            "model.max_length": 8,
            **SMALL_ENCODER,
        },
    ),
    "forecasting": Case(
        (),
        _write_series,
        {"data.path": "load.csv", "data.lookback": 24, "data.horizon": 4, **SMALL_ENCODER},
    ),
    "speech_recognition": Case(
        ("spoken_digits",), _write_clips, {"model.channels": 4, **SMALL_TRANSCRIBER}
    ),
    "handwriting_recognition": Case(
        ("handwritten_digits",), _write_lines, {"model.channels": 4, **SMALL_TRANSCRIBER}
    ),
}


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def added(words: list[str], case: Case) -> list[str]:
    """Returns flags that make a command short, and its data and models small."""
    command = launched(words)
    if command not in ("prepare", "train", "sweep", "ablate"):
        return []
    given = dict(word.split("=", 1) for word in words if re.match(r"--.+=", word))
    prefix, config, more = "--config.", given["--config"], []
    if command == "ablate":
        prefix, config, more = "--set=", load_ablation(config).base, ["--seeds=1"]
    known = flatten(load_values(config))
    # A run that continues another one has the sizes of that run.
    values = SHORT if ",from:" in config else {**SHORT, **case.small}
    if command == "train" and ":digits" in config:
        # This data set is the public one, on which an SVM takes longer than all else.
        more = ["--nobaselines"]
    for key, value in values.items():
        if key in known and f"{prefix}{key}" not in given:
            sizes = isinstance(known[key], tuple) and not isinstance(value, tuple)
            shown = (value,) * len(known[key]) if sizes else value
            more.append(f"{prefix}{key}={shown}")
    return more


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_commands_run_as_they_stand(name, server, tmp_path):
    """Runs them in order: the later ones evaluate, draw and serve what the first ones trained."""
    case, folder = CASES[name], tmp_path / "work"
    folder.mkdir()
    paths = Paths(tmp_path / "data", tmp_path / "cache")
    for data in case.sets:
        small_data.prepare_small(data, paths)
    case.write(folder)
    with chdir(folder):
        shell = Shell(server, folder, paths, lambda words: added(words, case))
        shell.run(commands(text_of(name)))
    assert {"train", "evaluate", "predict", "export", "serve", "curl"} <= set(shell.ran)
    for drawn in re.findall(r"--figures=(\w+)", text_of(name)):
        assert list((folder / drawn).glob("*.png"))


# ---------------------------------------------------------------------- names on the pages


def test_each_page_has_data_and_a_place_in_the_site():
    assert sorted(CASES) == NAMES
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"applications/{name}.md\n" in navigation, name
        assert f"](docs/applications/{name}.md)" in readme, name


def test_each_task_is_trained_on_a_page():
    trained = {
        config
        for name in NAMES
        for words in commands(text_of(name))
        if launched(words) == "train"
        for config in re.findall(r"configs/(\w+)\.py", " ".join(words))
    }
    assert trained == set(task_names())


@pytest.mark.parametrize("name", NAMES)
def test_flags_configs_and_keys_exist(name):
    """Checks commands, and what the text names in backticks."""
    text, known = text_of(name), command_line.flags_of_commands()
    configs = []
    for words in commands(text):
        if not (command := launched(words)):
            continue
        for word in words[3:]:
            if word.startswith("--") and not word.startswith("--config."):
                flag = word[2:].partition("=")[0]
                assert flag in {*known[command], *SHARED_FLAGS}, word
        given = dict(word.split("=", 1) for word in words[3:] if re.match(r"--.+=", word))
        config = given.get("--config", "")
        if command in ("train", "sweep", "prepare"):
            # The run of `from:RUN` does not exist here; the keys are those of `pretrained`.
            values = load_values(str(ROOT / re.sub(r"from:\S+", "pretrained", config)))
            for key, value in given.items():
                if key.startswith("--config."):
                    assert key.removeprefix("--config.") in flatten(values), f"{config}: {key}"
                    typed.parse(values, key.removeprefix("--config."), value)
            configs.append(values)
        elif command == "ablate":
            load_ablation(str(ROOT / config))
    # Keys in the text are those of a config of the page.
    keys = set().union(*map(flatten, configs))
    for key in re.findall(r"`--config\.([\w.]+)", text):
        assert key in keys, key
    for file in re.findall(r"`(configs/\w+(?:/\w+)?\.py)(?::[^`]*)?`", text):
        assert (ROOT / file).is_file(), file
    for specification in re.findall(r"`(configs/\w+\.py:[^`]*)`", text):
        load_file(str(ROOT / specification))


def test_tables_of_models_are_those_of_the_run_files():
    """The tables are up to date: `make results` changes nothing."""
    records = results.load_records(ROOT / "results")
    for name in NAMES:
        text = text_of(name)
        assert "<!-- models task=" in text
        assert text == insertion.insert_models(text, records), name
        assert "<!-- metrics " in text
        assert text == insertion.insert_metrics(text), name
    text = (ROOT / "docs" / "EXPLAIN.md").read_text(encoding="utf-8")
    assert text == faithfulness_table.insert(text, ROOT / "results")


def test_pages_are_short():
    for name in NAMES:
        assert 60 <= len(text_of(name).splitlines()) <= 140, name
