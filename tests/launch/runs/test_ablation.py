"""Ablations: two runs differ only in the declared keys."""

import signal
import sys
import time

import numpy as np
import pytest

from attention import registry
from launch.engine.config import load_file
from launch.engine.errors import keep_interrupts
from launch.reporting.comparison import Outcome, paired_difference
from launch.runs.ablation import (
    Ablation,
    Delta,
    load_ablation,
    load_ablations,
    resolve_ablation,
    with_own_data,
)
from launch.runs.sweeps import resolve_sweep
from tasks.common.errors import UserError

BASE = "configs/text_classification.py:movie_reviews,attention_pooling"


def ablation(delta: Delta) -> Ablation:
    return Ablation(base=BASE, deltas={"changed": delta})


def test_declared_change_is_accepted():
    found = resolve_ablation(
        ablation(Delta(declares=["model.pooling"], overrides={"model.pooling": "mean"}))
    )
    assert list(found) == ["base", "changed"]
    assert found["changed"].model.pooling == "mean"
    assert found["base"].model.pooling == "attention"
    assert found["changed"].name == "changed"


def test_own_data_are_given_to_all_experiments():
    changed = ablation(Delta(declares=["model.pooling"], overrides={"model.pooling": "mean"}))
    found = resolve_ablation(
        with_own_data(changed, "mine.csv", {"text": "review", "label": "stars"})
    )
    for experiment in found.values():
        assert experiment.data.name == "own_mine"
        assert experiment.data.train_file == "mine.csv"
        assert experiment.data.text_column == "review"
        assert experiment.data.label_column == "stars"
    assert found["changed"].model.pooling == "mean"
    with pytest.raises(UserError, match="--text: names a column of your data"):
        with_own_data(changed, None, {"text": "review"})
    assert with_own_data(changed, None, {}) == changed


def test_undeclared_change_is_refused_by_name():
    delta = Delta(
        declares=["model.pooling"],
        overrides={"model.pooling": "mean", "optimizer.learning_rate": 0.5},
    )
    with pytest.raises(UserError, match=r"'changed' also changes optimizer\.learning_rate"):
        resolve_ablation(ablation(delta))


def test_change_by_another_config_file_is_compared_whole():
    delta = Delta(
        declares=["model.pooling"],
        config="configs/text_classification.py:sst2,attention_pooling",
        overrides={"model.pooling": "mean"},
    )
    with pytest.raises(UserError, match=r"also changes data\.name"):
        resolve_ablation(ablation(delta))


def test_declared_field_that_does_not_change_is_refused():
    with pytest.raises(UserError, match=r"declares model\.dropout_rate but does not change it"):
        resolve_ablation(
            ablation(
                Delta(
                    declares=["model.pooling", "model.dropout_rate"],
                    overrides={"model.pooling": "mean"},
                )
            )
        )


def test_unknown_key_in_a_delta_is_refused():
    delta = Delta(declares=["model.poling"], overrides={"model.poling": "mean"})
    with pytest.raises(UserError, match=r"did you mean 'model\.pooling'"):
        resolve_ablation(ablation(delta))


def test_the_atlas_has_every_mechanism_of_its_kinds():
    found = {
        name: resolve_ablation(each)
        for name, each in load_ablations("configs/ablations/atlas.py").items()
    }
    for group, key, kind in (
        ("pools", "pooling", "pool"),
        ("alignments", "alignment", "alignment"),
        ("map_attentions", "attention", "map_attention"),
    ):
        specs = {getattr(config.model, key) for config in found[group].values()}
        compared = {spec.partition("(")[0] for spec in specs}
        assert compared - {"none"} == {*registry.names(kind)} - {"none"}
    assert {config.model.name for config in found["users"].values()} == {
        "sasrec", "bert4rec", "nais", "acf",
    }  # fmt: skip
    assert found["lags"]["lag_residual"].model.num_heads == 1
    with pytest.raises(UserError, match="has 6 ablations"):
        load_ablation("configs/ablations/atlas.py")


@pytest.mark.parametrize(
    "text",
    [
        "def get_ablations():\n    return {}\n",
        "def get_ablations():\n    return {'a': 3}\n",
        "def get_ablations():\n    return 3\n",
        "from launch.runs.ablation import Ablation\n"
        "def get_ablations():\n    return {'../a': Ablation('x', {})}\n",
        "x = 3\n",
    ],
)
def test_a_file_without_ablations_is_refused(tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match="no get_ablation function that returns an Ablation"):
        load_ablations(str(file))


def test_file_in_the_repository_resolves():
    found = resolve_ablation(load_ablation("configs/ablations/text_pooling.py"))
    assert {name: config.model.pooling for name, config in found.items()} == {
        "attention": "attention",
        "mean": "mean",
        "max": "max",
    }


def test_config_that_is_no_ablation_is_refused():
    with pytest.raises(
        UserError, match=r"is the config of one experiment, expected an ablation file"
    ):
        load_ablation("configs/text_classification.py")


