"""The task: a model that learns what comes next, exact figures, reasons, and answers to anybody."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from launch.engine import config as configs
from launch.engine.evaluation import evaluate, gather
from launch.engine.predictor import Predictor
from launch.engine.state import evaluation_variables
from launch.engine.steps import make_steps
from launch.reporting import figures
from launch.runs.ablation import load_ablation, resolve_ablation
from tasks.answers import AnswerOptions
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.figures import Curves, Recommendations, Shown, SplitResults
from tasks.recommendation.data import DataConfig, in_order
from tasks.recommendation.datasets import DATA_SETS
from tasks.recommendation.sequences import RecommendationDataset
from tasks.recommendation.task import TASK
from tasks.recommendation.user_files import Events

USERS, ITEMS, BATCH = 24, 14, 8
TITLES = ["Øl", "Crème brûlée", "Les 400 coups; 2", "東京物語", *"efghijklm", "Øl"]


def events():
    """Returns events in which users go through the items cyclically; the last user has one
    event."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), [8] * (USERS - 1) + [1]).astype(np.int32)
    item = np.concatenate([(rng.integers(ITEMS) + np.arange(8)) % ITEMS for _ in range(USERS)])
    names = [f"n{number}" for number in range(ITEMS)]
    item = item[: len(user)].astype(np.int32)
    # The second of the two of one title is had by more.
    item[:8] = (ITEMS - 4 + np.arange(8)) % ITEMS
    days = 86400.0 * np.arange(len(user))
    return in_order(Events(user, item, days, [f"u{n}" for n in range(USERS)], names, TITLES))[0]


def experiment():
    return configs.override(
        configs.load_file("configs/recommendation.py:movielens_100k,sasrec"),
        {
            "data.max_length": 5,
            "model.model_size": 16,
            "model.num_heads": 2,
            "model.num_layers": 1,
            "model.feedforward_size": 16,
            "model.dropout_rate": 0.0,
            "model.attention_dropout_rate": 0.0,
            "mesh.data": 1,
            "optimizer.learning_rate": 0.03,
            "optimizer.warmup_steps": 0,
            "optimizer.schedule": "constant",
            "optimizer.average_decay": 0.0,
            "training.batch_size": BATCH,
        },
    )


def task_of(data, model):
    dataset = RecommendationDataset(events(), data)
    return TASK(data, model, TASK.fit(dataset, data, model, None), dataset)


@pytest.fixture(scope="module")
def trained():
    """Returns a task refitted on validation, its steps, its variables, and the losses."""
    config = experiment()
    task = task_of(config.data, config.model).with_validation()
    steps = make_steps(task, config)
    state, losses = steps.init(), []
    for _ in range(12):
        for batch in evaluation_batches(task.examples("train"), batch_size=BATCH):
            state, metrics = steps.train(state, steps.place(batch))
            losses.append(float(metrics["loss"]))
    return task, steps, evaluation_variables(state), losses


@pytest.fixture(scope="module")
def evaluated(trained):
    task, steps, variables, _ = trained
    return evaluate(task, steps, variables, "test", BATCH)


def test_it_learns_what_comes_next(trained, evaluated):
    losses, metrics = trained[3], evaluated.metrics
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["mrr"] > 0.8
    assert evaluated.statistics["users"] == USERS - 1
    assert 0 < metrics["diversity"] < 1
    assert metrics["known_targets"] == 1
    by_user = trained[0].example_scores(evaluated.outputs, "test")
    assert by_user.shape == (USERS - 1,)
    np.testing.assert_allclose(by_user.mean(), metrics["ndcg_at_10"], rtol=1e-5)
    with pytest.raises(UserError, match="--split: got train"):
        trained[0].metrics({}, {}, "train")


def test_refitting_adds_the_validation_events(trained):
    refitted = trained[0]
    task = task_of(refitted.data, refitted.model)
    assert task.fingerprint == refitted.fingerprint
    counts = []
    for each in (task, refitted):
        train = each.examples("train")
        counts.append(sum(np.sum(train[index]["next"] >= 0) for index in range(len(train))))
    assert counts[1] - counts[0] == USERS - 1
    assert (
        refitted.processor.events.popularity(True).sum()
        == task.processor.events.popularity().sum() + USERS - 1
    )
    assert not task.assets()["with_validation"]


def test_buckets_change_neither_loss_nor_evaluation_nor_answers(trained, evaluated):
    task, steps, variables, _ = trained
    bucketed = task_of(dataclasses.replace(task.data, bucketed=True), task.model).with_validation()
    assert (task.buckets, bucketed.buckets) == (None, [4, 5])
    model = task.build_model(nnx.Rngs(0))
    totals = []
    for each in (task, bucketed):
        options = {"batch_size": BATCH, "buckets": each.buckets}
        batches = list(evaluation_batches(each.examples("train"), **options))
        counts = [
            np.sum((batch["next"] >= 0) & (batch["weight"] > 0)[:, None]) for batch in batches
        ]
        losses = [float(each.loss(model, batch, jax.random.key(0))[0]) for batch in batches]
        totals.append((sum(counts), np.dot(counts, losses)))
    assert totals[0][0] == totals[1][0]
    np.testing.assert_allclose(totals[0][1], totals[1][1], rtol=1e-4)
    found = evaluate(bucketed, steps, variables, "test", BATCH)
    np.testing.assert_array_equal(found.outputs["rank"], evaluated.outputs["rank"])
    raw = ["user:u0", "e; f", ""]
    top = []
    for each in (task, bucketed):
        options = {"batch_size": BATCH, "buckets": each.buckets}
        (batch,) = evaluation_batches(each.processor.encode(raw), **options)
        top.append(np.asarray(steps.predict(variables, steps.place(batch))["top"])[:3])
    np.testing.assert_array_equal(*top)


