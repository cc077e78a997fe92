"""Errors of the system: one line, exit status 2; a run works without caches."""

import asyncio
import errno
import gc
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import time

import pytest

from launch import cli
from launch.engine.checkpoints import finished_steps
from launch.engine.errors import system_error
from tests.launch.conftest import ROOT, command_line


@pytest.fixture(scope="module")
def flags(csv_file):
    return [
        "--config=configs/text_classification.py:movie_reviews,attention_pooling",
        f"--config.data.train_file={csv_file}",
        "--config.data.text_column=review",
        "--config.data.label_column=stars",
        "--config.training.steps=10",
        "--config.training.evaluate_every=5",
        "--config.training.log_every=5",
        "--nobaselines",
    ]


@pytest.fixture(scope="module")
def run(flags, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = command("train", *flags, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def one_line(done) -> str:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


# ---------------------------------------------------------------------- reasons


def chained(error: BaseException, cause=None, context=None) -> BaseException:
    error.__context__ = context
    if cause is not None:
        error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "/data/x")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, "/data/x: No space left on device"),
        (chained(RuntimeError("saving failed"), cause=FULL), "/data/x: No space left on device"),
        (chained(ValueError("x"), context=chained(KeyError("y"), cause=FULL)),
         "/data/x: No space left on device"),
        (ExceptionGroup("two", [ValueError("x"), FULL]), "/data/x: No space left on device"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"),
         "/a to /b: Invalid cross-device link"),
        (ValueError('RESOURCE_EXHAUSTED: Error writing "a" in database at local file "/r/d/": '
                    'Failed writing: "/r/d/b9": Failed to write 9 bytes to file 11: No space left '
                    "on device [os_error_code='28']"), "/r/d/b9: No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
         "/x: No such file or directory"),
        # A bug of the program keeps its traceback.
        (ValueError("x"), None),
        (OSError("no number"), None),
        (chained(ValueError("x"), context=FileNotFoundError(errno.ENOENT, "No such", "/x")), None),
    ],
)  # fmt: skip
def test_the_reason_is_found(error, line):
    assert system_error(error) == line


def test_long_paths_are_shortened():
    line = system_error(OSError(errno.ENAMETOOLONG, "File name too long", "/" + "d" * 300))
    assert line == "/" + "d" * 196 + "...: File name too long"


@pytest.mark.parametrize("error", [FULL, chained(RuntimeError("in a thread"), cause=FULL)])
def test_a_command_ends_with_one_line(error, capsys):
    def fails():
        raise error

    with pytest.raises(SystemExit) as ended:
        cli._guarded(fails)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: /data/x: No space left on device\n"


@pytest.mark.parametrize(("error", "logged"), [(FULL, False), (ValueError("x"), True)])
def test_errors_of_further_tasks_are_not_logged_beside_the_line(error, logged, caplog):
    """Several arrays of a checkpoint fail at once; the save operation raises one of the errors."""

    async def save():
        await asyncio.gather(write(0.0), write(30.0))

    async def write(seconds):
        try:
            await asyncio.sleep(seconds)
        finally:
            # The second one fails while the event loop is closed after the first error.
            raise error

    dropped = cli._is_no_system_error
    logging.getLogger("asyncio").addFilter(dropped)
    try:
        with pytest.raises(type(error)):
            asyncio.run(save())
        gc.collect()
    finally:
        logging.getLogger("asyncio").removeFilter(dropped)
    assert bool(caplog.records) == logged


def test_a_fault_of_the_program_is_no_line():
    def fails():
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        cli._guarded(fails)


def test_the_garbage_collector_ignores_the_imports_of_a_command():
    thresholds, seen = gc.get_threshold(), []
    gc.disable()
    try:
        cli._run(lambda: seen.append((gc.isenabled(), gc.get_freeze_count())))
    finally:
        gc.enable()
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    ((enabled, frozen),) = seen
    assert enabled
    assert frozen > 10_000


