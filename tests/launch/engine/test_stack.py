"""Stacked seeds: order of batches, ends and errors of members, and losses of single runs."""

import dataclasses
import threading
import types

import jax
import numpy as np
import pytest

from launch.engine import config as configs
from launch.engine import stack as stacks
from launch.engine.steps import make_steps
from launch.runs import jobs, stacked
from tasks.common.data.pipeline import train_iterator
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.text_classification.task import TextClassification, TextProcessor


def fake_stack(size, fail_at=None):
    """Returns a stack whose steps add the batch to a sum, and the (lanes, mask) of each call."""
    calls = []

    def step(states, batches, seeds, mask):
        taken = np.ones(len(batches), bool) if mask is None else mask
        calls.append((list(seeds), list(map(bool, taken))))
        if len(calls) == fail_at:
            raise NotImplementedError("Batching rule for 'ffi' not implemented\nmore")
        added = np.array([np.sum(batch["x"]) for batch in batches]) * taken
        new = {"sum": np.asarray(states["sum"]) + added}
        return jax.tree.map(jax.numpy.asarray, new), [
            {"sum": value.item(), "shape": len(batch["x"])}
            for value, batch in zip(new["sum"], batches, strict=True)
        ]

    steps = types.SimpleNamespace(
        stacked=step, select=lambda states, lane: jax.tree.map(lambda x: x[lane], states)
    )
    seeds = [types.SimpleNamespace(seed=10 + number) for number in range(size)]
    made = stacks.Stack(seeds, jax.devices()[0], threading.Condition())
    made._shared = None, steps
    return made, calls


