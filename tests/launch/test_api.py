"""The Python API of the commands: imports, configs, training with interrupts, and runs."""

import ast
import asyncio
import csv
import dataclasses
import json
import pathlib
import re
import shutil
import signal
import sys
import threading
import types

import numpy as np
import pytest
from flax import nnx

import launch
from launch.engine import config as configs
from launch.engine.optimizers import OptimizerConfig
from launch.engine.progress import Progress
from tasks.common.data.paths import Paths
from tests.launch.conftest import ROOT, write_csv
from tests.small_data import prepare_small

SST2 = "configs/text_classification.py:sst2,transformer"


# ---------------------------------------------------------------------- imports


def test_type_checkers_see_what_is_exported():
    tree = ast.parse(pathlib.Path(launch.__file__).read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == launch._EXPORTS
    assert {name for name in seen if hasattr(launch, name)} <= {*dir(launch)}


# Programs that import the package, its function `train` and its module `launch.train` in any order.
IMPORTS = {
    "light": """
        import sys, subprocess
        code = ("import sys, launch; dir(launch);"
                "assert not {'jax', 'flax', 'absl', 'launch.api'} & sys.modules.keys()")
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)""",
    "module_first": """
        import importlib
        command = importlib.import_module("launch.train")
        import launch
        from launch import train
        assert train is launch.train""",
    "function_first": """
        import launch
        train = launch.train
        import importlib
        command = importlib.import_module("launch.train")
        assert launch.train is train""",
    "statement": """
        import launch.train
        import launch.train as same
        from launch import train
        assert train is same is launch.train
        command = __import__("sys").modules["launch.train"]""",
    "others": """
        from launch import cli, evaluate, train
        import launch
        assert launch.cli is cli and launch.evaluate is evaluate
        command = __import__("importlib").import_module("launch.train")""",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_train_is_the_function_in_any_order_of_imports(order, server, tmp_path):
    lines = [line.removeprefix("        ") for line in IMPORTS[order].splitlines()]
    if order != "light":
        lines += ["from launch import api", "assert train is api.train"]
        lines += ["assert command.__name__ == 'launch.train'", "command.cli.FLAGS['baselines']"]
    program = tmp_path / "program.py"
    program.write_text("\n".join([f"ROOT = {str(ROOT)!r}", *lines, "print('works')"]))
    done = server.run([str(program)])
    assert done.stdout == "works\n", done.stderr


def test_the_command_is_still_a_module(command):
    done = command("train", "--workdir=nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config is missing")


# ---------------------------------------------------------------------- configs


def test_configs_from_any_working_directory(tmp_path, monkeypatch):
    expected = configs.load_file(str(ROOT / SST2))
    assert launch.config(SST2) == expected
    monkeypatch.chdir(tmp_path)
    for name in (SST2, "text_classification:sst2,transformer", ROOT / SST2):
        assert launch.config(name) == expected
    # A file of the working directory goes before one of the repository.
    (tmp_path / "text_classification.py").write_text(
        "from launch.engine.config import experiment, load_file\n"
        "def get_config(name='x'):\n"
        f"    found = load_file({str(ROOT / SST2)!r})\n"
        "    parts = {key: getattr(found, key) for key in ('task', 'data', 'model')}\n"
        "    return experiment(name=name, **parts)\n"
    )
    assert launch.config("text_classification:mine").name == "mine"


def test_changes_are_checked_as_flags_are():
    base = launch.config(SST2)
    changes = {
        "model.num_layers": "2",
        "config.training.steps": np.int64(400),
        "optimizer": {"learning_rate": 1e-3},
        "seed": 3,
    }
    found = launch.config(base, changes)
    assert (found.model.num_layers, found.training.steps, found.seed) == (2, 400, 3)
    assert found.optimizer == dataclasses.replace(base.optimizer, learning_rate=1e-3)
    assert launch.config(SST2, changes) == found
    assert launch.config(configs.to_dict(found)) == found
    group = OptimizerConfig(learning_rate=0.5)
    assert launch.config(found, {"optimizer": group}).optimizer == group


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_layer": 2}, "no such key (did you mean 'model.num_layers'?)"),
        ({"model.num_layer": "2"}, "no such key (did you mean 'model.num_layers'?)"),
        ({"training.steps": 2.5}, "config.training.steps: expected int, got 2.5"),
        ({"training.steps": "many"}, "config.training.steps: got 'many', expected int"),
        ({"training": {"steps": 0}}, "config.training.steps: got 0, expected"),
        ({"model": 3}, "config.model: got 3, expected a group of keys"),
    ],
)
def test_mistakes_in_changes_have_the_messages_of_flags(changes, message):
    with pytest.raises(launch.UserError) as caught:
        launch.config(SST2, changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text_clasification:sst2", "did you mean 'text_classification'?"),
        ("configs/nothing.py", "configs/nothing.py: no such config file"),
        ("", "--config is empty"),
        (3, "config: got 3, expected a config file, Experiment or mapping"),
    ],
)
def test_mistakes_in_sources(source, message):
    with pytest.raises(launch.UserError) as caught:
        launch.config(source)
    assert message in str(caught.value)


