"""Synthetic data whose output depends on one known position, as a test of attributions.

python -m benchmarks.known_positions [CASE ...]

Each case writes data in which a single position of the input determines the output: a token, a
patch, a lag, an item of a history, or the columns of a line. A small model is trained on them. An
attribution is right for an example if its largest value (of absolute values where signs have no
meaning) is at the deciding position. Only examples with the right output count. The fractions are
written to results/known_positions.json, for docs/EXPLAIN.md.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import launch
from launch.engine.environment import commit, device, versions
from launch.engine.writers import write_json
from launch.reporting import faithfulness_table
from launch.runs import directory
from launch.runs.explaining import CONTROLS, Explaining
from tasks.explanation import Axis

TARGET = Path(__file__).parents[1] / "results" / "known_positions.json"
Decides = Callable[[Axis], np.ndarray]
Example = tuple[str, str | None, Decides]


@dataclasses.dataclass(frozen=True)
class Known:
    """A synthetic data set with a known deciding position.

    Attributes:
      config: config file with its argument.
      changes: new values of config keys.
      write: function that writes the data to a folder and returns the value of --data.
      examples: function that writes new inputs to a folder and returns a tuple for each input. The
        tuple has the input; the right output, or None if every output counts as right; and a
        function that marks the deciding positions of an axis, bool [n].
      columns: names of the data's columns, by flag.
    """

    config: str
    changes: Mapping[str, Any]
    write: Callable[[Path], Path]
    examples: Callable[[Path], Sequence[Example]]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


def labeled(word: str) -> Decides:
    """Returns a function that marks the positions of an axis whose label is `word`."""
    return lambda axis: np.array([label == word for label in axis.labels])


def overlapping(low: Sequence[float], high: Sequence[float]) -> Decides:
    """Returns a function that marks the positions of an axis that overlap a rectangle.

    Args:
      low, high: the corners (x, y) of the rectangle.
    """

    def mark(axis: Axis) -> np.ndarray:
        assert axis.areas is not None
        x1, y1, x2, y2 = axis.areas.T
        inside = (x1 < high[0]) & (x2 > low[0]) & (y1 < high[1]) & (y2 > low[1])
        # A position that only touches the rectangle does not count.
        return inside & ((np.minimum(x2, high[0]) - np.maximum(x1, low[0])) > 1e-6)

    return mark


# ---------------------------------------------------------------- a token

_FILLERS = ["the", "plot", "film", "actor", "scene", "story", "music", "of", "with", "and", "a"]
_SIGNALS = {"superb": "good", "awful": "bad", "lovely": "good", "dull": "bad"}


def _text(rng: np.random.Generator) -> tuple[str, str]:
    words = rng.choice(_FILLERS, rng.integers(7, 13)).tolist()
    signal = str(rng.choice([*_SIGNALS]))
    words.insert(int(rng.integers(len(words) + 1)), signal)
    return " ".join(words), signal


def _write_texts(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [_text(rng) for _ in range(800)]
    lines = ["text,label", *(f"{text},{_SIGNALS[signal]}" for text, signal in rows)]
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    return folder / "texts.csv"


def _texts(folder: Path) -> list[Example]:
    rng = np.random.default_rng(1)
    texts = [_text(rng) for _ in range(100)]
    return [(text, _SIGNALS[signal], labeled(signal)) for text, signal in texts]


# ---------------------------------------------------------------- a patch

_SIDE, _PATCH = 24, 4


def _image(rng: np.random.Generator) -> tuple[np.ndarray, str, tuple[int, int]]:
    pixels = rng.integers(90, 166, (_SIDE, _SIDE))
    row, column = (int(x) for x in rng.integers(_SIDE // _PATCH, size=2))
    label = str(rng.choice(["across", "down"]))
    stripes = np.tile([[0], [255]], (_PATCH // 2, _PATCH))
    patch = stripes if label == "across" else stripes.T
    y, x = row * _PATCH, column * _PATCH
    pixels[y : y + _PATCH, x : x + _PATCH] = patch
    return pixels.astype(np.uint8), label, (row, column)


def _write_images(folder: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(1200):
        pixels, label, _ = _image(rng)
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / label / f"{number:04d}.png")
    return folder / "images"


def _images(folder: Path) -> list[Example]:
    from PIL import Image

    rng, found = np.random.default_rng(1), []
    for number in range(100):
        pixels, label, (row, column) = _image(rng)
        path = folder / f"new_{number:03d}.png"
        Image.fromarray(pixels).save(path)
        side = _SIDE // _PATCH
        low, high = (column / side, row / side), ((column + 1) / side, (row + 1) / side)
        found.append((str(path), label, overlapping(low, high)))
    return found


# ---------------------------------------------------------------- a lag

_LAG, _LOOKBACK = 7, 24


def _series(rng: np.random.Generator, length: int) -> np.ndarray:
    """Returns a series in which each value depends on noise and on the value 7 steps earlier."""
    values = rng.normal(size=length)
    for step in range(_LAG, length):
        # With a coefficient well below 1, the value at twice the lag explains little.
        values[step] = 0.7 * values[step - _LAG] + 0.7 * values[step]
    return values


def _write_table(path: Path, values: np.ndarray) -> Path:
    path.write_text("\n".join(["y", *(f"{value:.5f}" for value in values)]) + "\n")
    return path


def _write_series(folder: Path) -> Path:
    return _write_table(folder / "series.csv", _series(np.random.default_rng(0), 4000))


def _windows(folder: Path) -> list[Example]:
    rng, found = np.random.default_rng(1), []
    # The horizon is one step, and the deciding step is _LAG steps before it.
    step, total = _LOOKBACK - _LAG, _LOOKBACK + 1
    for number in range(100):
        path = _write_table(folder / f"new_{number:03d}.csv", _series(rng, 200)[-_LOOKBACK:])
        decides = overlapping((step / total, 0), ((step + 1) / total, 1))
        found.append((f"{path},steps=1", None, decides))
    return found


# ---------------------------------------------------------------- an item of the history

_ITEMS = [f"filler {number}" for number in range(30)]
_PAIRS = {f"ticket {name}": f"visit {name}" for name in ("red", "blue", "green", "gold")}


def _block(rng: np.random.Generator, fillers: list[str], ticket: str) -> list[str]:
    """Removes three to seven fillers from the list; returns them with the ticket inserted."""
    items = [fillers.pop() for _ in range(int(rng.integers(3, 8)))]
    items.insert(int(rng.integers(len(items) + 1)), ticket)
    return items


def _write_events(folder: Path) -> Path:
    rng, lines = np.random.default_rng(0), ["user,item,timestamp"]
    for user in range(2000):
        # An item occurs at most once for each user, because repetitions do not count.
        fillers, tickets = rng.permutation(_ITEMS).tolist(), rng.permutation([*_PAIRS]).tolist()
        history = []
        for ticket in tickets[:3]:
            history += [*_block(rng, fillers, ticket), _PAIRS[ticket]]
        # The third visit is the validation event of the user, and the last item the test event.
        for step, item in enumerate([*history, fillers.pop()]):
            lines.append(f"u{user},{item},{1_600_000_000 + 60 * step}")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    return folder / "events.csv"


def _histories(folder: Path) -> list[Example]:
    rng = np.random.default_rng(1)
    found: list[Example] = []
    for _ in range(100):
        ticket = str(rng.choice([*_PAIRS]))
        items = _block(rng, rng.permutation(_ITEMS).tolist(), ticket)
        found.append(("; ".join(items), _PAIRS[ticket], labeled(ticket)))
    return found


# ---------------------------------------------------------------- columns of a line

_WIDTH, _GLYPH = 160, 32


def _glyphs() -> Mapping[int, np.ndarray]:
    """Returns images of some digits as arrays of ink, [n, 32, 32], by digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = np.kron(digits.images / 16, np.ones((4, 4)))
    return {digit: ink[digits.target == digit] for digit in (0, 1, 3, 7)}