def test_sweep_gives_every_combination_with_types():
    base = load_file(BASE)
    found = resolve_sweep(base, ["model.pooling=mean,max", "model.dropout_rate=0,0.5"])
    assert [(c.model.pooling, c.model.dropout_rate) for c in found.values()] == [
        ("mean", 0.0), ("mean", 0.5), ("max", 0.0), ("max", 0.5),
    ]  # fmt: skip
    assert len({config.name for config in found.values()}) == 4
    assert list(resolve_sweep(base, []).values()) == [base]


@pytest.mark.parametrize("setting", ["model.pooling", "model.pooling=", "=a"])
def test_sweep_setting_without_values_is_refused(setting):
    with pytest.raises(UserError):
        resolve_sweep(load_file(BASE), [setting])


def test_paired_difference_by_hand(tmp_path):
    """Two seeds, four examples: the difference of each example is averaged over seeds first."""
    rows = {"base": [[1, 0, 1, 0], [1, 0, 0, 0]], "other": [[1, 1, 1, 0], [1, 1, 1, 0]]}
    outcomes = {}
    for name, seeds in rows.items():
        folders = {}
        for seed, row in enumerate(seeds):
            folders[seed] = tmp_path / f"{name}{seed}"
            folders[seed].mkdir()
            np.savez(folders[seed] / "outputs-test.npz", correctness=np.array(row, np.float32))
        outcomes[name] = Outcome(None, {0: {}, 1: {}}, {}, folders)
    mean, half = paired_difference(outcomes["other"], outcomes["base"])
    # Differences by example: 0, 1, 0.5, 0.
    assert mean == pytest.approx(0.375)
    assert half == pytest.approx(1.96 * np.std([0, 1, 0.5, 0], ddof=1) / 2)


def outcome(folder, ids, correctness):
    folder.mkdir()
    np.savez(folder / "outputs-test.npz", correctness=np.array(correctness, np.float32),
             example_ids=np.array(ids, np.uint64))  # fmt: skip
    return Outcome(None, {0: {}}, {}, {0: folder})


def test_paired_difference_joins_examples_by_their_ids(tmp_path):
    base = outcome(tmp_path / "base", [5, 6, 7], [0, 1, 1])
    other = outcome(tmp_path / "other", [7, 5, 6], [0, 1, 1])
    mean, half = paired_difference(other, base)
    # Differences by example: 1, 0, -1; not 0, 0, 0.
    assert mean == pytest.approx(0.0)
    assert half == pytest.approx(1.96 / np.sqrt(3))


def test_paired_difference_of_other_examples_is_refused(tmp_path):
    base = outcome(tmp_path / "base", [5, 6, 7], [0, 1, 1])
    other = outcome(tmp_path / "other", [5, 6, 8], [0, 1, 1])
    with pytest.raises(UserError, match="the test examples differ from those of"):
        paired_difference(other, base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.pooling=max,mean,max"], r"--set: model\.pooling=max is given twice"),
        (["optimizer.learning_rate=1e-3,0.001"], r"learning_rate=0\.001 is given twice"),
        (["data.text.character_ngrams=(2,3),[2, 3]"], r"ngrams=\[2, 3\] is given twice"),
        (["model.pooling=max", "config.model.pooling=mean"], r"--set: model\.pooling is given"),
    ],
)
def test_values_and_keys_given_twice_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        resolve_sweep(load_file(BASE), settings)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("Ablation(base=None, deltas={})", "base: got None, expected str"),
        ("Ablation(base='x', deltas=[])", r"deltas: got \[\], expected mapping"),
        ("Ablation(base='x', deltas={'a': {'model.pooling': 'max'}})", "deltas: got 'a': {'model"),
        ("Ablation(base='x', deltas={3: Delta([])})", "deltas: got 3: Delta"),
        ("Ablation(base='x', deltas={'a': Delta('model.pooling')})", "declares: got 'model.poo"),
        ("Ablation(base='x', deltas={'a': Delta(['y'], None)})", "overrides: got None, expected m"),
        ("Ablation(base='x', deltas={'a': Delta(['y'], config=3)})", "config: got 3, expected str"),
        ("Ablation(base='x', deltas={}, seeds='3')", "seeds: got '3', expected int"),
        ("Ablation(base='x', deltas={}, seeds=0)", "seeds: got 0, expected at least 1"),
        ("Ablation()", "TypeError: .* missing 2 required positional arguments"),
        ("nobody", "NameError: name 'nobody' is not defined"),
    ],
)
def test_mistakes_in_files_are_named_with_their_line(returned, message, tmp_path):
    path = tmp_path / "mine.py"
    head = "from launch.runs.ablation import Ablation, Delta\ndef get_ablation():\n"
    path.write_text(f"{head}    return {returned}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"mine\.py, line 3: {message}"):
        load_ablation(str(path))


def test_an_interrupt_in_a_destructor_is_not_lost(monkeypatch):
    class Destroyed:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    errors = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    keep_interrupts()
    one = Destroyed()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        del one
        for _ in range(1000):
            time.sleep(0.01)
    assert errors == []

    class Broken:
        def __del__(self):
            raise ValueError("another error")

    one = Broken()
    del one
    assert [str(failure.exc_value) for failure in errors] == ["another error"]
