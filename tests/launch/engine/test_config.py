"""Config files and flags to dataclasses, and the errors on the way."""

import dataclasses
import json
import math

import pytest

from launch import cli, command_line
from launch.engine import config as configs
from launch.engine import keys
from launch.engine.config import TrainingConfig, load_file, override, resolve, to_dict
from launch.runs import ablation as ablations
from launch.runs import sweeps
from launch.runs.directory import saved_config
from tasks.common.errors import UserError

CONFIG = "configs/text_classification.py:sst2"


@pytest.fixture(scope="module")
def sst2():
    return load_file(CONFIG)


def test_dict_round_trip_gives_the_same_experiment(sst2):
    assert resolve(to_dict(sst2)) == sst2


def test_override_changes_one_field_only(sst2):
    changed = override(sst2, {"model.num_layers": 3})
    assert changed.model.num_layers == 3
    assert configs.differences(sst2, changed) == ["model.num_layers"]
    assert configs.differences(sst2, sst2) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_layer": 3}, r"config\.model\.num_layer: no such key.*'model\.num_layers'"),
        ({"model.num_layers": "two"}, r"config\.model\.num_layers: expected int, got 'two'"),
        ({"model.num_layers": True}, r"config\.model\.num_layers: expected int, got True"),
        ({"model.num_layers": -1}, r"config\.model\.num_layers.*-1"),
        ({"model.num_heads": 7}, r"config\.model\.num_heads.*7"),
        ({"model.name": "transformr"}, r"config\.model\.name.*did you mean 'transformer'"),
        ({"optimizer.name": "adamm"}, r"config\.optimizer\.name: got 'adamm', expected one of"),
        ({"optimizer.learning_rate": 0.0}, r"config\.optimizer\.learning_rate: got 0.0"),
        (
            {"optimizer.learning_rate": math.inf},
            r"learning_rate: got inf, expected a finite",
        ),
        ({"optimizer.clip_norm": math.nan}, r"clip_norm: got nan, expected a finite number"),
        ({"model.prior_scale": -math.inf}, r"model\.prior_scale: got -inf, expected a finite"),
        (
            {"model.dropout_rate": 10**400},
            r"dropout_rate: got 1000000000",
        ),
        ({"optimizer.weight_decay_on": "("}, r"config\.optimizer\.weight_decay_on"),
        ({"training.log_every": 7}, r"config\.training\.log_every: got 7, expected a divisor"),
        ({"training.steps": 0}, r"config\.training\.steps: got 0, expected at least 1"),
        (
            {"mesh.cpu_devices": 1025},
            r"config\.mesh\.cpu_devices: got 1025, expected a",
        ),
        ({"mesh.tensor": 0}, r"config\.mesh\.tensor: got 0, expected at least 1"),
        ({"task": "text_clasification"}, r"did you mean 'text_classification'"),
        ({"seed": -1}, r"config\.seed: got -1, expected in"),
        ({"name": "a/b"}, r"config\.name: got 'a/b', expected letters"),
        ({"name": "a" * 231}, r"config\.name: got 'a+', expected at most 230 letters"),
        ({"data.text.tokenizer": "words"}, r"config\.data\.text\.tokenizer: got 'words', expected"),
    ],
)
def test_mistakes_are_named(sst2, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(sst2, changes)
    assert "\n" not in str(caught.value)


def test_mistakes_in_files_are_named_with_their_line(tmp_path, monkeypatch):
    config, other = tmp_path / "mine.py", tmp_path / "imported_by_mine.py"
    monkeypatch.syspath_prepend(tmp_path)
    for written, broken, place in (
        ("x = 1\ny = (\n", "", r"mine\.py, line 2: SyntaxError"),
        ("x = 1\nprint(missing)\n", "", r"mine\.py, line 2: NameError"),
        ("x = 1\nraise SystemExit(0)\n", "", r"mine\.py, line 2: SystemExit: 0"),
        ("import sys\ndef get_config():\n    sys.exit()\n", "", r"mine\.py, line 3: SystemExit"),
        ("import imported_by_mine\n", "a\nb c\n", r"imported_by_mine\.py, line 2: SyntaxError"),
    ):
        config.write_text(written, encoding="utf-8")
        other.write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match=place) as caught:
            load_file(str(config))
        assert "\n" not in str(caught.value)


def test_fields_that_were_added_later_leave_older_experiments_the_same():
    config = load_file("configs/recommendation.py:movielens_100k,hybrid")
    values = to_dict(config)
    later = {"user_column", "item_column", "time_column", "rating_column", "min_rating"}
    for field in (*later, "date_order"):
        del values["data"][field]
    assert resolve(values) == config
    # Hashes from before these fields existed.
    assert configs.identity(config) == "8589843e3c8abb43"
    forecasting = load_file("configs/forecasting.py")
    assert configs.identity(forecasting) == "45883166053e31b7"
    # Also of a nested config.
    speech = load_file("configs/speech_recognition.py:spoken_digits,conformer,additive")
    assert configs.identity(speech) == "7c8dd0d334e701e0"
    changed = override(speech, {"model.transcriber.consistency": 0.4})
    assert configs.identity(changed) != configs.identity(speech)
    own = override(config, {"data.path": "mine.csv", "data.min_rating": 4.0})
    assert configs.identity(own) != configs.identity(override(own, {"data.min_rating": None}))