def _line(rng: np.random.Generator, glyphs: Mapping[int, np.ndarray]) -> tuple[Any, int, int]:
    digit = int(rng.choice([*glyphs]))
    x = int(rng.integers(_WIDTH - _GLYPH))
    paper = 255 - rng.integers(0, 40, (32, _WIDTH))
    ink = glyphs[digit][rng.integers(len(glyphs[digit]))]
    paper[:, x : x + _GLYPH] = np.minimum(paper[:, x : x + _GLYPH], 255 * (1 - ink))
    return paper.astype(np.uint8), digit, x


def _write_lines(folder: Path) -> Path:
    from PIL import Image

    rng, glyphs, rows = np.random.default_rng(0), _glyphs(), ["path,text"]
    for number in range(600):
        pixels, digit, _ = _line(rng, glyphs)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        rows.append(f"{number:03d}.png,{digit}")
    (folder / "lines.csv").write_text("\n".join(rows) + "\n")
    return folder / "lines.csv"


def _lines(folder: Path) -> list[Example]:
    from PIL import Image

    rng, glyphs, found = np.random.default_rng(1), _glyphs(), []
    for number in range(60):
        pixels, digit, x = _line(rng, glyphs)
        path = folder / f"new_{number:03d}.png"
        Image.fromarray(pixels).save(path)
        decides = overlapping((x / _WIDTH, 0), ((x + _GLYPH) / _WIDTH, 1))
        found.append((str(path), str(digit), decides))
    return found


