"""A small user data set, and the commands as a user types them."""

import io
import os
import pathlib
import random
import subprocess
import sys

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
GOOD = ["fine", "lovely", "gripping", "funny", "warm", "好看", "superb"]
BAD = ["dull", "awful", "boring", "weak", "cold", "难看", "flat"]
PLAIN = ["film", "the", "a", "story", "plot", "with", "actor", "scene", "ending", "very"]


def write_csv(path: pathlib.Path, rows: int = 240, seed: int = 0) -> pathlib.Path:
    """Writes short reviews whose class follows from one or two of their words."""
    rng = random.Random(seed)
    lines = ["review,stars"]
    for _ in range(rows):
        label = rng.choice(["good", "bad"])
        words = rng.choices(PLAIN, k=rng.randint(2, 9))
        words += rng.choices(GOOD if label == "good" else BAD, k=rng.randint(1, 2))
        rng.shuffle(words)
        lines.append(f"{' '.join(words)} {rng.randint(0, 10**6)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> pathlib.Path:
    """Returns one cache folder for all tests, so that the user's own cache is not touched."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def csv_file(tmp_path_factory) -> pathlib.Path:
    """Writes 240 labeled reviews in two columns, review and stars."""
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="session")
def command(cache, server):
    """Runs `python -m launch.NAME FLAGS` from the root of the repository."""

    def run(name: str, *flags: str, stdin: str | None = None, **environment: str):
        words = command_line(name, cache, *flags)
        if not environment:
            return server.run(words[2:], stdin)
        return subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def command_line(name: str, cache: pathlib.Path, *flags: str) -> list[str]:
    """Returns the arguments of a command line, with its own cache folder."""
    return [sys.executable, "-m", f"launch.{name}", f"--cache_dir={cache}", *flags]


@pytest.fixture(scope="session")
def tiny(csv_file) -> list[str]:
    """Returns flags of a training run of a second or two, with every dropout."""
    return [
        "--config=configs/text_classification.py:movie_reviews,transformer",
        f"--config.data.train_file={csv_file}",
        "--config.data.text_column=review",
        "--config.data.label_column=stars",
        "--config.data.text.max_length=16",
        "--config.model.model_size=16",
        "--config.model.num_layers=1",
        "--config.model.feedforward_size=32",
        "--config.training.steps=60",
        "--config.training.batch_size=16",
        "--config.training.evaluation_batch_size=16",
        "--config.training.evaluate_every=20",
        "--config.training.log_every=10",
        "--config.optimizer.learning_rate=0.01",
        "--config.optimizer.warmup_steps=5",
        "--config.model.dropout_rate=0.1",
        "--config.model.token_dropout_rate=0.1",
        "--config.model.head_dropout_rate=0.1",
    ]


@pytest.fixture
def undrawn(monkeypatch):
    """Replaces the drawings of reports by empty images: they take longer than tiny trainings."""
    from launch.reporting import figures

    image = io.BytesIO()
    Image.new("RGB", (1, 1)).save(image, format="PNG")
    monkeypatch.setattr(figures, "png", lambda figure: image.getvalue())
    monkeypatch.setattr(figures, "_svg", lambda panel: "")


@pytest.fixture(scope="session")
def tiny_run(tiny, cache, tmp_path_factory):
    """Trains with `tiny` once; returns the run directory and the finished process."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = subprocess.run(
        command_line("train", cache, *tiny, f"--workdir={folder}", "--profile=5"),
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done
