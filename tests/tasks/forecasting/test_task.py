"""The task: lag attention that learns a trend or cannot, exact figures, answers about any file."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from launch.engine import config as configs
from launch.engine.evaluation import evaluate, gather
from launch.engine.predictor import outputs_of_examples
from launch.engine.state import evaluation_variables
from launch.engine.steps import make_steps
from launch.reporting import baselines as engine_baselines
from launch.reporting import figures as drawing
from launch.runs.ablation import load_ablation, resolve_ablation
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches, train_iterator
from tasks.common.errors import UserError
from tasks.figures import Alignment, Curves, FigureGroup, Forecast, Shown, SplitResults
from tasks.forecasting import baselines
from tasks.forecasting import timestamps as clock
from tasks.forecasting.figures import attention_figures
from tasks.forecasting.task import TASK, Forecasting

L, F = 48, 24
MEDIAN = 4


def experiment(argument, **changes):
    small = {"data.lookback": L, "data.horizon": F, "mesh.data": 1, "training.batch_size": 32}
    return configs.override(
        configs.load_file(f"configs/forecasting.py:{argument}"), small | changes
    )


def trained(argument, count, **changes):
    """Returns a task, its compiled steps, and the variables after some of them."""
    config = experiment(argument, **changes)
    task = TASK.prepare(config.data, config.model, None)
    steps = make_steps(task, config)
    state = steps.init()
    batches = train_iterator(task.examples("train"), batch_size=32, seed=0)
    for _, batch in zip(range(count), batches, strict=False):
        state, _ = steps.train(state, steps.place(batch))
    return task, steps, evaluation_variables(state)


@pytest.fixture(scope="module")
def residual():
    """Returns residual lag attention with a distribution, on the composed trend, under noise."""
    noise = {"data.noise_levels": (0.05, 0.5), "optimizer.learning_rate": 0.03}
    return trained("trend,residual_lag,quantile", 150, **noise)


@pytest.fixture(scope="module")
def evaluated(residual):
    return evaluate(*residual, "test", 100)


def test_only_residual_lag_attention_follows_a_trend(residual, evaluated):
    task, steps, variables = trained("trend,lag", 60, **{"optimizer.learning_rate": 0.1})
    plain = evaluate(task, steps, variables, "test", 100)
    windows = task.examples("test")
    # Channel 1 falls: a mean of the past is never below its least value.
    low = np.array([windows[i]["past"][:, 1].min() for i in range(len(windows))])
    assert np.all(plain.outputs["forecast"][:, :, 0] >= low[:, None] - 1e-5)
    assert np.mean(evaluated.outputs["forecast"][:, -6:, MEDIAN] < low[:, None]) > 0.2
    assert evaluated.metrics["mse"] < 0.3 * plain.metrics["mse"]
    assert "crps" not in plain.metrics


def test_figures_of_a_split_are_exact(residual, evaluated):
    task, metrics, outputs = residual[0], evaluated.metrics, evaluated.outputs
    windows = task.examples("test")
    assert outputs["mse"].shape == (len(windows),)
    future = np.stack([windows[i]["future"][:, 1] for i in range(len(windows))])
    assert outputs["forecast"].shape == (*future.shape, 9)
    by_window = task.example_scores(outputs, "test")
    np.testing.assert_allclose(by_window.mean(), metrics["mse"], rtol=1e-5)
    np.testing.assert_allclose(np.mean(outputs["mae"]), metrics["mae"], rtol=1e-5)
    last = np.mean(np.square(outputs["forecast"][:, :, MEDIAN] - future), axis=0)
    steps = evaluated.statistics["step_squared"] / evaluated.statistics["step_cells"]
    assert steps.shape == (F,)
    np.testing.assert_allclose(steps.mean(), metrics["mse"], rtol=1e-5)
    assert np.all(steps > 0.2 * last)
    assert 0 < metrics["crps"] < metrics["mae"]
    assert metrics["mse"] < metrics["mse_noise_0.05"] < metrics["mse_noise_0.5"]
    assert np.isfinite(metrics["loss"])


def test_windows_with_missing_cells_count_by_their_cells(residual):
    task, steps, variables = residual
    series = task.dataset
    valid = np.random.default_rng(0).random(series.valid.shape) < 0.8
    holes = dataclasses.replace(series, valid=valid, series=np.where(valid, series.series, 0))
    other = TASK(task.data, task.model, task.processor, holes)
    found = evaluate(other, steps, variables, "validation", 100)
    np.testing.assert_allclose(
        other.example_scores(found.outputs, "validation").mean(), found.metrics["mse"], rtol=1e-5
    )
    assert (
        found.outputs["cells"].sum()
        == found.statistics["cells"].sum()
        < 0.9 * 2 * F * len(found.outputs["cells"])
    )


def test_report_shows_forecasts_errors_and_lags(residual, evaluated):
    task, steps, variables = residual
    batch = next(iter(evaluation_batches(task.examples("test"), batch_size=100)))
    attention = jax.device_get(steps.attention(variables, steps.place(batch)))
    shown = list(map(Shown, range(3)))
    _, predicted = outputs_of_examples(task, steps, variables, "test", [0, 1, 2])
    arguments = (evaluated.statistics, evaluated.outputs, "test", shown, attention, predicted)
    drawn = task.figures(SplitResults(*arguments))
    assert [type(figure) for figure in drawn] == [*[FigureGroup] * 3, Curves, Curves]
    first = drawn[0].figures[1]
    assert isinstance(first, Forecast)
    data = task.dataset
    origin = data.origins("test")[0]
    np.testing.assert_allclose(
        first.truth, data.series[origin : origin + F, 1] * data.std[1] + data.mean[1], rtol=1e-5
    )
    assert len(first.past) == L
    for low, high in first.intervals.values():
        assert np.all((low < first.forecast) & (first.forecast < high))
    times = clock.stamps(data.start, data.step, np.arange(origin - L, origin + F))
    np.testing.assert_array_equal(first.times, times)
    assert list(drawn[-1].series) == ["1 ahead", "12 ahead", "24 ahead"]
    assert "data:image/svg+xml" in drawing.draw(first)


def test_report_shows_every_channel(residual, evaluated):
    task, steps, variables = residual
    shown = [Shown(index, "best quarter", f"{index:016x}") for index in (5, 2)]
    indices = [example.index for example in shown]
    attention, predicted = outputs_of_examples(task, steps, variables, "test", indices)
    outputs = evaluated.outputs
    arguments = (evaluated.statistics, outputs, "test", shown, attention, predicted)
    drawn = task.figures(SplitResults(*arguments))
    assert [type(figure) for figure in drawn] == [*[FigureGroup] * 2, Curves, Curves]
    data = task.dataset
    for figure, index in zip(drawn, indices, strict=False):
        origin = data.origins("test")[index]
        assert figure.caption.startswith(f"best quarter: test example {index} (id 0000")
        assert f"mse {outputs['mse'][index]:.3f}" in figure.caption
        assert [channel.caption.split()[0] for channel in figure.figures] == list(data.names)
        for number, channel in enumerate(figure.figures):
            true = data.series[origin : origin + F, number] * data.std[number] + data.mean[number]
            np.testing.assert_allclose(channel.truth, true, rtol=1e-5)
        # The last channel is the one that the outputs of the split hold.
        point = task.head.point(outputs["forecast"][index]) * data.std[-1] + data.mean[-1]
        np.testing.assert_allclose(figure.figures[-1].forecast, point, rtol=1e-4)


def test_weights_of_other_models_are_drawn():
    rng = np.random.default_rng(0)
    found = attention_figures(
        {
            "patches": rng.random((2, 3, 2, 4, 5, 5)),
            "channels": rng.random((2, 2, 4, 7, 7)),
            "encoder": rng.random((2, 2, 4, 9, 9)),
        },
        ["a", "b", "c"],
        4,
    )
    assert [type(figure) for figure in found] == [Curves, Alignment]
    assert found[1].weights.shape == (3, 3)
    ahead = attention_figures({"patches": rng.random((2, 3, 2, 4, 2, 7))}, ["a", "b", "c"], 0)
    assert ahead[0].inputs == ["5 back", "4 back", "3 back", "2 back", "1 back", *ahead[0].outputs]


@pytest.fixture
def predict(residual):
    task, steps, variables = residual
    assets = json.loads(json.dumps(task.assets()))
    alone = Forecasting.restore(task.data, task.model, assets)
    model = (steps, variables)

    def answered(*raw):
        batches = evaluation_batches(alone.processor.encode(raw), batch_size=2)
        outputs = gather((b["id"], model[0].predict(model[1], model[0].place(b))) for b in batches)
        return alone.processor.decode(raw, outputs), alone.input_figures(raw, outputs, {})

    return answered


def write(path, rows, start="2024-05-01T00", step=1):
    times = np.datetime64(start, "h") + step * np.arange(len(rows))
    lines = [
        f"{time},{falling},{rising}" for time, (rising, falling) in zip(times, rows, strict=True)
    ]
    path.write_text("\n".join(["time,falling,rising", *lines]) + "\n")
    return str(path)


def test_any_file_has_an_answer(predict, tmp_path, capsys):
    hours = np.arange(100)
    season, line = np.sin(hours * 2 * np.pi / 24), 100 + hours / 48
    path = write(tmp_path / "größe, 1.csv", np.stack([season + line, season - line], axis=-1))
    (whole, long), pictures = predict(path, f"{path},steps=60")
    assert whole["times"][0] == "2024-05-05 04:00:00"
    assert [len(whole["forecast"]["rising"]), len(long["forecast"]["rising"])] == [F, 60]
    np.testing.assert_allclose(whole["forecast"]["falling"], long["forecast"]["falling"][:F])
    # The trend goes on past the horizon.
    rising = np.array(long["forecast"]["rising"])
    assert rising[48:].mean() > rising[:12].mean() > 100
    assert np.all(np.array(whole["level_0.1"]["rising"]) < whole["forecast"]["rising"])
    header, first, *_ = long["text"].splitlines()
    assert header == "time,rising,falling,rising 0.1,falling 0.1,rising 0.9,falling 0.9"
    assert first.startswith("2024-05-05 04:00:00,102")
    assert [len(figures) for figures in pictures] == [2, 2]
    assert len(pictures[1][0].forecast) == 60
    # Within the horizon the intervals are the same; past it they are those of sample paths, not of
    # a past that is certain: the first step past it is less sure than the first of all.
    for level in ("level_0.1", "level_0.9"):
        np.testing.assert_allclose(long[level]["rising"][:F], whole[level]["rising"], rtol=1e-6)
    low, high = (np.array(long[level]["rising"]) for level in ("level_0.1", "level_0.9"))
    assert len(high) == 60
    assert (high - low)[F] > 1.2 * (high - low)[0]
    for share, (below, above) in pictures[1][0].intervals.items():
        assert len(below) == len(above) == 60
        if share == 0.8:
            (drawn,) = [name for name in ("rising", "falling") if name in pictures[1][0].caption]
            np.testing.assert_allclose(above, long["level_0.9"][drawn], rtol=1e-5)

    # Past the horizon it is what the forecast so far leads to.
    joined = np.stack([season + line, season - line], axis=-1).tolist()
    joined += zip(whole["forecast"]["rising"], whole["forecast"]["falling"], strict=True)
    longer = predict(write(tmp_path / "longer.csv", joined))[0][0]
    np.testing.assert_allclose(longer["forecast"]["rising"], rising[F : 2 * F], rtol=1e-4)

    constant, one = predict(
        write(tmp_path / "constant.csv", [(5, 5)] * 60), write(tmp_path / "one.csv", [(3, 4)])
    )[0]
    for answer, value in ((constant, 5), (one, 3)):
        np.testing.assert_allclose(answer["forecast"]["rising"], value, rtol=1e-3)
    capsys.readouterr()
    holes = write(tmp_path / "holes.csv", [(np.nan if i % 3 else 5, 5) for i in range(60)])
    assert np.allclose(predict(holes)[0][0]["forecast"]["rising"], 5, rtol=1e-3)
    assert "40 of 120 values are missing (rising 40); they are masked" in capsys.readouterr().err

    for raw, message in (
        (str(tmp_path / "nowhere.csv"), "cannot be read"),
        (f"{path},steps=0", "got steps=0, expected a number"),
        (
            write(tmp_path / "d.csv", [(np.nan, np.nan)] * 9),
            "has no value within the last 48 time steps",
        ),
        (
            write(tmp_path / "e.csv", [(1, 2)] * 9, step=2),
            "the median difference of times is 2 h, expected 1 h as in training",
        ),
    ):
        with pytest.raises(UserError, match=message):
            predict(raw)


def test_the_config_names_what_it_does_not_know():
    with pytest.raises(
        UserError,
        match=r"got 'patchts' \(did you mean 'patchtst'\?\), expected one of etth1, .*, or a hor",
    ):
        configs.load_file("configs/forecasting.py:patchts")
    config = configs.load_file("configs/forecasting.py:exchange_rate,192,lag,quantile")
    assert (config.name, config.data.horizon, config.data.name) == (
        "lag_quantile",
        192,
        "exchange_rate",
    )
    task = TASK(config.data, config.model, None)
    assert task.settings == {"horizon": 192, "lookback": 24}
    targeted = dataclasses.replace(config.data, targets=("Japan", "China"))
    assert TASK(targeted, config.model, None).settings["targets"] == "Japan+China"


def test_a_model_that_does_not_fit_the_window_is_refused():
    config = experiment("trend,patchtst", **{"model.patch_length": 64})
    task = TASK.prepare(config.data, config.model, None)
    with pytest.raises(UserError, match=r"config.model.patch_length: got 64, expected at most"):
        make_steps(task, config)


def test_the_ridge_model_is_the_baseline(tmp_path):
    config = experiment("trend,ridge")
    task = TASK.prepare(config.data, config.model, None)
    steps = make_steps(task, config)
    found = evaluate(task, steps, evaluation_variables(steps.init()), "test", 100)
    expected = baselines.baselines(task.dataset)["ridge"]()
    np.testing.assert_allclose(found.metrics["mse"], expected["mse"], rtol=1e-4)
    np.testing.assert_allclose(found.metrics["mase"], expected["mase"], rtol=1e-4)
    # Now fitted, and then read from the cache.
    for _ in range(2):
        beside = engine_baselines.baseline_metrics(task, Paths.default(cache_dir=tmp_path), found)
        assert abs(beside["ridge"]["gain"]) + beside["ridge"]["gain_95"] < 1e-4
        gain = beside["repeat"]["mse"] - found.metrics["mse"]
        np.testing.assert_allclose(beside["repeat"]["gain"], gain, rtol=1e-4)
        assert 0 < beside["repeat"]["gain_95"] < gain
        assert "example_scores" not in beside["repeat"]
        assert all(values["seconds"] >= 0 for values in beside.values())


def test_the_ablation_changes_the_share_alone():
    found = resolve_ablation(load_ablation("configs/ablations/forecasting_share.py"))
    assert {name: each.model.share for name, each in found.items()} == {
        "ridge_seasonal": None,
        "ridge_alone": 0.0,
        "equal_shares": 0.5,
        "seasons_alone": 1.0,
    }