def _training(steps: int, batch_size: int = 64) -> dict[str, Any]:
    every = max(steps // 4, 1)
    return {
        "training.steps": steps,
        "training.batch_size": batch_size,
        "training.evaluate_every": every,
        "training.log_every": every,
    }


CASES: Mapping[str, Known] = {
    "token": Known(
        "text_classification:own,transformer",
        {
            **_training(300),
            "data.text.ngrams": 1,
            "model.model_size": 32,
            "model.num_heads": 2,
            "model.num_layers": 2,
            "model.feedforward_size": 64,
        },
        _write_texts,
        _texts,
    ),
    "patch": Known(
        "image_classification:own,vit,cls",
        {
            **_training(500),
            "data.image_size": _SIDE,
            "model.patch_size": _PATCH,
            "model.model_size": 32,
            "model.num_heads": 2,
            "model.num_layers": 2,
            "model.feedforward_size": 64,
        },
        _write_images,
        _images,
    ),
    "lag": Known(
        "forecasting:own,lag,1",
        {**_training(300), "data.lookback": _LOOKBACK, "data.time_column": "none"},
        _write_series,
        _windows,
    ),
    "item": Known(
        "recommendation:own,sasrec",
        {
            **_training(1200),
            "training.refit": False,
            "data.max_length": 32,
            "model.max_length": 32,
            "model.model_size": 32,
            "model.num_layers": 2,
        },
        _write_events,
        _histories,
    ),
    "columns": Known(
        "handwriting_recognition:own,additive",
        {**_training(250, 32), "data.split_by": "file"},
        _write_lines,
        _lines,
        {"image": "path", "text": "text"},
    ),
}


def measure(name: str, folder: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Trains the model of a case and measures for how many examples each attribution is right.

    Args:
      name: name of the case.
      folder: folder for the data and the run.
      changes: new values of config keys, which replace those of the case.

    Returns:
      A dict with the results. Its entry "methods" contains the fraction of right examples by
      method.
    """
    case = CASES[name]
    data = case.write(folder)
    config = launch.config(
        case.config, {**case.changes, **(changes or {})}, data=str(data), columns=case.columns
    )
    run = launch.train(config, folder / "run", baselines=False)
    task = directory.restored_task(config, run.folder)
    steps, variables, _ = directory.load_variables(task, config, run.folder)
    explaining = Explaining(task, config, steps, variables)
    inputs = case.examples(folder)
    right: dict[str, list[float]] = {}
    examples = list(explaining.of_inputs([text for text, _, _ in inputs]))
    explaining.prepare(examples)
    for example, (_, output, decides) in zip(examples, inputs, strict=True):
        described = explaining.explainer.describe(example)
        if output not in (None, described.prediction):
            continue
        marked = decides(described.axes[described.axis])
        assert marked.any(), (described.input, described.axes[described.axis].labels)
        found = explaining.attributions(example, explaining.methods(example))
        for method, each in found.items():
            values = each.values if explaining.explainer.signed else np.abs(each.values)
            right.setdefault(method, []).append(float(marked[int(np.argmax(values))]))
        right.setdefault("random", []).append(float(marked.mean()))
    assert not set(right) & {*CONTROLS} - {"random"}
    return {
        "config": case.config,
        "examples": len(right["random"]),
        "inputs": len(inputs),
        "metrics": {task.primary_metric: run.metrics[task.primary_metric]},
        "methods": {method: round(float(np.mean(hits)), 4) for method, hits in right.items()},
    }


def main(names: Sequence[str]) -> None:
    """Measures the named cases. Without names, measures all cases and writes the results file."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"{unknown[0]}: expected one or more of {', '.join(CASES)}")
    found = {}
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, Path(folder))
        print(name, found[name]["metrics"], found[name]["methods"], flush=True)
    if not names:
        write_json(
            TARGET,
            {
                "kind": faithfulness_table.KNOWN,
                "cases": found,
                "command": "python -m benchmarks.known_positions",
                "device": device(),
                "commit": commit(),
                "versions": versions(),
            },
        )
        print(f"written: {TARGET.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
