"""User journeys: at most four commands from files of a user to a model that has been inspected.

Each journey has files as users have them - decimal commas, Chinese texts, sounds of 44.1 kHz,
identifiers that are no numbers - and commands with --data and the flags of columns.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import pathlib
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import chdir
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.engine.config import flatten, load_values
from tasks.common.data.paths import Paths
from tests.pages import Shell, commands, launched

Folder = pathlib.Path
# Values that make a journey short, of the keys that its config has.
SHORT = {
    "training.steps": 4,
    "training.batch_size": 8,
    "training.evaluation_batch_size": 8,
    "training.evaluate_every": 4,
    "training.log_every": 4,
    "model.num_layers": 1,
    "model.model_size": 16,
    "model.num_heads": 2,
    "model.feedforward_size": 16,
}


@dataclasses.dataclass(frozen=True)
class Journey:
    """Files and commands of a user.

    Attributes:
      write: writes the files into a folder.
      commands: commands in the order in which the user gives them.
      changes: values that make them short, besides `SHORT`.
      figures: whether --figures=drawn writes images.
    """

    write: Callable[[Folder], None]
    commands: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: bool = True


def _write_german(folder: Folder) -> None:
    """Semicolons, umlauts and classes that are words."""
    rng = random.Random(0)
    words = {"gut": ["großartig", "wunderschön"], "schlecht": ["öde", "überflüssig"]}
    with (folder / "rezensionen.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Nr.", "Rezension", "Urteil"])
        for number in range(120):
            label = rng.choices(["gut", "schlecht"], [3, 1])[0]
            text = f"Der Film ist {rng.choice(words[label])}; Szene {number}, Straße {number % 7}."
            table.writerow([number, text, label])


def _write_chinese(folder: Folder) -> None:
    rng = random.Random(0)
    words = {"好": ["精彩", "感人"], "差": ["无聊", "糟糕"]}
    rows = ["评论,类别"]
    for number in range(120):
        label = rng.choice("好差")
        rows.append(f'"这部电影很{rng.choice(words[label])}，演员{number}号。",{label}')
    (folder / "评论.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_photos(folder: Folder) -> None:
    """JPEG files of different sizes, with spaces in their names."""
    rng = np.random.default_rng(0)
    for label, color in (("Apfel", (200, 40, 40)), ("Birne", (60, 190, 60))):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(20):
            size = (int(rng.integers(20, 40)), int(rng.integers(20, 40)), 3)
            pixels = np.clip(rng.normal(color, 25, size), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"Foto {number}.jpg")


def _write_masks(folder: Folder) -> None:
    """Black and white masks, as drawing programs save them."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / "scans" / name).mkdir(parents=True)
    for number in range(30):
        mask = np.zeros((24, 32), np.uint8)
        top, left = rng.integers(0, 12, 2)
        mask[top : top + 10, left : left + 12] = 255
        image = np.clip(mask[..., None] * 0.6 + rng.integers(0, 80, (24, 32, 3)), 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"scans/images/s{number}.png")
        Image.fromarray(mask).save(folder / f"scans/masks/s{number}.png")


def _write_coco(folder: Folder) -> None:
    """annotations/train.json and images/ beside it, as annotation tools export them."""
    rng = np.random.default_rng(0)
    for name in ("images", "annotations"):
        (folder / "cells" / name).mkdir(parents=True)
    images, objects = [], []
    for number in range(30):
        pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        x, y, width, height = (int(v) for v in (*rng.integers(1, 12, 2), *rng.integers(8, 16, 2)))
        pixels[y : y + height, x : x + width] += 150
        Image.fromarray(pixels).save(folder / "cells" / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
        objects.append(
            {"id": number, "image_id": number, "category_id": 7, "bbox": [x, y, width, height]}
        )
    content = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "cell"}]}
    (folder / "cells" / "annotations" / "train.json").write_text(json.dumps(content))