def test_identity_leaves_out_what_is_speed_and_memory_alone(sst2):
    reseeded = override(sst2, {"seed": 1})
    for change in ({"mesh.cpu_devices": 8}, {"model.rematerialize": True}):
        assert configs.identity(override(sst2, change)) == configs.identity(sst2)
    assert configs.identity(reseeded) != configs.identity(sst2)


def test_every_field_of_the_engine_configs_has_a_default():
    assert all(
        field.default is not dataclasses.MISSING for field in dataclasses.fields(TrainingConfig)
    )


def test_missing_file_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'configs/text_classification\.py'"):
        load_file("configs/text_clasification.py")


def test_what_is_no_file_of_python_is_named(tmp_path):
    other = tmp_path / "config.txt"
    other.write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.txt: expected a Python file"):
        load_file(str(other))
    with pytest.raises(UserError, match=r"--config=.*: is a directory, expected a Python"):
        load_file(str(tmp_path))


def test_config_of_every_model_resolves():
    task = configs.task_class("text_classification")
    for name in task.model_configs:
        assert load_file(f"configs/text_classification.py:movie_reviews,{name}").model.name == name


# ---------------------------------------------------------------------- renamed keys


@dataclasses.dataclass(frozen=True)
class _OldGroup:
    candidates: int = 5
    other: int = 1


@dataclasses.dataclass(frozen=True)
class _Old:
    name: str = "tiny"
    width: int = 3
    group: _OldGroup = dataclasses.field(default_factory=_OldGroup)


@dataclasses.dataclass(frozen=True)
class _Group:
    pre_nms: int = dataclasses.field(default=5, metadata={"formerly": "candidates"})
    other: int = 1


@dataclasses.dataclass(frozen=True)
class _Renamed:
    name: str = "tiny"
    kernel_size: int = dataclasses.field(default=3, metadata={"formerly": "width"})
    group: _Group | None = dataclasses.field(default_factory=_Group)


@pytest.fixture
def renamed(sst2, monkeypatch):
    """Returns an experiment before and after two of its keys were renamed."""
    keys._notify.cache_clear()
    old = dataclasses.replace(sst2, model=_Old(width=7, group=_OldGroup(candidates=9)))
    task = configs.task_class("text_classification")
    monkeypatch.setattr(task, "model_configs", {"tiny": _Renamed})
    model = _Renamed(kernel_size=7, group=_Group(pre_nms=9))
    return old, dataclasses.replace(sst2, model=model)


WIDTH = "config.model.width is now config.model.kernel_size"
CANDIDATES = "config.model.group.candidates is now config.model.group.pre_nms"


def test_former_keys_of_a_saved_run_are_read_and_keep_its_hash(renamed, tmp_path, capsys):
    old, new = renamed
    (tmp_path / "config.json").write_text(json.dumps(to_dict(old)), encoding="utf-8")
    assert saved_config(tmp_path) == saved_config(tmp_path) == new
    # Each notice is printed once.
    assert capsys.readouterr().err.splitlines() == [WIDTH, CANDIDATES]
    assert configs.identity(old) == configs.identity(new)
    other = override(new, {"model.kernel_size": 8})
    assert configs.identity(other) != configs.identity(new)
    assert configs.differences(new, other) == ["model.kernel_size"]


def test_former_keys_of_flags_and_config_files(renamed, tmp_path, capsys, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from launch.engine.config import experiment\n"
        "from tests.launch.engine.test_config import _Renamed\n"
        "def get_config():\n"
        "    config = experiment(task='text_classification', name='x', data=load_data(),\n"
        "                        model=_Renamed())\n"
        "    config.model.width = 4\n"
        "    return config\n"
        "def load_data():\n"
        "    from tasks.text_classification.data import DataConfig\n"
        "    return DataConfig(name='sst2')\n",
        encoding="utf-8",
    )
    assert load_file(str(file)).model.kernel_size == 4
    assert capsys.readouterr().err.splitlines() == [WIDTH]
    monkeypatch.setattr(command_line, "overrides", command_line.Overrides(allowed=True))
    words = ["x", f"--config={file}", "--config.model.group.candidates=6"]
    command_line.without_overrides(words)
    assert cli.experiment().model == _Renamed("tiny", 4, _Group(6))
    # A command line overrides the file, by either name.
    command_line.without_overrides([*words[:2], "--config.model.width=5"])
    assert cli.experiment().model.kernel_size == 5
    command_line.without_overrides([*words[:2], "--config.model.kernel_size=6"])
    assert cli.experiment().model.kernel_size == 6
    assert capsys.readouterr().err.splitlines() == [CANDIDATES]


def test_former_keys_in_sweeps_and_ablations(renamed, monkeypatch, capsys):
    _, new = renamed
    found = sweeps.resolve_sweep(new, ["model.width=1,2"])
    assert [one.model.kernel_size for one in found.values()] == [1, 2]
    monkeypatch.setattr(configs, "load_file", lambda _: new)
    delta = ablations.Delta(["model.group.candidates"], {"model.group.candidates": 4})
    ablation = ablations.Ablation("base", {"fewer": delta})
    assert ablations.resolve_ablation(ablation)["fewer"].model.group.pre_nms == 4
    with pytest.raises(UserError, match=r"'model\.group\.pre_nms'"):
        override(new, {"model.group.pre_nm": 4})
    assert capsys.readouterr().err.splitlines() == [WIDTH, CANDIDATES]
