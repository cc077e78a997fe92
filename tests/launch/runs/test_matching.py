"""Parameter counts: one dimension is adjusted until they are equal within 2 %."""

import jax
import pytest

from launch.engine import config as configs
from launch.engine import state as states
from launch.engine.optimizers import make_optimizer
from launch.runs import matching
from launch.runs.directory import prepared_task
from launch.runs.sweeps import resolve_sweep
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError


@pytest.fixture(scope="module")
def paths(cache):
    return Paths(cache / "data", cache)


@pytest.fixture(scope="module")
def base(csv_file):
    config = configs.load_file("configs/text_classification.py:movie_reviews,transformer")
    return configs.override(
        config,
        {
            "data.train_file": str(csv_file),
            "data.text_column": "review",
            "data.label_column": "stars",
            "model.model_size": 16,
            "model.feedforward_size": 64,
            "model.num_heads": 4,
        },
    )


def trained_parameters(config, paths):
    """Counts the parameters of the train state, as a run does."""
    task = prepared_task(config, paths)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = jax.eval_shape(lambda: states.initial_state(task, optimizer, config.seed, False))
    return states.parameter_count(state)


def test_the_feedforward_size_is_adjusted(base, paths):
    experiments = resolve_sweep(base, ["model.num_layers=1,2"])
    lines = []
    one, two = matching.match_parameters(experiments, paths, say=lines.append).values()
    assert one.experiment is experiments["num_layers=1"]
    assert two.key == "model.feedforward_size"
    assert two.value < 64
    assert two.parameters == pytest.approx(one.parameters, rel=matching.TOLERANCE)
    assert configs.differences(two.experiment, experiments["num_layers=2"]) == [
        "model.feedforward_size",
        "name",
    ]
    assert two.experiment.name == "num_layers-2_matched"
    # The counts are those of training.
    assert one.parameters == trained_parameters(one.experiment, paths)
    assert two.parameters == trained_parameters(two.experiment, paths)
    assert lines[1].startswith(f"num_layers=2: model.feedforward_size={two.value} gives")
    (note,) = matching.notes({"num_layers=1": one, "num_layers=2": two})
    assert f"model.feedforward_size={two.value} ({two.parameters:,} parameters" in note


def test_a_size_that_the_heads_must_divide(base, paths):
    wide = configs.override(base, {"model.model_size": 256})
    experiments = resolve_sweep(wide, ["model.num_layers=2,4"])
    found = matching.match_parameters(experiments, paths, ["model.model_size"], lambda line: None)
    first, other = found.values()
    assert other.key == "model.model_size"
    assert other.value % 4 == 0
    assert other.parameters == pytest.approx(first.parameters, rel=matching.TOLERANCE)


def test_what_cannot_be_matched_is_refused(base, paths):
    def match(setting, *keys):
        matching.match_parameters(resolve_sweep(base, [setting]), paths, keys, lambda line: None)

    with pytest.raises(UserError, match=r"--match_key=model.widht: no compared model has this key"):
        match("model.num_layers=1,2", "model.widht")
    with pytest.raises(UserError, match=r"from the base in model.feedforward_size, which leaves"):
        match("model.feedforward_size=16,64", "model.feedforward_size")
    with pytest.raises(
        UserError, match=r"no value of model.feedforward_size gives the .* within 2%"
    ):
        # The embeddings alone are too large.
        match("model.model_size=16,64", "model.feedforward_size")


def test_another_dimension_is_adjusted_if_the_first_cannot(base, paths):
    wide = configs.override(base, {"model.model_size": 256, "model.feedforward_size": 4})
    experiments = resolve_sweep(wide, ["model.num_layers=1,2"])
    _, two = matching.match_parameters(experiments, paths, say=lambda line: None).values()
    assert two.key == "model.model_size"
    assert two.experiment.model.feedforward_size == 4


class Stub(matching._Dimension):
    """Counts by a formula instead of a model; sizes that 8 does not divide are invalid."""

    def __init__(self, formula, start):
        self._own, self.formula, self.asked = start, formula, 0

    def count(self, size):
        self.asked += 1
        return self.formula(size) if size % 8 == 0 else None


@pytest.mark.parametrize("start", [8, 64, 4096])
@pytest.mark.parametrize("target", [8 * 3, 8 * 100, 8 * 5000])
def test_the_search_finds_the_nearest_valid_size(start, target):
    dimension = Stub(lambda size: 12 * size * size + 7 * size + 100_000, start)
    value, count = matching._search(dimension, dimension.formula(target) + 3)
    assert value % 8 == 0
    assert abs(count / dimension.formula(target) - 1) <= matching.CLOSE
    assert dimension.asked < 400


def test_sizes_of_a_tuple_are_changed_in_proportion():
    dimension = Stub(sum, (16, 32, 64))
    assert dimension.start == 64
    assert dimension.value(96) == (24, 48, 96)