# ---------------------------------------------------------------------- training


@pytest.fixture
def tiny_config(tiny):
    """Returns the experiment that the fixture `tiny_run` trains by a command."""
    (config, *flags) = (flag.partition("=")[2] for flag in tiny)
    keys = [re.match(r"--config\.([^=]+)", flag)[1] for flag in tiny[1:]]
    return launch.config(config, dict(zip(keys, flags, strict=True)))


@pytest.fixture
def interrupted_at(monkeypatch):
    """Returns a dict of signals by step; a run that has validated at a step gets its signal."""
    signals, validated = {}, Progress.validated

    def then_signal(self, step, value):
        validated(self, step, value)
        if step in signals:
            signal.raise_signal(signals.pop(step))

    monkeypatch.setattr(Progress, "validated", then_signal)
    return signals


def test_an_interrupted_run_is_saved_and_resumed_as_by_the_command(
    tiny_config, tiny_run, cache, tmp_path, monkeypatch, interrupted_at
):
    """Interrupts it in an event loop, as notebooks have, then by SIGTERM; resumes in a thread."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"

    def trained():
        return launch.train(tiny_config, "run", cache_dir=cache)

    async def cell():
        with pytest.raises(KeyboardInterrupt, match="stopped after step 20; the same"):
            trained()

    interrupted_at[20] = signal.SIGINT
    asyncio.run(cell())
    assert (folder / "checkpoints" / "20").is_dir()
    unfinished = launch.load("run")
    assert (unfinished.metrics, unfinished.report) == ({}, None)
    assert "not finished" in unfinished._repr_html_()

    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        interrupted_at[40] = signal.SIGTERM
        with pytest.raises(KeyboardInterrupt, match="stopped after step 40"):
            trained()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]

    runs = []
    thread = threading.Thread(target=lambda: runs.append(trained()))
    thread.start()
    thread.join()
    (run,) = runs
    assert run.folder == folder
    theirs, _ = tiny_run
    for name in (
        "metrics.jsonl",
        "config.json",
        "assets.json",
        "data.json",
        "predictions-test.csv",
    ):
        assert (folder / name).read_bytes() == (theirs / name).read_bytes(), name
    assert run.metrics == json.loads((theirs / "result.json").read_text())["metrics"]
    assert run.report == folder / "report.html"
    # A finished run is verified, and not trained again.
    assert trained().record == run.record
    other = launch.config(tiny_config, {"seed": 1})
    with pytest.raises(launch.UserError, match="contains a run of another config, which differs"):
        launch.train(other, "run", cache_dir=cache)


def test_more_devices_than_this_process_has(tiny_config, cache, tmp_path):
    wide = launch.config(tiny_config, {"mesh.cpu_devices": 64})
    with pytest.raises(launch.UserError, match="start a new process"):
        launch.train(wide, tmp_path / "run", cache_dir=cache)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_runs_on_a_mesh_in_one_process(server, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"""
import launch, jax
changes = {{
    "mesh.cpu_devices": 2, "training": {{"steps": 2, "evaluate_every": 2, "log_every": 1}},
    "data": {{"train_size": 40, "validation_size": 8, "test_size": 8}},
    "model": {{"state_size": 8, "embedding_size": 8}},
}}
config = launch.config("sequence_copy", changes)
for name in ("one", "two"):
    run = launch.train(config, name, cache_dir={str(tmp_path / "cache")!r})
    assert len(jax.devices()) == 2
