"""Values of config keys as typed: the same at a flag of train and in --set."""

import sys

import pytest
from absl import flags

from launch import cli, command_line
from launch.engine import config as configs
from launch.engine import values
from launch.runs.ablation import load_ablation, with_overrides
from launch.runs.sweeps import resolve_sweep
from tasks.common.errors import UserError

BASE = "configs/text_classification.py:movie_reviews,attention_pooling"


@pytest.fixture
def base():
    return configs.to_dict(configs.load_file(BASE))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.text.character_ngrams", "(3,4)", (3, 4)),
        ("data.text.character_ngrams", "[3, 4]", (3, 4)),
        ("data.text.character_ngrams", "3,4", (3, 4)),
        ("data.text.character_ngrams", "()", ()),
        ("data.text.stem", "None", None),
        ("data.text.stem", "null", None),
        ("data.text.stem", "none", "none"),
        ("data.test_file", "None", None),
        ("data.test_file", "./None", "./None"),
        ("data.name", "None", "None"),
        ("optimizer.learning_rate", "1e-3", 0.001),
        ("optimizer.learning_rate", "2E3", 2000.0),
        ("optimizer.learning_rate", ".5", 0.5),
        ("optimizer.learning_rate", "1", 1.0),
        ("training.steps", "0x10", 16),
        ("training.refit", "True", True),
        ("training.refit", "0", False),
        ("model.pooling", "max", "max"),
    ],
)
def test_text_becomes_a_value_of_the_field(base, key, text, value):
    found = values.parse(base, key, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("training.steps", "1e3", ["config.training.steps: got '1e3', expected int"]),
        ("training.steps", "None", ["expected int"]),
        ("training.refit", "maybe", ["config.training.refit", "bool"]),
        ("data.text.character_ngrams", "(3,4", ["tuple of int, such as (3, 4)"]),
        ("data.text.charcter_ngrams", "3", ["did you mean 'data.text.character_ngrams'?"]),
        ("data.text", "3", ["config.data.text: is a group of keys", "data.text.tokenizer"]),
        ("data.name.x", "3", ["config.data.name.x: no such key"]),
    ],
)
def test_other_texts_are_refused(base, key, text, words):
    with pytest.raises(UserError) as refused:
        values.parse(base, key, text)
    for word in words:
        assert word in str(refused.value)


def test_tuples_of_words_and_of_fractions():
    config = configs.to_dict(configs.load_file("configs/forecasting.py:etth1,lag"))
    assert values.parse(config, "data.targets", "OT") == ("OT",)
    assert values.parse(config, "data.targets", "7") == ("7",)
    assert values.parse(config, "data.targets", "('OT', 'HUFL')") == ("OT", "HUFL")
    assert values.parse(config, "data.noise_levels", "1e-1,2") == (0.1, 2)
    with pytest.raises(UserError, match=r"such as \('one', 'two'\)"):
        values.parse(config, "data.targets", "(OT,HUFL)")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mean,max", ["mean", "max"]),
        ("(3,4),(2,3)", ["(3,4)", "(2,3)"]),
        ("[3,4],[2,3]", ["[3,4]", "[2,3]"]),
        ("None,english", ["None", "english"]),
        ("performer(features=64,kernel=relu),linear", ["performer(features=64,kernel=relu)",
                                                       "linear"]),
        ("('a,b', 'c'),d", ["('a,b', 'c')", "d"]),
        ("'a,b',it's,x", ["'a,b'", "it's", "x"]),
    ],
)  # fmt: skip
def test_values_are_split_outside_brackets_and_quotes(text, parts):
    assert values.split(text) == parts


def test_a_sweep_takes_tuples_none_and_powers_of_ten():
    base = configs.load_file(BASE)
    found = resolve_sweep(base, ["data.text.character_ngrams=(3,4),[2,3]"])
    assert [c.data.text.character_ngrams for c in found.values()] == [(3, 4), (2, 3)]
    found = resolve_sweep(base, ["data.text.stem=None,english"])
    assert [c.data.text.stem for c in found.values()] == [None, "english"]
    found = resolve_sweep(base, ["optimizer.learning_rate=1e-3,3e-4"])
    assert [c.optimizer.learning_rate for c in found.values()] == [0.001, 0.0003]
    with pytest.raises(UserError, match="pooling=max is given twice"):
        resolve_sweep(base, ["model.pooling=max,max"])


def test_names_of_long_sweeps_fit_into_a_file_name():
    base = configs.load_file(BASE)
    settings = [f"data.text_column={'x' * length}" for length in (300, 301)]
    names = {config.name for setting in settings
             for config in resolve_sweep(base, [setting]).values()}  # fmt: skip
    assert len(names) == 2
    assert all(len(name) <= 160 for name in names)


def test_an_ablation_takes_them_too():
    ablation = load_ablation("configs/ablations/text_pooling.py")
    settings = ["data.text.character_ngrams=(3,4)", "config.data.test_file=None"]
    found = with_overrides(ablation, settings).overrides
    assert found["data.text.character_ngrams"] == (3, 4)
    assert found["data.test_file"] is None


@pytest.fixture
def parsed(monkeypatch):
    """Returns a function that parses the arguments of `launch.train`."""

    def parse(*words):
        known = flags.FlagValues()
        flags.DEFINE_string("config", None, "", flag_values=known)
        flags.DEFINE_bool("baselines", True, "", flag_values=known)
        monkeypatch.setattr(command_line, "FLAGS", known)
        monkeypatch.setattr(command_line, "overrides", command_line.Overrides(allowed=True))
        monkeypatch.setattr(sys, "argv", ["train", *words])
        command_line.parse(["train", *words])
        return cli.experiment()

    return parse


def test_overrides_in_every_spelling(parsed):
    config = parsed(
        f"--config={BASE}", "--config.data.text.character_ngrams=3",
        "--config.data.text.character_ngrams", "4", "--config.training.refit", "--nobaselines",
        "-config.training.steps=7", "--config.optimizer.learning_rate=1e-2",
        "--config.data.test_file=None", "--config.data.train_file=a=b.csv",
    )  # fmt: skip
    assert config.data.text.character_ngrams == (3, 4)
    assert config.training.refit is True
    assert config.training.steps == 7
    assert config.optimizer.learning_rate == 0.01
    assert config.data.test_file is None
    assert config.data.train_file == "a=b.csv"
    assert not parsed(f"--config={BASE}", "--noconfig.training.refit").training.refit
    # The last value is used.
    config = parsed(f"--config={BASE}", "--config.seed=3", "--config.seed=4")
    assert config.seed == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config="], "--config is empty"),
        (["--config.seed=3"], "--config is missing"),
        ([f"--config={BASE}", "--config.seed"], "--config.seed: has no value"),
        ([f"--config={BASE}", "--noconfig.seed"], "--noconfig.seed: is not a bool"),
        ([f"--config={BASE}", "--baseline"], "launch.train has no such flag (did you mean "
                                             "'baselines'?)"),
        ([f"--config={BASE}", "--seeds=3"], "it belongs to launch.ablate, launch.sweep"),
    ],
)  # fmt: skip
def test_words_that_are_refused(parsed, words, expected):
    with pytest.raises(UserError) as refused:
        parsed(*words)
    assert expected in str(refused.value)
