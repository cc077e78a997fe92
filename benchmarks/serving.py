"""Load test of `launch.serve` over loopback: latency, throughput, and correctness of all answers.

python -m launch.train  --config=configs/text_classification.py:movie_reviews,attention_pooling
    --workdir=runs/reviews
python -m launch.export --workdir=runs/reviews --output=exported/reviews
python -m benchmarks.serving --reviews=exported/reviews --camvid=exported/camvid

The inputs are the texts and images of the test splits; images are uploaded as forms. Clients with
keep-alive connections send requests to a server that runs batches and to a server that runs single
inputs. The classifier of reviews is also served by PyTorch behind Starlette
(`benchmarks.torch_server`); its programs have one thread in all servers. Each server is one
process. The rounds of all servers of a model alternate. The clients run on the same machine and
share its cores.

Each answer is compared with the answer of the export, which this process runs too. The command
fails if an answer is wrong. Results are written to benchmarks/results/cpu.json or --json.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks import load, records, report
from benchmarks.attention_backends import installed
from launch import cli

BATCHES, SINGLE, TORCH = "batches", "single inputs", "PyTorch and Starlette"
# Largest difference of scores, which are rounded to four digits. Scores from batches of other sizes
# may be rounded differently.
SCORES = 2e-4
# Fraction of the pixels that may have another class, because two classes may be nearly equally
# probable.
PIXELS = 1e-3
# Target: maximum ratio of p50, the median latency, to that of PyTorch.
TARGET = 1.0
# Largest number of different inputs.
_INPUTS = 500


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "reviews", None, "Folder of launch.export: attention_pooling on movie_reviews."
    )
    flags.DEFINE_string("camvid", None, "Folder of launch.export: segmentation of camvid.")
    flags.DEFINE_integer("requests", 2000, "Requests to each server.", lower_bound=1)
    flags.DEFINE_integer("clients", 32, "Clients at once.", lower_bound=1)
    flags.DEFINE_integer("rounds", 4, "Number of rounds.", lower_bound=1)
    flags.DEFINE_integer("max_batch", 16, "Largest batch, a power of two.", lower_bound=2)
    flags.DEFINE_string("json", None, "Output file; benchmarks/results/cpu.json by default.")
    flags.DEFINE_bool("readme", False, "Also write README.md and attention.png.")


class Subject(NamedTuple):
    """A served model with its inputs.

    Attributes:
      name: name of the data set.
      folder: folder of the export.
      inputs: texts, or contents of image files.
      is_equal: function that takes the answer of a server and the expected answer, and returns
        whether they agree.
    """

    name: str
    folder: pathlib.Path
    inputs: Sequence[str | bytes]
    is_equal: Callable[[Any, Any], bool]

    def requests(self) -> list[bytes]:
        """Returns an HTTP request for each input."""
        path = "/models/model"
        return [
            load.json_request(path, {"inputs": one})
            if isinstance(one, str)
            else load.form_request(path, one)
            for one in self.inputs
        ]

    def expected(self) -> list[Any]:
        """Runs the export in this process and returns its answers for the inputs."""
        from launch.exports.reader import Export
        from launch.serving.answers import answers

        export = Export(self.folder)
        found = []
        for one in self.inputs:
            item = export.encode(one)
            item.outputs = export.run(item.rows)
            export.decode(item)
            shaped = answers(export.signature["task"], [item], {}, many=False)
            found.append(json.loads(json.dumps(shaped)))
        return found


def reviews(folder: str) -> Subject:
    """Returns the classifier of reviews, with the texts of the test split as inputs."""
    from launch.engine import config as configs
    from tasks.text_classification.data import load as load_texts

    config = configs.load_file("configs/text_classification.py:movie_reviews,attention_pooling")
    texts = load_texts(config.data, cli.paths()).splits["test"].texts[:_INPUTS]
    return Subject("movie_reviews", pathlib.Path(folder), texts, are_equal_scores)


def camvid(folder: str) -> Subject:
    """Returns the segmentation model, with the images of the test split as inputs, in PNG."""
    from PIL import Image

    from launch.engine import config as configs
    from tasks.segmentation.data import load as load_images

    config = configs.load_file("configs/segmentation.py:camvid")
    contents = []
    for image in load_images(config.data, cli.paths()).splits["test"].images[:_INPUTS]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        contents.append(file.getvalue())
    return Subject("camvid", pathlib.Path(folder), contents, are_equal_masks)


def are_equal_scores(answer: Any, expected: Any) -> bool:
    """Returns whether an answer lists the expected scores within `SCORES`, best label first."""
    try:
        (found,), (wanted,) = answer, expected
        scores = {row["label"]: row["score"] for row in found}
        ordered = [row["score"] for row in found]
        return (
            scores.keys() == {row["label"] for row in wanted}
            and ordered == sorted(ordered, reverse=True)
            and all(abs(scores[row["label"]] - row["score"]) <= SCORES for row in wanted)
        )
    except (TypeError, KeyError, ValueError):
        return False


def are_equal_masks(answer: Any, expected: Any) -> bool:
    """Returns whether at most a fraction `PIXELS` of the pixels have different classes."""
    try:
        if answer["size"] != expected["size"]:
            return False
        found, wanted = label_maps(answer), label_maps(expected)
    except (TypeError, KeyError, ValueError):
        return False
    return bool(np.mean(found != wanted) <= PIXELS)


def label_maps(answer: Mapping[str, Any]) -> np.ndarray:
    """Returns the class name of each pixel, from the masks of an answer."""
    from pycocotools import mask as coco

    labels = np.full(answer["size"], "", object)
    for name, mask in answer["masks"].items():
        labels[coco.decode({**mask, "counts": mask["counts"].encode()}).astype(bool)] = name
    return labels


@contextmanager
def server(module: str, *arguments: str) -> Iterator[int]:
    """Starts a server and yields its port when it is ready.

    Args:
      module: module of the command, which prints a line with its address and then one that begins
        with "ready".
      *arguments: arguments of the command.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        address, ready = process.stdout.readline(), process.stdout.readline()
        if not ready.startswith("ready"):
            sys.exit(f"{module}: the server did not start")
        yield int(address.strip().rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(60)


def run() -> None:
    """Runs the command."""
    values = flags.FLAGS
    path = pathlib.Path(values.json or records.FOLDER / "cpu.json")
    subjects = {"reviews": reviews, "camvid": camvid}
    given = {name: values[name].value for name in subjects if values[name].value}
    if not given:
        from tasks.common.errors import UserError

        raise UserError("--reviews and --camvid are missing; give at least one export")
    rows = []
    for name, folder in given.items():
        rows.append(measure(subjects[name](folder)))
        print(show(rows[-1]), flush=True)
        section = {"rows": rows, "requests": values.requests, "clients": values.clients}
        records.put(path, "serving", section)
    if values.readme:
        report.write(path.parent)
    wrong = sum(one["wrong"] for row in rows for one in row["ways"].values())
    if wrong:
        sys.exit(f"{wrong} answers differ from those of the export")


def measure(subject: Subject) -> dict[str, Any]:
    """Measures all servers of a model.

    Returns:
      The row of the model. Its entry "ways" contains the results of `summarize` and `check` by the
      name of the server.
    """
    values = flags.FLAGS
    print(f"{subject.name}: answers of the export", flush=True)
    requests, expected = subject.requests(), subject.expected()
    export = f"--export=model={subject.folder}"
    # Small programs are slower with more threads, here and in PyTorch.
    options = ["--port=0", *(["--threads=1"] if subject.name == "movie_reviews" else [])]
    commands = {
        BATCHES: ("launch.serve", export, *options, f"--max_batch={values.max_batch}"),
        SINGLE: ("launch.serve", export, *options, "--max_batch=1"),
    }
    if subject.name == "movie_reviews" and installed("torch"):
        commands[TORCH] = ("benchmarks.torch_server", f"--export={subject.folder}")
    count = -(-values.requests // values.rounds)
    rounds: dict[str, list[Round]] = {name: [] for name in commands}
    with ExitStack() as stack:
        ports = {}
        for name, command in commands.items():
            ports[name] = stack.enter_context(server(*command))
            load.send(ports[name], requests, 10 * values.clients, values.clients)
        for number in range(values.rounds):
            for name, port in ports.items():
                start = time.perf_counter()
                answers = load.send(port, requests, count, values.clients)
                rounds[name].append(Round(time.perf_counter() - start, answers))
            print(f"{subject.name}: round {number + 1} of {values.rounds}", flush=True)
    base = TORCH if TORCH in commands else SINGLE
    ways = {name: summarize(found, rounds[base]) for name, found in rounds.items()}
    for name, found in rounds.items():
        ways[name] |= check(found, expected, subject.is_equal)
    target = TARGET if base == TORCH else None
    return {"model": subject.name, "base": base, "target": target, "ways": ways}


class Round(NamedTuple):
    """Answers of one round of requests, and the seconds that the round took."""

    seconds: float
    answers: Sequence[load.Answer]

    @property
    def p50(self) -> float:
        """Median latency in seconds."""
        return statistics.median(answer.seconds for answer in self.answers)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.answers) / self.seconds


def summarize(rounds: Sequence[Round], base: Sequence[Round]) -> dict[str, Any]:
    """Returns the latencies and the rate of a server, and their ratios to those of `base`.

    Args:
      rounds: rounds of the server.
      base: the same rounds of the server with which it is compared.
    """
    seconds = [answer.seconds for one in rounds for answer in one.answers]
    pairs = list(zip(rounds, base, strict=True))
    found: dict[str, Any] = {
        "p50_ms": _round(1e3 * statistics.median(seconds)),
        "p99_ms": _round(1e3 * float(np.quantile(seconds, 0.99))),
        "requests_per_second": _round(len(seconds) / sum(one.seconds for one in rounds)),
    }
    if rounds is not base:
        ratios = {
            "p50": [mine.p50 / other.p50 for mine, other in pairs],
            "requests": [mine.rate / other.rate for mine, other in pairs],
        }
        for name, several in ratios.items():
            found[f"{name}_ratio"] = _round(statistics.median(several))
            found[f"{name}_ratio_range"] = [_round(min(several)), _round(max(several))]
    return found


def check(
    rounds: Sequence[Round], expected: Sequence[Any], is_equal: Callable[[Any, Any], bool]
) -> dict[str, int]:
    """Counts the answers and the wrong answers, and prints the first wrong one.

    Args:
      rounds: rounds of a server.
      expected: the expected answer for each input.
      is_equal: as for `Subject`.
    """
    counts = {"answers": 0, "wrong": 0}
    # Input number and body of the answers found to be right. Most later answers have the same body,
    # and need not be parsed.
    right: set[tuple[int, bytes]] = set()
    for one in rounds:
        for answer in one.answers:
            counts["answers"] += 1
            number = answer.number % len(expected)
            if (number, answer.body) in right:
                continue
            if answer.status == 200 and is_equal(json.loads(answer.body), expected[number]):
                right.add((number, answer.body))
                continue
            if not counts["wrong"]:
                print(f"wrong: {answer.status} {answer.body[:200]!r}", file=sys.stderr)
            counts["wrong"] += 1
    return counts


def show(row: dict[str, Any]) -> str:
    """Formats a row for the terminal."""
    lines = [row["model"]]
    for name, one in row["ways"].items():
        ratio = ""
        if "p50_ratio" in one:
            ratio = (
                f"; p50 {one['p50_ratio']:.2f}, requests/s {one['requests_ratio']:.2f} times "
                f"those of {row['base']}"
            )
        lines.append(
            f"{name:>22}: p50 {one['p50_ms']} ms, p99 {one['p99_ms']} ms, "
            f"{one['requests_per_second']} requests/s{ratio}; "
            f"{one['wrong']} of {one['answers']} answers wrong"
        )
    return "\n".join(lines)


def _round(number: float) -> float:
    """Rounds to four significant digits."""
    return float(f"{number:.4g}")


if __name__ == "__main__":
    define_flags()
    # JAX takes the CPU in this process and in the servers.
    os.environ["JAX_PLATFORMS"] = "cpu"
    cli.main(run, __doc__)