def test_baselines_are_cached_by_the_events_they_are_fitted_on(trained):
    refitted = trained[0]
    assert refitted.baseline_data != task_of(refitted.data, refitted.model).baseline_data


def test_report_shows_reasons(trained, evaluated):
    task, steps, variables, _ = trained
    batch = next(iter(evaluation_batches(task.examples("test"), batch_size=BATCH)))
    attention = jax.device_get(steps.attention(variables, steps.place(batch)))
    arguments = (evaluated.statistics, evaluated.outputs, "test")
    shown = list(map(Shown, range(6)))
    drawn = task.figures(SplitResults(*arguments, shown, attention))
    assert [type(figure) for figure in drawn] == [Curves, *[Recommendations] * 6]
    page = drawn[1]
    held = task.examples("test")
    assert page.truth == task.processor.events.titles[held.target[0]]
    assert page.history[0] == task.processor.events.titles[held.history(0)[-1]]
    latest = {task.processor.events.titles[item] for item in held.history(0)[-5:]}
    for reasons in page.reasons:
        assert {name for name, _ in reasons} <= latest
        assert [share for _, share in reasons] == sorted((s for _, s in reasons), reverse=True)
    shown = figures.draw(dataclasses.replace(page, caption="<u>", truth=page.titles[0]))
    assert "&lt;u&gt;" in shown
    assert f"<b>{page.titles[0]} ✓ true</b>" in shown
    # A model that names users, and one that names nothing.
    neighbours = {
        "reason_neighbours": np.array([[[0.2, 0.8]] * 10]),
        "reason_neighbour_ids": np.array([[3, 4]]),
    }
    others = task.figures(SplitResults(*arguments, [Shown(0)], neighbours))
    assert others[1].reasons[0] == [("user u4", 0.8), ("user u3", 0.2)]
    assert task.figures(SplitResults(*arguments, [Shown(0)]))[1].reasons[0] == []


def test_lists_are_as_long_as_wanted(trained):
    task, _, variables, _ = trained
    raw, found = ["e; f", "user:u1", ""], {}
    for count in (None, 3, 12):
        chosen = task.with_options(AnswerOptions(top_k=count))
        assert chosen.compiles_options == (count is not None)
        steps = make_steps(chosen, experiment())
        found[count] = Predictor(chosen, experiment(), steps, variables)(raw)
    sizes = {
        count: [len(answer["recommendations"]) for answer in answers]
        for count, answers in found.items()
    }
    # Of 14 items 12 are left, 6 for a user with 8 events, and all for no history.
    assert sizes == {None: [10, 6, 10], 3: [3, 3, 3], 12: [12, 6, 12]}
    for count, answers in found.items():
        for answer, longest in zip(answers, found[12], strict=True):
            ids = [entry["item"] for entry in answer["recommendations"]]
            assert ids == [e["item"] for e in longest["recommendations"]][: count or 10]
    rows = TASK.rows(found[3][0])
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["title"] == "g"
    (first, *_) = found[3][0]["recommendations"]
    assert rows[0]["item"] == first["item"] == "n6"
    assert {reason["item"] for reason in first["because"]} <= {"n4", "n5"}
    assert rows[0]["because"].startswith(f"{first['because'][0]['what']} 0.")
    assert TASK.rows(found[3][2])[0]["score"] is None
    # An export has lists of ten.
    short = TASK.chosen(found[None][0], AnswerOptions(top_k=2))
    assert short["recommendations"] == found[None][0]["recommendations"][:2]
    with pytest.raises(UserError, match="--top_k: got 11, expected at most 10"):
        TASK.chosen(found[None][0], AnswerOptions(top_k=11))