# ---------------------------------------------------------------------- commands


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written(flags, cache, tmp_path):
    """Limits files to 40 kB, as on a full disk: only checkpoints are larger."""
    folder = tmp_path / "run"
    large = "--config.model.embedding_size=512"
    train = command_line("train", cache, *flags, f"--workdir={folder}", large)
    done = subprocess.run(
        train,
        cwd=ROOT, capture_output=True, text=True, timeout=240,
        # `git status` would leave a partial index.lock if the index is larger than the limit.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )  # fmt: skip
    # The counts of the splits and the progress precede it.
    *before, line = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert line.startswith("error: ")
    assert not any("error" in other or "Traceback" in other for other in before), done.stderr
    assert os.strerror(errno.EFBIG) in line
    assert str(folder / "checkpoints") in line
    assert finished_steps(folder / "checkpoints") == []
    for name, more in (("predict", ["--input=fine"]), ("evaluate", [])):
        done = subprocess.run(
            command_line(name, cache, f"--workdir={folder}", *more),
            cwd=ROOT, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert "has no checkpoint yet; train first" in one_line(done)
    # With enough space the same command trains.
    done = subprocess.run(
        train,
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_best_checkpoint_was_never_written(run, command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    best = json.dumps({"step": 15, "split": "validation", "loss": 0.0, "accuracy": 2.0})
    (folder / "metrics.jsonl").write_text("\n".join([*lines, best]) + "\n")
    done = command("predict", f"--workdir={folder}", "--input=fine")
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of the best step 15 is missing; step" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(flags, command, tmp_path):
    (tmp_path / "file").write_text("no folder")
    nowhere = tmp_path / "file" / "cache"
    rest = [flag for flag in flags if flag != "--nobaselines"]
    done = command(
        "train", *rest, f"--cache_dir={nowhere}", f"--workdir={tmp_path / 'run'}",
        JAX_COMPILATION_CACHE_DIR=str(nowhere / "jax"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "baseline nb_svm" in done.stdout
    assert "Traceback" not in done.stderr
    done = command("train", "--config=configs/text_classification.py:sst2",
                f"--cache_dir={nowhere}", f"--workdir={tmp_path / 'other'}")  # fmt: skip
    line = one_line(done)
    assert str(nowhere) in line
    assert "cannot write" in line


@pytest.mark.slow
def test_names_platforms_and_configs_that_are_not_there(flags, run, command, tmp_path):
    line = one_line(command("train", *flags, f"--workdir={tmp_path / ('d' * 300)}"))
    assert "File name too long" in line
    line = one_line(command("predict", f"--workdir={run}", "--input=x", JAX_PLATFORMS="cuda"))
    assert "JAX_PLATFORMS=cuda: not available" in line
    assert "--config is empty" in one_line(command("train", "--config=", f"--workdir={run}"))


@pytest.mark.slow
def test_output_in_ascii(run, command):
    text = "schön 好看"
    given = {"stdin": f"{text}\n", "PYTHONIOENCODING": "ascii"}
    flags = [f"--workdir={run}", "--input=-", "--format=json"]
    done = command("predict", f"--workdir={run}", f"--input={text}", "--format=json",
                PYTHONIOENCODING="ascii")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["input"] == text
    assert (
        command("predict", *flags, PYTHONIOENCODING="utf-8", stdin=given["stdin"]).returncode == 0
    )


@pytest.mark.slow
def test_letters_that_the_output_lacks_are_escapes(csv_file, cache, tmp_path, command, flags):
    lines = csv_file.read_text(encoding="utf-8").replace(",good", ",schön").splitlines()
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = command("train", *flags, f"--config.data.train_file={tmp_path / 'x.csv'}",
                f"--workdir={tmp_path / 'run'}", PYTHONIOENCODING="ascii")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command("predict", f"--workdir={tmp_path / 'run'}", "--input=fine", "--input=superb",
                PYTHONIOENCODING="ascii")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sch\\xf6n") >= 2
    assert done.stderr.count("written as escapes; set PYTHONIOENCODING=utf-8") == 1


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone(run, flags, cache, tmp_path, stream):
    """The other end of the pipe is closed at once, as by `| head`."""
    reader, writer = os.pipe()
    os.close(reader)
    words = (
        command_line("predict", cache, f"--workdir={run}", "--input=fine")
        if stream == "stdout"
        else command_line("train", cache, *flags, f"--workdir={tmp_path / 'run'}")
    )
    other = "stderr" if stream == "stdout" else "stdout"
    done = subprocess.run(
        words, cwd=ROOT, text=True, timeout=240, check=False,
        **{stream: writer, other: subprocess.PIPE},
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 2
    if stream == "stdout":
        assert done.stderr == "error: the output pipe was closed by its reader\n"
    else:
        assert done.stdout == ""


@pytest.mark.slow
def test_a_full_disk_behind_the_output(run, cache):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command_line("predict", cache, f"--workdir={run}", "--input=fine"),
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240, check=False,
        )  # fmt: skip
    reason = os.strerror(errno.ENOSPC)
    assert one_line(done) == f"error: --workdir={run} or standard output: {reason}"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_stops_a_sweep(flags, cache, tmp_path, number, status):
    process = subprocess.Popen(
        command_line("sweep", cache, *[flag for flag in flags if flag != "--nobaselines"],
                "--config.training.steps=100000", "--set=model.pooling=mean,max",
                f"--workdir={tmp_path}"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not any(file.stat().st_size for file in tmp_path.glob("*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "(partial)" in out
    assert "pooling=max" in out
    assert "Traceback" not in err
    assert "the same command resumes from there" in err
    # The second run was not started.
    assert len(list(tmp_path.glob("pooling-*"))) == 1


@pytest.mark.slow
def test_several_ablations_in_one_file_are_ranked_together(csv_file, command, tmp_path):
    file, folder = tmp_path / "mine.py", tmp_path / "all"
    file.write_text(
        "from launch.runs.ablation import Ablation, deltas_of\n"
        "def one(values):\n"
        f"    overrides = {{'data.train_file': {str(csv_file)!r}, 'training.steps': 4,\n"
        "                 'training.evaluate_every': 4, 'training.log_every': 4,\n"
        "                 'data.text_column': 'review', 'data.label_column': 'stars',\n"
        "                 'data.name': 'own_mine'}\n"
        "    return Ablation('configs/text_classification.py:sst2,attention_pooling',\n"
        "                    deltas_of('model.pooling', values), overrides, seeds=1, match=True)\n"
        "def get_ablations():\n"
        "    return {'first': one({'mean': 'mean'}), 'second': one({'max': 'max'})}\n"
    )
    words = [f"--config={file}", f"--workdir={folder}"]
    done = command("ablate", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("which the others are matched to") == 2
    rows = (folder / "ranking.md").read_text().splitlines()[4:]
    assert [row.split("|")[1].strip() for row in rows if row] == ["first"] * 2 + ["second"] * 2
    assert [row.split("|")[2].strip() for row in rows if row] == ["1", "2"] * 2
    page = (folder / "report.html").read_text()
    assert "<h2>first</h2>" in page
    assert "<h2>second</h2>" in page
    for name in ("first", "second"):
        assert (folder / name / "table.md").exists()
    # The same command finds all runs finished.
    trained = sorted(folder.glob("*/*/metrics.jsonl"))
    assert len(trained) == 4
    before = [path.read_bytes() for path in trained]
    assert command("ablate", *words).returncode == 0
    assert [path.read_bytes() for path in trained] == before
    line = one_line(command("ablate", *words, f"--data={csv_file}"))
    assert "has ablations of several tasks, expected one ablation" in line


@pytest.mark.slow
def test_unknown_flags_are_named(command):
    config = "--config=configs/ablations/text_pooling.py"
    line = one_line(command("ablate", config, "--wrkdir=x"))
    assert "--wrkdir: launch.ablate has no such flag (did you mean 'workdir'?)" in line
    line = one_line(command("ablate", config, "--config.model.pooling=max"))
    assert "write --set=model.pooling=VALUE" in line
    line = one_line(command("sweep", "--input=fine"))
    assert "launch.sweep has no such flag; it belongs to launch.explain, launch.export" in line


@pytest.mark.slow
def test_figures_of_texts_show_their_words(run, command, tmp_path):
    folder = tmp_path / "drawn"
    done = command("predict", f"--workdir={run}", "--input=fine", f"--figures={folder}")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in folder.iterdir()] == ["0001-fine.png"]
    assert "--figures is empty" in one_line(
        command("predict", f"--workdir={run}", "--input=fine", "--figures=")
    )
    done = command("predict", f"--workdir={run}", "--input=fine", "--pictures=")
    notice, line = done.stderr.splitlines()
    assert notice == "--pictures is now --figures"
    assert "--figures is empty" in line