print(len(run.predictions()), run.predict(["31415"])[0]["input"], run.attention("31415"))
""")
    done = server.run([str(program)], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 31415 {'alignment': AttentionWeights(output "), done.stdout
    files = [tmp_path / name / "predictions-test.csv" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


# ---------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def run(tiny_run, cache, tmp_path_factory):
    """Returns a copy of the run that a command has trained."""
    folder = tmp_path_factory.mktemp("copies") / "tiny"
    shutil.copytree(tiny_run[0], folder)
    return launch.load(folder, cache_dir=cache)


def test_results_of_a_run(run):
    record = json.loads((run.folder / "result.json").read_text())
    assert run.metrics == record["metrics"]
    assert run.baselines == record["baselines"]
    assert run.report == run.folder / "report.html"
    assert run.config == configs.resolve(json.loads((run.folder / "config.json").read_text()))
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert run.history == [json.loads(line) for line in lines]
    assert "accuracy=" in repr(run)
    with pytest.raises(launch.UserError, match="contains no run"):
        launch.load(run.folder / "nothing")


def test_predictions_are_those_of_the_file(run):
    rows = run.predictions()
    with (run.folder / "predictions-test.csv").open(encoding="utf-8", newline="") as file:
        saved = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == saved
    assert np.mean([row["score"] for row in rows]) == pytest.approx(run.metrics["accuracy"])
    others = run.predictions("validation")
    assert not {row["id"] for row in others} & {row["id"] for row in rows}
    assert (run.folder / "predictions-validation.csv").exists()
    with pytest.raises(launch.UserError, match="did you mean 'test'"):
        run.predictions("tests")


def test_answers_attention_and_model(run, command):
    texts = ["a lovely superb film", "the plot is 难看"]
    answers = run.predict(texts)
    printed = command(
        "predict", f"--workdir={run.folder}", "--format=json", *(f"--input={x}" for x in texts)
    )
    assert answers == [json.loads(line) for line in printed.stdout.splitlines()]
    assert run.predict([]) == []
    with pytest.raises(launch.UserError, match="expected a list"):
        run.predict(texts[0])
    with pytest.raises(launch.UserError, match=r"--set=model\.num_layers=3"):
        run.predict(texts, {"model.num_layers": 3})

    attention = run.attention(texts[0])["encoder"]
    words = texts[0].split()
    assert {**attention.axes} == {"layer": None, "head": None, "query": words, "key": words}
    assert np.asarray(attention).shape == (1, 4, 4, 4)
    np.testing.assert_allclose(np.asarray(attention).sum(-1), 1, atol=1e-5)

    assert isinstance(run.model, nnx.Module)
    row = run._task.processor.encode(texts[:1])[0]
    logits = run.model(row["tokens"][None], row["length"][None])[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    labels = run._task.labels
    for label, probability in zip(labels, probabilities, strict=True):
        assert answers[0]["probabilities"][label] == pytest.approx(float(probability), abs=1e-4)


def test_evaluation_on_a_split_and_on_a_file(run, tmp_path):
    assert run.evaluate() == pytest.approx(run.metrics, rel=1e-5)
    written = (run.folder / "evaluation-test.json").read_text()
    new = write_csv(tmp_path / "new.csv", rows=30, seed=5)
    found = run.evaluate(file=new)
    with new.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [answer["label"] for answer in run.predict([row["review"] for row in rows])]
    right = [row["stars"] == label for row, label in zip(rows, labels, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert (run.folder / "evaluation-test.json").read_text() == written
    new.write_text(new.read_text(encoding="utf-8").replace(",good", ",great"), encoding="utf-8")
    with pytest.raises(launch.UserError, match="great"):
        run.evaluate(file=new)


def test_a_notebook_shows_results_and_curves(run, monkeypatch):
    monkeypatch.chdir(run.folder.parent)
    page = run._repr_html_()
    accuracy = run.metrics["accuracy"]
    for part in ("own_reviews, transformer", "<td>baseline nb_svm</td>", f"<td>{accuracy:.4f}</td>",
                 'src="data:image/svg+xml;base64,', 'href="tiny/report.html"'):  # fmt: skip
        assert part in page
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    assert len({len(re.findall("<t[dh]>", row)) for row in rows}) == 1


def test_the_bar_of_a_notebook_is_one_element(monkeypatch, capsys):
    shown = []
    handle = types.SimpleNamespace(update=shown.append)
    display = types.ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda content, display_id: shown.append(content) or handle
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with Progress(10_000, 0, "accuracy") as progress:
        progress.say("a note")
        for step in range(1, 10_001):
            progress.trained(step, 0.5)
        progress.validated(10_000, 0.75)
    assert len(shown) < 100
    assert 'value="0" max="10000"' in shown[0]
    assert "step 10000/10000" in shown[-1]
    assert "validation accuracy 0.7500" in shown[-1]
    assert capsys.readouterr() == ("", "a note\n")


# ---------------------------------------------------------------------- the page


@pytest.mark.slow
def test_examples_of_the_page_run(server, tmp_path):
    """Runs the code of docs/PYTHON.md in order, with a small data set and few steps."""
    page = (ROOT / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 7
    short = '"model.num_layers": 2, "training": {"steps": 4, "evaluate_every": 4, "log_every": 4}'
    assert '"model.num_layers": 2' in blocks[0]
    code = "\n".join(blocks).replace('"model.num_layers": 2', short, 1)
    paths = {"ATTENTION_CACHE_DIR": str(tmp_path), "ATTENTION_DATA_DIR": str(tmp_path / "data")}
    prepare_small("sst2", Paths(tmp_path / "data", tmp_path))
    (tmp_path / "new.csv").write_text("text,id\na film,1\na plot,2\n")
    (tmp_path / "labeled.csv").write_text("text,label\na film,positive\na plot,negative\n")
    program = tmp_path / "program.py"
    check = "assert len(rows) == 6 and answers[0]['label'] in ('positive', 'negative')\n"
    check += "assert len(best) == len(compared.tables) == 2 and not compared.left_out\n"
    check += "assert config.training.steps == 40 and run.config.training.steps == 4\n"
    check += "assert [row['id'] for row in table] == ['1', '2'] and len(found.examples) == 2\n"
    program.write_text(f"import os\nos.environ |= {paths}\n{code}\n{check}", encoding="utf-8")
    done = server.run([str(program)], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'model.num_layers'?" in done.stdout


def test_the_page_is_in_the_site_and_the_readme():
    assert "PYTHON.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "](docs/PYTHON.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
