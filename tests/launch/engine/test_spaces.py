"""Values of keys to compare: lists, log(...) and linear(...), and their messages."""

import numpy as np
import pytest

from launch.engine import config as configs
from launch.engine import spaces
from launch.engine.spaces import Range
from launch.runs.sweeps import resolve_sweep
from tasks.common.errors import UserError

BASE = "configs/text_classification.py:movie_reviews,transformer"


@pytest.fixture(scope="module")
def base():
    return configs.load_file(BASE)


def parsed(base, setting):
    (space,) = spaces.parse_spaces(configs.to_dict(base), [setting])
    return space


@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        ("optimizer.learning_rate=log(1e-5,1e-2,4)", ["1e-05", "0.0001", "0.001", "0.01"]),
        ("optimizer.learning_rate=log(0.0003, 0.003, 3)", ["0.0003", "0.0009487", "0.003"]),
        ("model.dropout_rate=linear(0,0.5,3)", ["0", "0.25", "0.5"]),
        ("model.dropout_rate=linear(0.1,0.10001,3)", ["0.1", "0.100005", "0.10001"]),
        ("model.feedforward_size=log(16,256,5)", ["16", "32", "64", "128", "256"]),
        ("model.num_layers=1,linear(2,8,4)", ["1", "2", "4", "6", "8"]),
        ("model.mixer=dot_product,linear", ["dot_product", "linear"]),
        ("model.mixer=linear(normalize=False)", ["linear(normalize=False)"]),
    ],
)
def test_values_of_a_grid(base, setting, texts):
    space = parsed(base, setting)
    assert [value.text for value in space.grid()] == texts
    # The name of an experiment has the value that is trained.
    for value in space.grid():
        assert value.text == value.value or float(value.text) == value.value


def test_logarithmic_values_have_equal_ratios(base):
    found = [
        value.value for value in parsed(base, "optimizer.learning_rate=log(1e-5,1e-2,7)").values
    ]
    assert len(found) == 7
    assert (found[0], found[-1]) == (1e-5, 1e-2)
    np.testing.assert_allclose(np.divide(found[1:], found[:-1]), 10**0.5, rtol=1e-3)


def test_a_range_is_for_a_search(base):
    space = parsed(base, "optimizer.learning_rate=log(1e-5,1e-2)")
    assert space.range == Range(1e-5, 1e-2, log=True, integer=False)
    assert parsed(base, "model.num_layers=linear(1,4)").range == Range(1, 4, False, True)
    with pytest.raises(UserError, match=r"learning_rate=log\(1e-5,1e-2\): has no number of values"):
        space.grid()
    with pytest.raises(
        UserError, match=r"write log\(1e-5,1e-2,7\) for .*, or search .* --search=optuna"
    ):
        resolve_sweep(base, ["optimizer.learning_rate=log(1e-5,1e-2)"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rate=log(1)", r"log\(1\): expected log\(FIRST,LAST,COUNT\), such"),
        ("optimizer.learning_rate=log(0,1,3)", r"log needs numbers above 0; write linear\(0,1,3\)"),
        ("optimizer.learning_rate=log(1,1e-3,3)", "expected the smaller number first"),
        ("optimizer.learning_rate=log(a,b,3)", "expected numbers, as in"),
        ("optimizer.learning_rate=log(1e-3,1e-2,2.5)", "expected numbers, as in"),
        ("optimizer.learning_rate=log(1e-3,nan,3)", "expected finite numbers"),
        ("optimizer.learning_rate=log(1e-3,1e-2,1)", "got 1 values, expected at least 2"),
        ("optimizer.learning_rate=uniform(0,1)", r"expected float; write log\(1e-5,1e-2,5\), or a"),
        (
            "optimizer.learning_rate=1e-3,log(1e-5,1e-2)",
            r"without a number of values; write log\(1e-5,1e-2,7\)",
        ),
        ("optimizer.learning_rate=1e-5,log(1e-5,1e-2,4)", "learning_rate=1e-05 is given twice"),
        ("model.num_layers=linear(1,4.5,3)", "expected integers, as in"),
        ("model.num_layers=linear(1,3,5)", "gives only 3 different integers; write a smaller"),
        ("model.num_layers=log(16,256,x)", r"such as log\(16,256,5\)"),
    ],
)  # fmt: skip
def test_mistakes_name_the_flag_and_the_remedy(base, setting, message):
    with pytest.raises(UserError, match=message) as refused:
        parsed(base, setting)
    assert str(refused.value).startswith(("--set", "config."))
