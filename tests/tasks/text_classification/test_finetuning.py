"""Fine-tuning: a classifier takes the embeddings, the encoder and the tokenizer of another run."""

import dataclasses

import jax
import numpy as np
import pytest

from launch.engine.config import Experiment, TrainingConfig, load_file, override
from launch.engine.steps import make_steps
from launch.runs import directory
from launch.runs import run as engine
from tasks.common.backbones.stacking import separated
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.language_modeling.data import DataConfig as CorpusConfig
from tasks.language_modeling.model import LanguageModelConfig
from tasks.text_classification.data import DataConfig
from tasks.text_classification.model import TransformerConfig

TEXT = TextConfig(tokenizer="wordpiece", vocabulary_size=40, min_count=1)
SHAPE = {
    "model_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "feedforward_size": 8,
    "positions": "learned",
}
TRAINING = TrainingConfig(steps=2, batch_size=4, evaluate_every=2, log_every=2)
# Steps and intervals of fine-tuning have nothing to do with those of pre-training.
TUNING = TrainingConfig(steps=3, batch_size=4, evaluate_every=1, log_every=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns a folder with texts, and in `masked` the run of a masked model of them."""
    folder = tmp_path_factory.mktemp("start")
    rows = [f"a {word} film {n}" for n in range(30) for word in ("good", "bad")]
    (folder / "texts.txt").write_text("\n".join(rows), encoding="utf-8")
    lines = ["text,label", *(f"{row},{row.split()[1]}" for row in rows)]
    (folder / "texts.csv").write_text("\n".join(lines), encoding="utf-8")
    config = Experiment(
        task="language_modeling",
        name="masked",
        data=CorpusConfig(train_file=str(folder / "texts.txt"), lines=True, length=12, text=TEXT),
        model=LanguageModelConfig(**SHAPE, max_length=12, objective="masked", segments=2),
        training=TRAINING,
    )
    engine.run(config, folder / "masked", paths(folder), "test", with_baselines=False)
    return folder


def paths(folder):
    return Paths(folder / "data", folder / "cache")


def classifier(folder, **model):
    return Experiment(
        task="text_classification",
        name="pretrained",
        data=DataConfig(
            train_file=str(folder / "texts.csv"), text=dataclasses.replace(TEXT, max_length=7)
        ),
        model=TransformerConfig(
            **{**SHAPE, "max_length": 8, "init_from": str(folder / "masked"), **model}
        ),
        training=TUNING,
    )


def learned(folder):
    """Parameters and task of the masked model, read as prediction reads them."""
    config = directory.saved_config(folder / "masked")
    task = directory.restored_task(config, folder / "masked")
    return task, directory.load_variables(task, config, folder / "masked")[1]["params"]


def equal(mine, theirs):
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)


@pytest.mark.parametrize(("pooling", "skipped"), [("mean", 1), ("cls", 0), ("bert", 0)])
@pytest.mark.slow
def test_all_weights_are_those_that_were_learned(place, pooling, skipped):
    config = classifier(place, pooling=pooling, max_length=8 + (pooling == "bert"))
    task = directory.prepared_task(config, paths(place))
    params = make_steps(task, config).init()["params"]
    other, theirs = learned(place)
    assert task.processor.tokenizer.config == dataclasses.replace(
        other.processor.tokenizer.config, max_length=7
    )
    assert (
        task.processor.tokenizer.encode("good film").tolist()
        == other.processor.tokenizer.encode("good film").tolist()
    )
    equal(params["encoder"]["layers"], theirs["encoder"]["layers"])
    equal(params["encoder"]["final_norm"], theirs["encoder"]["final_norm"])
    rows = np.asarray(theirs["encoder"]["positions"]["embedding"])
    # The texts began with the classification token there.
    end = skipped + config.model.max_length
    equal(params["encoder"]["positions"]["embedding"], rows[skipped:end])
    segment = np.asarray(theirs["segment_embedding"]["embedding"])[0]
    table = np.asarray(theirs["embedding"]["embedding"])
    assert len(table) == other.processor.tokenizer.size + 2
    # [MASK] and [SEP] come last.
    read = table if pooling == "bert" else table[:-2]
    equal(params["tokens"]["embedding"], read + segment)


@pytest.mark.slow
def test_it_trains_and_then_needs_the_other_run_no_more(place, tmp_path):
    config, folder = classifier(place), place / "tuned"
    record = engine.run(config, folder, paths(place), "test", with_baselines=False)
    assert 0 <= record["metrics"]["accuracy"] <= 1
    # There is nothing to start from in a run of a classifier.
    other = classifier(place, init_from=str(folder))
    with pytest.raises(UserError, match="is a run of text_classification, expected a run of lang"):
        directory.prepared_task(other, paths(place))
    (place / "masked").rename(tmp_path / "elsewhere")
    try:
        directory.check_assets(directory.prepared_task(config, paths(place), folder), folder)
        task = directory.restored_task(config, folder)
        answers = directory.load_predictor(task, config, folder)(["a good film", ""])
    finally:
        (tmp_path / "elsewhere").rename(place / "masked")
    assert len(answers) == 2
    assert set(answers[0]["probabilities"]) == {"good", "bad"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_size": 16}, "config.model.model_size is 16, expected 8 as in the run"),
        ({"num_layers": 3}, "config.model.num_layers is 3, expected 2 as in the run"),
        ({"max_length": 12}, "config.model.max_length is 12, expected at most 11"),
        (
            {"norm": "post", "activation": "relu"},
            "config.model.norm is 'post', expected 'pre' as in the run; config.model.activation is "
            "'relu'",
        ),
        ({"positions": "sinusoidal"}, "config.model.positions is 'sinusoidal', expected 'learned'"),
    ],
)
def test_sizes_that_differ_are_named(place, model, message):
    with pytest.raises(UserError, match=message) as caught:
        directory.prepared_task(classifier(place, **model), paths(place))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(
        f"config.model.init_from={place / 'masked'}: the run does not fit"
    )


def test_another_tokenizer_is_named(place):
    config = classifier(place)
    text = dataclasses.replace(config.data.text, tokenizer="word", vocabulary_size=99)
    data = dataclasses.replace(config.data, text=text)
    with pytest.raises(
        UserError, match=r"text\.tokenizer is 'word', expected 'wordpiece' as in the run; config"
    ):
        directory.prepared_task(dataclasses.replace(config, data=data), paths(place))


def test_a_run_that_is_not_there_is_named(place, tmp_path):
    missing = classifier(place, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere: contains no run \(no config.json\)") as caught:
        directory.prepared_task(missing, paths(place))
    assert "--workdir" not in str(caught.value)


def test_a_prior_is_refused():
    with pytest.raises(ValueError, match="prior: got 'naive_bayes', expected 'none', because"):
        TransformerConfig(**SHAPE, prior="naive_bayes", init_from="runs/x")


@pytest.mark.parametrize("data", ["movie_reviews", "sst2"])
def test_ready_configs_fit_each_other(data):
    """The classifier's shape and tokenizer are those of the language model of the same data."""
    masked = load_file(f"configs/language_modeling.py:{data}")
    tuned = load_file(f"configs/text_classification.py:{data},pretrained")
    assert tuned.model.init_from == f"runs/{data}_masked"
    assert tuned.data.text == dataclasses.replace(masked.data.text, max_length=64)
    for name in ("model_size", "num_layers", "num_heads", "feedforward_size", "positions", "norm"):
        assert getattr(tuned.model, name) == getattr(masked.model, name)
    assert tuned.model.max_length + 1 <= masked.model.max_length
    scratch = override(tuned, {"model.init_from": ""})
    assert scratch.model == dataclasses.replace(tuned.model, init_from="")


def test_a_config_takes_the_sizes_of_any_run(place):
    tuned = load_file(f"configs/text_classification.py:sst2,from:{place / 'masked'}")
    assert tuned.model.init_from == str(place / "masked")
    assert {name: getattr(tuned.model, name) for name in SHAPE} == SHAPE
    assert tuned.model.max_length == 11
    assert tuned.data.text == dataclasses.replace(TEXT, max_length=11)
    with pytest.raises(UserError, match=r"^config: from:.*nowhere: contains no run"):
        load_file(f"configs/text_classification.py:sst2,from:{place / 'nowhere'}")


@pytest.mark.slow
def test_stacked_layers_are_filled_from_separate_ones_and_the_reverse(place, tmp_path):
    config = classifier(place, pooling="cls", scan_layers=True, rematerialize=True)
    params = make_steps(directory.prepared_task(config, paths(place)), config).init()["params"]
    theirs = learned(place)[1]["encoder"]["layers"]
    equal(separated(params["encoder"]["layers"]), jax.device_get(theirs))
    # A run with stacked layers, from which a classifier without them starts.
    source = directory.saved_config(place / "masked")
    scanned = override(source, {"model.scan_layers": True})
    engine.run(scanned, tmp_path / "scanned", paths(place), "test", with_baselines=False)
    config = classifier(place, pooling="cls", init_from=str(tmp_path / "scanned"))
    params = make_steps(directory.prepared_task(config, paths(place)), config).init()["params"]
    task = directory.restored_task(scanned, tmp_path / "scanned")
    theirs = directory.load_variables(task, scanned, tmp_path / "scanned")[1]["params"]
    assert set(theirs["encoder"]["layers"]) == {"stacked"}
    equal(params["encoder"]["layers"], separated(theirs["encoder"]["layers"]))