def test_a_file_of_events_is_evaluated_with_the_items_of_the_run(trained, tmp_path, capsys):
    task, steps, variables, _ = trained
    path = tmp_path / "new.csv"
    lines = [
        ("new", "n4", 1), ("new", "n5", 2), ("new", "n6", 3),
        # The history has an unknown item; the last item is unknown; there is no history.
        ("odd", "other", 1), ("odd", "n7", 2), ("odd", "n8", 3),
        ("lost", "n1", 1), ("lost", "other", 2),
        ("alone", "n1", 1),
        # Known to the run, whose events of the user are the history.
        ("u1", _unseen(task, "u1"), 9),
    ]  # fmt: skip
    text = "".join(f"{user},{item},{1_700_000_000 + time}\n" for user, item, time in lines)
    path.write_text(f"user,item,timestamp\n{text}")
    read = task.with_file(str(path))
    part = read.examples("test")
    names = task.processor.events.names
    assert part.names == ["new", "odd", "u1"]
    assert [names[item] for item in part.target] == ["n6", "n8", lines[-1][1]]
    assert [names[item] for item in part.history(0)] == ["n4", "n5"]
    assert [names[item] for item in part.history(1)] == ["n7"]
    assert len(part.history(2)) == 8
    assert [int(part[index]["user"]) for index in range(3)] == [-1, -1, 1]
    found = evaluate(read, steps, variables, "test", BATCH)
    assert found.outputs["rank"][:2].tolist() == [1, 1], "the next item of the cycle"
    err = capsys.readouterr().err
    assert (
        "1 of 5 users are left out, because the run does not know their last item, such as" in err
    )
    assert "1 of 5 users are left out, because the run knows none of their earlier items" in err
    assert "are also in the data of the run" not in err
    path.write_text("user,item,timestamp\na,x,1700000000\na,y,1700000001\n")
    with pytest.raises(UserError, match="no user has two events with items that the run knows"):
        task.with_file(str(path))


def _unseen(task, user):
    """Returns an item that a user has not had."""
    events = task.processor.events
    number = events.users.index(user)
    seen = set(events.items[events.starts[number] : events.starts[number + 1]].tolist())
    return next(name for item, name in enumerate(events.names) if item not in seen)


def test_anybody_has_an_answer(trained):
    task, _, variables, _ = trained
    restored = TASK.restore(task.data, task.model, json.loads(json.dumps(task.assets())))
    steps = make_steps(restored, experiment())
    last = task.processor.events.items[task.processor.events.starts[1] - 1]
    raw = [
        "user:u0",
        "e; f",
        "E ; stranger's; crème brulee",
        "",
        "user:someone",
        "les 400 coups; 2",
        "øl",
        f"user:u{USERS - 1}",
    ]
    batches = evaluation_batches(restored.processor.encode(raw), batch_size=BATCH)
    outputs = gather(
        (batch["id"], steps.predict(variables, steps.place(batch))) for batch in batches
    )
    assert "rank" not in outputs
    found = json.loads(json.dumps(restored.processor.decode(raw, outputs)))
    assert [answer["cold"] for answer in found] == [False] * 3 + [True] * 2 + [False] * 3
    best = [[entry["title"] for entry in answer["recommendations"]] for answer in found]
    # A user's test event is had too: of 14 items 6 are left.
    assert len(best[0]) == ITEMS - 8
    assert task.processor.events.names[last] not in [e["item"] for e in found[0]["recommendations"]]
    assert best[1][0] == "g"
    assert found[1]["recommendations"][0]["because"][0]["what"] in "ef"
    assert found[2]["unknown"] == {"stranger's": None, "crème brulee": "Crème brûlée"}
    assert "did you mean 'Crème brûlée'?" in found[2]["text"]
    popularity = task.processor.events.popularity(True)
    counts = [
        popularity[task.processor.events.names.index(e["item"])]
        for e in found[3]["recommendations"]
    ]
    assert counts == sorted(popularity, reverse=True)[:10]
    assert "the most popular" in found[3]["text"]
    assert "there is no user 'someone'" in found[4]["text"]
    assert found[5]["unknown"] == {}
    # Of two items of one title the more popular is meant.
    counts = np.bincount(task.processor.events.items, minlength=ITEMS)
    two = [task.processor.events.names.index(name) for name in ("n0", "n13")]
    meant = max(two, key=lambda number: counts[number])
    items = restored.processor.encode(["Øl"])[0]["items"]
    assert items.tolist() == [meant, -1, -1, -1, -1]


def test_what_does_not_fit_is_said_before_training(trained):
    task = trained[0]
    model = dataclasses.replace(task.model, max_length=3)
    with pytest.raises(UserError, match=r"config.model.max_length: got 3, .*max_length=5"):
        TASK.prepare(DataConfig(max_length=5), model, None)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_):
            raise ValueError("size: got 1, expected 2")

        patch.setattr("tasks.recommendation.models.build", refuse)
        with pytest.raises(UserError, match=r"config.model.size: got 1, expected 2"):
            task.build_model(nnx.Rngs(0))


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize("model", TASK.model_configs)
def test_configs(data, model):
    config = configs.load_file(f"configs/recommendation.py:{data},{model}")
    assert (config.name, config.data.name, config.model.name) == (model, data, model)
    assert config.training.refit


@pytest.mark.parametrize("argument", ["movielens", "beauty,sasrex", "sasrec,beauty", "hybrid,long"])
def test_unknown_configs_are_refused(argument):
    with pytest.raises(UserError, match=r"config: .*expected"):
        configs.load_file(f"configs/recommendation.py:{argument}")


def test_the_ablation_changes_one_part_at_a_time():
    found = resolve_ablation(load_ablation("configs/ablations/recommendation_parts.py"))
    base = found.pop("hybrid")
    for config in found.values():
        assert len(configs.differences(base, config)) == 2  # the name, and the part
