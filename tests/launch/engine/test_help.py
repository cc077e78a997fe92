"""Help pages of configs: every key with its value, allowed values and description."""

import dataclasses
import pathlib
import re
import typing

import pytest

from launch.engine import config as configs
from launch.engine import help as pages
from launch.engine import keys
from launch.runs.help import help_page
from tasks.common.configs import Names

FILES = sorted(str(path) for path in pathlib.Path("configs").glob("*.py"))


def config_classes():
    """Yields every dataclass of the experiments of all tasks."""
    waiting = [configs.Experiment]
    for task in map(configs.task_class, configs.task_names()):
        waiting += [task.data_config, *task.model_configs.values()]
    seen = set()
    while waiting:
        kind = waiting.pop()
        if kind not in seen:
            seen.add(kind)
            yield kind
            hints = typing.get_type_hints(kind).values()
            waiting += filter(None, map(keys.group_type, hints))


CLASSES = sorted(config_classes(), key=lambda kind: (kind.__module__, kind.__name__))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_field_has_a_description(kind):
    for field in dataclasses.fields(kind):
        if field.name == "name":
            continue  # the page describes names of models
        text = pages.description(kind, field.name)
        assert text, f"{field.name} is not in the section Attributes:"
        assert not text.startswith("see "), f"{field.name}: {text}"


@pytest.mark.parametrize("file", FILES)
def test_the_page_has_every_key_with_its_value(file):
    values = configs.load_values(file)
    page = help_page(file, values, values)
    for key, value in configs.flatten(values).items():
        assert f"\n  {key} = {value!r}\n" in page, key
    # Keys, groups and descriptions; values and command lines may be longer than a line.
    prose = [line for line in page.splitlines() if line.startswith(" " * 6)]
    assert max(map(len, prose)) <= 80
    for name in re.findall(r"[A-Z]{4,}", (pages.module_docstring(file).partition("\n\n")[2])):
        assert name in page


def page_of(specification, **changes):
    values = configs.load_values(specification)
    changed = configs.replaced(values, {key.replace("__", "."): v for key, v in changes.items()})
    return help_page(specification, values, changed)


def entry(page, key):
    """Returns the value line and the joined description of a key."""
    value, text = re.search(rf"^  {re.escape(key)} = (.*)\n((?: {{6}}.*\n)*)", page, re.M).groups()
    return value, " ".join(text.split())


def test_types_and_allowed_values():
    page = page_of("configs/text_classification.py:sst2,transformer")
    expected = {
        "model.num_layers": "Integer, at least 1. L, number of layers.",
        "training.refit": "True or False. Whether to train again",
        "optimizer.schedule": "One of 'constant', 'linear', 'cosine', 'inverse_sqrt'.",
        "optimizer.learning_rate": "A number above 0. Learning rate after",
        "model.dropout_rate": "A rate in [0, 1). Dropout rate after",
        "data.train_file": "Text or None.",
        "data.name": "One of movie_reviews, sst2, newsgroups20,",
        "data.text.character_ngrams": "Tuple of integers.",
        "model.mixer": "One of dot_product, sliding_window,",
        "model.pooling": "One of 'mean', 'max', 'attention',",
        "model.name": "One of transformer, attention_pooling, bigru.",
        "seed": "Integer, in [0, 2**31).",
    }  # fmt: skip
    for key, text in expected.items():
        assert entry(page, key)[1].startswith(text), key
    assert "with options if any" in entry(page, "model.mixer")[1]


def test_inherited_and_referred_descriptions():
    forecasting = page_of("configs/forecasting.py:itransformer")
    # ITransformerConfig has no attributes of its own; its base class refers to EncoderConfig.
    assert entry(forecasting, "model.num_heads")[1] == (
        "Integer, at least 1. N, number of attention heads; divides D."
    )
    detection = page_of("configs/detection.py")
    assert entry(detection, "data.augmentation.hue")[1].startswith("A number in [0, 0.5]. Maximum")
    rnn = page_of("configs/translation.py:rnn")
    assert "fraction of the probability" in entry(rnn, "model.label_smoothing")[1].lower()


def test_an_override_is_shown_beside_the_value_of_the_file():
    page = page_of("configs/text_classification.py:sst2", model__num_layers=3)
    assert entry(page, "model.num_layers")[0] == "3 (in the config file: 1)"
    assert entry(page, "model.num_heads")[0] == "4"


def test_an_ablation_file_lists_its_deltas_and_the_keys_of_the_base():
    page = help_page("configs/ablations/text_pooling.py", None, None)
    assert "\nmean: model.pooling='mean'\n" in page
    assert "--set=KEY=VALUE" in page
    assert entry(page, "model.pooling")[0] == "'attention'"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_names_on_the_page_are_those_that_the_config_accepts(kind):
    for field in dataclasses.fields(kind):
        for item in pages.metadata(kind, field.name):
            if isinstance(item, Names):
                assert field.default in item.known or field.default.partition("(")[0] in item.known
                with pytest.raises((ValueError, TypeError), match=r"nonsense"):
                    kind(**{field.name: "nonsense"})
