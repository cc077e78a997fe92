"""User data of all tasks by --data and the flags of columns, in Python and on the command line."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import launch
from launch.engine import config as configs
from launch.engine.config import task_class
from tasks.common.data.paths import Paths
from tests.launch import own_data

# Files of `own_data.CASES`, which are named in the old way there, and config keys.
FILES = {
    "text_classification": ("x.csv", {"text": "text", "label": "label"}),
    "language_modeling": ("x.txt", {}),
    "translation": (".", {"text": "en", "label": "de"}),
    "image_classification": (".", {}),
    "segmentation": (".", {}),
    "detection": ("x.json", {}),
    "forecasting": ("x.csv", {"time": "date", "label": "load,heat"}),
    "recommendation": ("x.csv", {"user": "user", "item": "item", "time": "timestamp"}),
    "speech_recognition": ("x.csv", {"audio": "path", "text": "text"}),
    "handwriting_recognition": ("x.csv", {"image": "path", "text": "text"}),
}
SMALL = {
    "text_classification": {},
    "forecasting": {"data.lookback": 24, "data.horizon": 4},
    "handwriting_recognition": {},
}


def loaded(name, data, columns=None, changes=None):
    """Returns the data set of the config `own` of a task."""
    experiment = launch.config(f"{name}:own", changes or {}, data=data, columns=columns)
    return task_class(name).load(experiment.data, Paths("unused", "unused"))


def test_every_task_has_a_case():
    assert {*FILES, "sequence_copy"} == set(configs.task_names())


@pytest.mark.parametrize("name", FILES)
def test_every_task_reads_own_data(name, tmp_path):
    own_data.CASES[name].write(tmp_path)
    file, columns = FILES[name]
    read = loaded(name, tmp_path / file, columns, SMALL.get(name))
    if name == "recommendation":
        assert read.events.num_users == 30
        return
    assert all(len(read.splits[split]) for split in ("train", "validation", "test"))


@pytest.mark.parametrize("name", FILES)
def test_a_config_without_data_names_the_flag(name):
    with pytest.raises(
        launch.UserError, match=r"^--data is missing; write --data=PATH, where PATH"
    ):
        launch.config(f"{name}:own")


def test_the_old_keys_give_the_same_config(tmp_path):
    own_data.CASES["text_classification"].write(tmp_path)
    file = str(tmp_path / "x.csv")
    new = launch.config("text_classification:sst2", data=file, columns={"text": "text"})
    old = launch.config("text_classification:sst2", {"data.train_file": file})
    assert new == old
    assert configs.identity(new) == configs.identity(old)
    three = launch.config("text_classification:own", data=[file, "v.csv", "t.csv"]).data
    assert (three.train_file, three.validation_file, three.test_file) == (file, "v.csv", "t.csv")


@pytest.mark.parametrize(
    ("config", "columns", "message"),
    [
        ("text_classification:own", {"user": "a"}, "^--user: text_classification has no such col"),
        ("text_classification:own", {"texts": "a"}, "^columns: got 'texts' .did you mean 'text'"),
        ("text_classification:own", {"text": "revue"}, "did you mean 'review'.*; set --text to"),
        ("recommendation:own", {"user": "who"}, "no column 'who'.*; set --user to one of them"),
        ("forecasting:own", {"time": "when"}, "no column 'when'.*; set --time to one of them"),
        ("forecasting:own", {"label": "load"}, "no column 'load'.*; set --label to one of them"),
        ("speech_recognition:own", {}, "no column 'path' and 'text'.*; set --audio and --text to"),
        ("image_classification:own", {"image": "f"}, "no column 'f'.*; set --image to one of them"),
        ("translation:own", {"text": "en", "label": "f"}, "no column 'en'.*; set --text to one of"),
        ("language_modeling:own", {"group": "g"}, "no column 'text'.*; set --text to one of them"),
        ("sequence_copy", {}, "^--data: sequence_copy takes no data of yours, because its strings"),
    ],
)
def test_mistakes_name_the_flag_and_the_columns(config, columns, message, tmp_path):
    (tmp_path / "x.csv").write_text("review,stars,date\na,1,2024-01-01\nb,2,2024-01-02\n")
    name = config.partition(":")[0]

    def read():
        experiment = launch.config(config, data=tmp_path / "x.csv", columns=columns)
        task_class(name).load(experiment.data, Paths("unused", "unused"))

    with pytest.raises(launch.UserError, match=message):
        read()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config=configs/text_classification.py:own", "--text=a"],
            "--data is missing; write --data=PATH, where PATH is a table of texts and classes",
        ),
        (
            ["--config=configs/text_classification.py:sst2", "--label=a"],
            "--label: names a column of your data, but the config has the data set sst2; add",
        ),
        (
            ["--config=configs/sequence_copy.py:own"],
            "sequence_copy takes no data of yours, because its strings of digits are generated",
        ),
    ],
)
def test_commands_refuse_flags_that_do_not_fit(command, flags, message, tmp_path):
    done = command("train", *flags, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# ---------------------------------------------------------------------- groups


def _groups_of(splits):
    """Checks that no group is in two splits; returns the number of groups."""
    seen = [set(splits[split]) for split in ("train", "validation", "test")]
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen))
    return sum(map(len, seen))


def test_documents_of_texts_are_apart(tmp_path):
    rows = [(f"text {n}", "ab"[n % 3 == 0], f"doc {n // 5}") for n in range(100)]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "doc"), *rows])
    read = loaded("text_classification", tmp_path / "x.csv", {"group": "doc"})
    document = {text: doc for text, _, doc in rows}
    parts = {split: [document[text] for text in part.texts] for split, part in read.splits.items()}
    assert _groups_of(parts) == 20
    with (tmp_path / "y.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "doc"), ("new", "a", "doc 3")])
    paths = [tmp_path / "x.csv", tmp_path / "x.csv", tmp_path / "y.csv"]
    with pytest.raises(
        launch.UserError, match=r"--group: 'doc 0' of .* is in train and in validat"
    ):
        loaded("text_classification", paths, {"group": "doc"})


def test_patients_of_images_and_of_annotations_are_apart(tmp_path):
    """Each image has the number of its patient as its gray level."""
    rows, images, objects = [], [], []
    for number in range(60):
        patient, shade = number // 3, number % 3
        pixels = np.full((8, 8, 3), 10 * patient + shade, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / f"m{number}.png")
        rows.append((f"{number}.png", f"m{number}.png", "ab"[patient % 2], f"p{patient}"))
        images.append({"id": number, "file_name": f"{number}.png", "height": 8, "width": 8,
                       "patient": patient})  # fmt: skip
        objects.append({"image_id": number, "category_id": 1, "bbox": [1, 1, 5, 5]})
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("scan", "mask", "finding", "patient"), *rows])
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    columns = {"image": "scan", "label": "finding", "group": "patient"}
    read = loaded("image_classification", tmp_path / "x.csv", columns, {"data.image_size": 8})
    parts = {
        split: [int(image[0, 0, 0]) // 10 for image in part.images]
        for split, part in read.splits.items()
    }
    assert _groups_of(parts) == 20
    assert read.labels == ("a", "b")
    changes = {"data.image_size": (8, 8)}
    read = loaded("segmentation", tmp_path / "x.csv", {**columns, "label": "mask"}, changes)
    parts = {
        split: [int(image[0, 0, 0]) // 10 for image in part.images]
        for split, part in read.splits.items()
    }
    assert _groups_of(parts) == 20
    read = loaded("detection", tmp_path / "x.json", {"group": "patient"})
    parts = {
        split: [int(name.removesuffix(".png")) // 3 for name in part.ids]
        for split, part in read.splits.items()
    }
    assert _groups_of(parts) == 20


# ---------------------------------------------------------------------- several files


def test_files_of_events_and_of_series_are_joined(tmp_path):
    own_data.CASES["recommendation"].write(tmp_path)
    header, *rows = (tmp_path / "x.csv").read_text().splitlines()
    (tmp_path / "parts").mkdir()
    for number, part in enumerate((rows[:100], rows[100:])):
        (tmp_path / "parts" / f"{number}.csv").write_text("\n".join([header, *part]) + "\n")
    whole = loaded("recommendation", tmp_path / "x.csv")
    for data in (tmp_path / "parts", tmp_path / "parts" / "*.csv"):
        assert loaded("recommendation", data).fingerprint == whole.fingerprint
    (tmp_path / "series").mkdir()
    own_data.CASES["forecasting"].write(tmp_path / "series")
    header, *rows = (tmp_path / "series" / "x.csv").read_text().splitlines()
    # Hours 250 to 259 are missing between the files.
    for name, part in {"a": rows[:250], "b": rows[260:330], "c": rows[330:]}.items():
        (tmp_path / "series" / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")
    paths = [tmp_path / "series" / f"{name}.csv" for name in "abc"]
    read = loaded("forecasting", paths, None, SMALL["forecasting"])
    assert read.bounds == {"train": (0, 260), "validation": (260, 330), "test": (330, 400)}
    assert not read.valid[250:260].any()
    pattern = loaded("forecasting", tmp_path / "series" / "[abc].csv", None, SMALL["forecasting"])
    assert pattern.bounds["test"] == (320, 400)
    with pytest.raises(launch.UserError, match=r"c.csv begins before|a.csv begins before"):
        loaded("forecasting", [paths[1], paths[0], paths[2]], None, SMALL["forecasting"])