def _write_series(folder: Folder) -> None:
    """Decimal commas, missing rows, empty cells, and a column that is not to be forecast."""
    rng = np.random.default_rng(0)
    start, rows = datetime.datetime(2024, 3, 25), ["Zeit;Last;Temperatur;Bemerkung"]
    for hour in range(400):
        if 100 <= hour < 106 or hour == 250:
            continue
        stamp = (start + datetime.timedelta(hours=hour)).strftime("%d.%m.%Y %H:%M")
        load = "" if hour % 90 == 30 else f"{5 + np.sin(hour / 4) + rng.normal() / 5:.2f}"
        numbers = f"{load};{rng.normal():.1f}".replace(".", ",")
        rows.append(f"{stamp};{numbers};ok")
    (folder / "last.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_events(folder: Folder) -> None:
    """Identifiers that are no numbers, and milliseconds since 1970."""
    rng, rows = random.Random(0), ["session,customer,product,at"]
    for user in range(30):
        for place, item in enumerate(rng.sample(range(20), 8)):
            stamp = 1_700_000_000_000 + 86_400_000 * place + user
            rows.append(f"x{user},cus-{user:03d}-ä,SKU/{item:02d},{stamp}")
    events = rows[1:]
    rng.shuffle(events)
    (folder / "events.csv").write_text("\n".join([rows[0], *events]) + "\n", encoding="utf-8")


WORDS = ("left", "right", "stop", "go")
SPEAKERS = ("ann", "bob", "cem", "dia")


def _write_tones(folder: Folder) -> None:
    """Words as pairs of tones in four voices, at 44.1 kHz in stereo."""
    import soundfile

    def sound(word: str, speaker: int) -> np.ndarray:
        seconds = np.arange(int(0.25 * 44_100)) / 44_100
        pitch = (300 + 170 * WORDS.index(word)) * (1 + 0.08 * speaker)
        return 0.3 * np.sin(2 * np.pi * pitch * seconds) + 0.1 * np.sin(5 * np.pi * pitch * seconds)

    _write_manifest(
        folder,
        lambda text, speaker, file: soundfile.write(
            file,
            np.stack([np.concatenate([sound(x, speaker) for x in text.split()])] * 2, -1),
            44_100,
        ),
    )


def _write_voices(folder: Folder) -> None:
    """Words in four voices of espeak-ng, resampled to 44.1 kHz."""
    import soundfile
    from scipy.signal import resample_poly

    def speak(text: str, speaker: int, file: Folder) -> None:
        voice = ("en-us+m1", "en-us+f2", "en-gb+m3", "en-gb+f4")[speaker]
        subprocess.run(["espeak-ng", "-v", voice, "-w", str(file), text], check=True)
        samples, rate = soundfile.read(file)
        soundfile.write(file, resample_poly(samples, 44_100 // 50, rate // 50), 44_100)

    _write_manifest(folder, speak)


def _write_manifest(folder: Folder, write: Callable[[str, int, Folder], None]) -> None:
    (folder / "clips").mkdir()
    rows = ["file;sentence;client"]
    for speaker, name in enumerate(SPEAKERS):
        for number in range(12):
            text = " ".join([WORDS[number % 4], WORDS[number // 4], WORDS[(number + speaker) % 4]])
            file = folder / "clips" / f"{name}{number}.wav"
            write(text, speaker, file)
            rows.append(f"clips/{file.name};{text};{name}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")


def _write_corpus(folder: Folder) -> None:
    rng = random.Random(0)
    german = {
        "die": "the",
        "katze": "cat",
        "sieht": "sees",
        "den": "a",
        "hund": "dog",
        "rot": "red",
    }
    lines = [rng.choices(list(german), k=5) for _ in range(80)]
    (folder / "corpus.de").write_text("\n".join(map(" ".join, lines)) + "\n")
    english = [" ".join(german[word] for word in line) for line in lines]
    (folder / "corpus.en").write_text("\n".join(english) + "\n")


TEXT = {"training.steps": 60, "training.evaluate_every": 30, "training.log_every": 30}
TRANSCRIBER = {
    "model.channels": 4,
    "model.transcriber.state_size": 8,
    "model.transcriber.embedding_size": 8,
    "model.transcriber.decoding.method": "greedy",
    "model.transcriber.decoding.beam_size": 1,
}
JOURNEYS = {
    "german_csv": Journey(
        _write_german,
        """
python -m launch.train --config=configs/text_classification.py:own,attention_pooling \
    --data=rezensionen.csv --text=Rezension --label=Urteil --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input="Der Film ist großartig." --figures=drawn
""",
        TEXT,
    ),
    "chinese_csv": Journey(
        _write_chinese,
        """
python -m launch.train --config=configs/text_classification.py:own,attention_pooling \
    --data=评论.csv --text=评论 --label=类别 --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input=这部电影很精彩 --figures=drawn
""",
        TEXT,
    ),
    "image_folders": Journey(
        _write_photos,
        """
python -m launch.train --config=configs/image_classification.py:own,resnet,cbam \
    --data=photos --config.data.image_size=16 --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input="photos/Apfel/Foto 3.jpg" --figures=drawn
""",
        {
            "model.channels": (4, 8),
            "model.depths": (1, 1),
            "training.steps": 40,
            "training.evaluate_every": 20,
            "training.log_every": 20,
            "optimizer.warmup_steps": 5,
            "optimizer.average_decay": 0.0,
        },
    ),
    "images_and_masks": Journey(
        _write_masks,
        """
python -m launch.train --config=configs/segmentation.py:own --data=scans \
    --config.data.mask_values="(0, 255)" --config.data.image_size="(24, 32)" --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input=scans/images/s1.png --figures=drawn
""",
        {"model.channels": (4, 8)},
    ),
    "coco_file": Journey(
        _write_coco,
        """
python -m launch.train --config=configs/detection.py:own,detr --data=cells --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input=cells/images/3.png --figures=drawn
""",
        {
            "data.image_size": 32,
            "model.queries": 4,
            "model.backbone.channels": (4, 4, 8, 8),
            "model.backbone.depths": (1, 1, 1, 1),
            "model.model_size": 8,
            "model.encoder_layers": 1,
            "model.decoder_layers": 1,
        },
    ),
    "series_with_gaps": Journey(
        _write_series,
        """
python -m launch.train --config=configs/forecasting.py:own,lag,6 --data=last.csv --time=Zeit \
    --label=Last,Temperatur --config.data.lookback=24 --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input=last.csv --figures=drawn
""",
    ),
    "events": Journey(
        _write_events,
        """
python -m launch.train --config=configs/recommendation.py:own,hybrid --data=events.csv \
    --user=customer --item=product --time=at --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input=user:cus-007-ä --format=json
""",
        {"data.max_length": 8},
        figures=False,
    ),
    "sounds": Journey(
        _write_tones,
        """
python -m launch.train --config=configs/speech_recognition.py:own,conformer,location_aware \
    --data=clips.csv --audio=file --text=sentence --speaker=client \
    --config.data.text.tokenizer=word --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input=clips/ann3.wav --figures=drawn
""",
        TRANSCRIBER,
    ),
    "parallel_files": Journey(
        _write_corpus,
        """
python -m launch.train --config=configs/translation.py:own,rnn --data=corpus.de,corpus.en \
    --workdir=runs/mine
python -m launch.evaluate --workdir=runs/mine --split=test
python -m launch.predict --workdir=runs/mine --input="die katze sieht den hund" --figures=drawn
""",
        {
            "data.text.vocabulary_size": 300,
            "data.text.min_count": 1,
            "model.state_size": 8,
            "model.embedding_size": 8,
        },
    ),
}
JOURNEYS["voices"] = dataclasses.replace(JOURNEYS["sounds"], write=_write_voices)


def _short(words: list[str], changes: Mapping[str, Any]) -> list[str]:
    """Returns flags that make a training short."""
    if launched(words) != "train":
        return []
    given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    known = flatten(load_values(given["--config"]))
    values = {**SHORT, **changes}
    return [
        f"--config.{key}={value}"
        for key, value in values.items()
        if key in known and f"--config.{key}" not in given
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOURNEYS)
def test_journey(name, server, tmp_path):
    if name == "voices" and shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    journey, folder = JOURNEYS[name], tmp_path / "work"
    folder.mkdir()
    journey.write(folder)
    given = commands(f"```sh{journey.commands}```\n")
    assert 3 <= len(given) <= 4
    with chdir(folder):
        paths = Paths(tmp_path / "data", tmp_path / "cache")
        Shell(server, folder, paths, lambda words: _short(words, journey.changes)).run(given)
    run = folder / "runs" / "mine"
    assert "data:image/svg+xml" in (run / "report.html").read_text(encoding="utf-8")
    with (run / "predictions-test.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file))
    if journey.figures:
        assert list((folder / "drawn").glob("*.png"))
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"]["name"].startswith("own_")
    metrics = json.loads((run / "evaluation-test.json").read_text())["metrics"]
    if name in ("german_csv", "chinese_csv", "image_folders"):
        # The classes are easy to tell apart.
        assert metrics["accuracy"] > 0.9