def run_members(stack, loops):
    """Runs a loop of each member in a thread; returns results or errors in order."""
    found = [None] * len(loops)

    def work(number, member, loop):
        with member:
            try:
                found[number] = loop(member)
            except Exception as error:
                found[number] = error

    threads = [
        threading.Thread(target=work, args=(number, *pair))
        for number, pair in enumerate(zip(stack.members, loops, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def summing(batches, start=0.0):
    """Returns a loop that sums batches, with the sums after each step, from the metrics."""

    def loop(member):
        state, sums = {"sum": jax.numpy.asarray(start)}, []
        for batch in batches:
            state, metrics = member._train(state, {"x": np.asarray(batch)})
            assert metrics["shape"] == len(batch)
            sums.append(metrics["sum"])
        return sums, float(member._resolve(state)["sum"])

    return loop


def test_members_with_the_most_frequent_shape_step_and_the_others_wait():
    stack, calls = fake_stack(3)
    found = run_members(
        stack,
        [summing([[1.0], [2, 2]]), summing([[10.0], [20.0]]), summing([[1, 1], [5.0]], 100.0)],
    )
    assert found == [([1, 5], 5), ([10, 30], 30), ([102, 107], 107)]
    assert calls[0] == ([10, 11, 12], [True, True, False])
    # Member 1 ends after its second step, and waits for nothing.
    assert sum(sum(taken) for _, taken in calls) == 6


def test_lanes_of_ended_members_are_removed():
    stack, calls = fake_stack(3)
    lengths = (1, 2, 4)
    found = run_members(stack, [summing([[1.0]] * length) for length in lengths])
    assert [sums[-1] for sums, _ in found] == [1, 2, 4]
    # With one of two lanes alive, the other one is removed.
    assert [seeds for seeds, _ in calls] == [[10, 11, 12], [10, 11, 12], [12], [12]]


def test_a_restored_state_replaces_that_of_the_stack():
    def loop(member):
        state = {"sum": jax.numpy.asarray(0.0)}
        state, _ = member._train(state, {"x": np.ones(1)})
        state, metrics = member._train({"sum": jax.numpy.asarray(50.0)}, {"x": np.ones(1)})
        return metrics["sum"]

    stack, _ = fake_stack(2)
    assert run_members(stack, [loop, lambda member: summing([[1.0], [1.0]])(member)[1]]) == [51, 2]


def test_an_error_of_one_member_leaves_the_others():
    def failing(member):
        summing([[1.0]])(member)
        raise UserError("loss: got nan")

    stack, _ = fake_stack(2)
    failed, (sums, _) = run_members(stack, [failing, summing([[1.0]] * 3)])
    assert str(failed) == "loss: got nan"
    assert sums == [1, 2, 3]


def test_programs_that_cannot_be_batched_are_refused_in_every_member():
    stack, _ = fake_stack(2, fail_at=1)
    for error in run_members(stack, [summing([[1.0]]), summing([[1.0]])]):
        assert str(error).startswith(
            "--stack_seeds: the train step cannot be batched over seeds (Batching rule for 'ffi' "
            "not implemented); leave out --stack_seeds"
        )


def test_memory_is_checked():
    device = types.SimpleNamespace(
        memory_stats=lambda: {"bytes_limit": 4 * 2**30, "bytes_in_use": 2**30}
    )
    state = {"params": np.zeros(2**27, np.float32)}
    stacks._check_memory(state, 3, device)
    with pytest.raises(UserError, match=r"4 seeds need about 4\.0 GB, and the device has 3\.0 GB"):
        stacks._check_memory(state, 4, device)


@pytest.mark.parametrize(
    ("changes", "seeds", "track", "message"),
    [
        ({}, 1, [], r"--stack_seeds: got 1 seed, expected several; set --seeds=2 or more"),
        ({"mesh.tensor": 2}, 2, [], r"config\.mesh\.tensor: got 2, expected 1 .*set config\.mesh"),
        ({"training.refit": True}, 2, [], r"config\.training\.refit: got True, .*; leave out"),
        ({}, 2, ["wandb"], r"--track=wandb: supports one run at a time; use --track=mlflow"),
    ],
)
def test_settings_that_cannot_be_stacked_are_refused(changes, seeds, track, message):
    config = configs.override(configs.load_file("configs/sequence_copy.py"), changes)
    with pytest.raises(UserError, match=f"^{message}"):
        stacked.check(config, seeds, track)


def placed(monkeypatch, tmp_path, failure=""):
    """Returns a function that runs jobs, the first one finished, with its calls and results."""
    config = configs.load_file("configs/sequence_copy.py")
    made = [
        jobs.Job(
            name,
            dataclasses.replace(config, seed=seed),
            tmp_path / f"{name}{seed}",
        )
        for seed in (0, 1, 2)
        for name in ("a", "b")
    ]
    made[0].folder.mkdir()
    (made[0].folder / "result.json").write_text("{}")
    performed, ended = [], []

    def perform(job, options, member=None):
        performed.append((job.folder.name, member and (member.size, member.label)))
        return jobs.Ended(failure=failure) if failure else jobs.Ended({"seed": job.config.seed})

    monkeypatch.setattr(jobs, "perform", perform)
    monkeypatch.setattr(stacked, "perform", perform)
    options = jobs.Options(tmp_path, None, "", lambda line: None)
    run = lambda: stacked.StackedSeeds().run(  # noqa: E731
        made, options, lambda job, result: ended.append((job.folder.name, result.record))
    )
    return run, performed, ended


def test_unfinished_seeds_of_each_experiment_are_stacked(monkeypatch, tmp_path):
    run, performed, ended = placed(monkeypatch, tmp_path)
    run()
    assert performed[0] == ("a0", None)
    assert sorted(performed[1:3]) == [("a1", (2, "seed 1")), ("a2", (2, "seed 2"))]
    assert {name for name, _ in performed[3:]} == {"b0", "b1", "b2"}
    assert {size for _, (size, _) in performed[3:]} == {3}
    assert [name for name, _ in ended] == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_a_program_that_cannot_be_batched_ends_the_command(monkeypatch, tmp_path):
    run, _, ended = placed(monkeypatch, tmp_path, "--stack_seeds: the train step cannot")
    with pytest.raises(UserError, match=r"^--stack_seeds: the train step cannot"):
        run()
    assert [name for name, _ in ended] == ["a0"]


def test_seconds_are_told_both_ways():
    def outcome(*runs):
        records = {
            seed: {"seconds": seconds, "timing": {"stacked_seeds": 2} if together else {}}
            for seed, (seconds, together) in enumerate(runs)
        }
        return types.SimpleNamespace(records=records)

    found = stacked.notes(
        {
            "a": outcome((2.0, True), (4.0, True), (9.0, False)),
            "b": outcome((2.0, True)),
            "c": outcome((5.0, False)),
        }
    )
    assert found == [
        "a: 3.0 seconds per stacked seed, 9.0 per seed trained alone (1 of the seeds)",
        "b: 2.0 seconds per stacked seed",
    ]


# ---------------------------------------------------------------- losses of single runs

TEXTS = ["a good film", "a bad film", "good good story", "bad plot", "a good story of a good film",
         "a bad plot and a bad film"]  # fmt: skip


class Texts:
    """Examples of two buckets."""

    def __init__(self, task):
        self._rows = task.processor.tokenizer.encode_batch(TEXTS)
        self.lengths = np.array([len(row) for row in self._rows])
        self.padded = {"tokens": 0}

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        tokens = np.array(self._rows[index], np.int32)
        return {"tokens": tokens, "length": np.int32(len(tokens)), "label": np.int32(index % 2)}


def classifier():
    config = configs.override(
        configs.load_file("configs/text_classification.py:sst2"),
        {
            "model.model_size": 8, "model.num_heads": 2, "model.num_layers": 1,
            "model.feedforward_size": 16, "model.prior": "none", "model.dropout_rate": 0.3,
            "data.text.max_length": 8, "training.batch_size": 2, "optimizer.average_decay": 0.5,
        },
    )  # fmt: skip
    tokenizer = Tokenizer.fit(TEXTS, TextConfig(min_count=1, max_length=8))
    processor = TextProcessor(config.data, config.model, ["bad", "good"], [4, 8], tokenizer)
    task = TextClassification(config.data, config.model, processor)
    return config, task, Texts(task)


def attention_network(tmp_path):
    from tasks.common.data.paths import Paths

    config = configs.override(
        configs.load_file("configs/sequence_copy.py"),
        {
            "data.train_size": 40, "data.validation_size": 4, "data.test_size": 4,
            "data.max_length": 6, "model.state_size": 8, "model.embedding_size": 8,
            "training.batch_size": 4,
        },
    )  # fmt: skip
    task = configs.task_class(config.task).prepare(
        config.data, config.model, Paths(tmp_path / "data", tmp_path / "cache")
    )
    return config, task, task.examples("train")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Transformer with dropout", "attention RNN"])
def test_losses_are_those_of_single_runs(model, tmp_path):
    """Each step of each seed, with batches of two lengths, and the parameters at the end."""
    transformer = model == "Transformer with dropout"
    config, task, examples = classifier() if transformer else attention_network(tmp_path)
    seeded = [dataclasses.replace(config, seed=seed) for seed in (0, 3, 4)]
    count = 8

    def batches(seed):
        return train_iterator(
            examples, batch_size=config.training.batch_size, seed=seed, buckets=task.buckets
        )

    def train(steps, seed):
        state, found, shapes = steps.init(), [], set()
        for _, batch in zip(range(count), batches(seed), strict=False):
            shapes.add(stacks._shapes(batch))
            state, metrics = steps.train(state, steps.place(batch))
            found.append(jax.device_get(metrics))
        assert len(shapes) == 2
        return found, jax.device_get(steps.resolve(state))

    stack = stacks.Stack(seeded, jax.devices()[0], threading.Condition())
    stack.task(lambda: task)
    together = run_members(
        stack,
        [lambda member, seed=each.seed: train(member.steps(), seed) for each in seeded],
    )
    first_losses = set()
    for each, result in zip(seeded, together, strict=True):
        metrics, state = result
        alone, expected = train(make_steps(task, each, jax.devices()[:1]), each.seed)
        for row, wanted in zip(metrics, alone, strict=True):
            assert row.keys() == wanted.keys()
            np.testing.assert_allclose(row["loss"], wanted["loss"], rtol=1e-5)
        first_losses.add(float(metrics[0]["loss"]))
        assert state["step"] == expected["step"] == count
        shapes = [jax.tree.map(np.shape, each) for each in (state, expected)]
        assert shapes[0] == shapes[1]
    assert len(first_losses) == len(seeded)
