"""A training epoch of SASRec, here and by RecBole in PyTorch, side by side: time, and memory at its
peak.

python -m benchmarks.steps.sasrec        (make bench brings torch; for RecBole see below)

The same model, RecBole's: two layers, norms after each part, dropout, cross-entropy over all items,
AdamW, clipping. The same events, drawn once: as many users, events and items as movielens_100k. In
an epoch each event is once what is predicted. RecBole does so from the events before it, one
example for each event, of which only the latest place is scored; here a sequence is read once and
all of its places are scored. That is most of the ratio. A round of either is --part of an epoch.
Memory is measured in a process of each one's own: how much larger its resident set is at most, in
steps after the first, than before the model is made.

RecBole 1.2.1 pins what others need newer: tests/oracles/families/collaborative.py says how to bring
it, in a copy of the environment.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from absl import app, flags, logging

from benchmarks.comparison import (
    define_flags,
    engine_steps,
    experiment,
    time_and_memory,
    torch_steps,
)

define_flags()
flags.DEFINE_integer("length", 50, "Events of a sequence at most.", lower_bound=1)
flags.DEFINE_float("part", 0.05, "Of an epoch, that a round takes.", 0.0, 1.0)

CONFIG = "configs/recommendation.py:movielens_100k,sasrec"
USERS, EVENTS, ITEMS = 943, 106, 1682
# RecBole's default, and its settings of the model.
THEIR_BATCH = 2048
LAYERS, HEADS, SIZE, INNER, DROPOUT = 2, 2, 64, 256, 0.5


def histories() -> np.ndarray:
    """Items of each user in order, [USERS, EVENTS]."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)]).astype(np.int32)


def settings():
    """The experiment with RecBole's model."""
    from launch.engine import config as configs

    changes = {"norm": "post", "input_norm": True, "norm_epsilon": 1e-12}
    changes |= {"num_layers": LAYERS, "num_heads": HEADS, "model_size": SIZE}
    changes |= {"feedforward_size": INNER, "dropout_rate": DROPOUT}
    changes |= {"attention_dropout_rate": DROPOUT, "max_length": flags.FLAGS.length}
    changes = {f"model.{name}": value for name, value in changes.items()}
    changes |= {"data.max_length": flags.FLAGS.length, "mesh.data": 1}
    return configs.override(experiment(CONFIG), changes)


def here() -> Callable[[int], float]:
    """A function that takes rounds with this project's engine and returns the last loss."""
    from tasks.common.data.pipeline import train_iterator
    from tasks.recommendation.data import RecommendationData, RecommendationDataset
    from tasks.recommendation.task import Recommendation

    config = settings()
    # Two more events of each user, that are held out.
    items = np.pad(histories(), ((0, 0), (0, 2)), mode="wrap")
    starts = np.arange(USERS + 1, dtype=np.int64) * items.shape[1]
    names = tuple(str(number) for number in range(ITEMS))
    data = RecommendationData(
        starts=starts, items=items.ravel(), ages=None, users=names[:USERS], names=names,
        titles=names,
    )  # fmt: skip
    dataset = RecommendationDataset(data, config.data)
    processor = Recommendation.fit(dataset, config.data, config.model, None)
    task = Recommendation(config.data, config.model, processor, dataset)
    examples, B = task.examples("train"), config.training.batch_size
    count = max(1, round(flags.FLAGS.part * len(examples) / B))
    options = {"buckets": task.buckets, "process_index": 0, "process_count": 1}
    batches = train_iterator(examples, batch_size=B, seed=0, **options)
    run = engine_steps(task, config, [next(batches) for _ in range(count)])
    return lambda rounds: run(rounds * count)


def torch_eager() -> Callable[[int], float]:
    """The same by RecBole."""
    import torch
    from recbole.model.sequential_recommender.sasrec import SASRec

    config, length, items = settings(), flags.FLAGS.length, histories() + 1
    fields = ("USER_ID_FIELD", "NEG_PREFIX")
    theirs = {name: name for name in fields} | {
        "ITEM_ID_FIELD": "item",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "length",
        "MAX_ITEM_LIST_LENGTH": length,
        "device": torch.device("cpu"),
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_size": SIZE,
        "inner_size": INNER,
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "loss_type": "CE",
    }

    class Data:
        """What the model asks of a data set; item 0 is padding."""

        def num(self, field):
            return ITEMS + 1

    rng = np.random.default_rng(1)
    total = USERS * (EVENTS - 1)
    count = max(1, round(flags.FLAGS.part * total / THEIR_BATCH))

    def batch():
        users, ends = rng.integers(USERS, size=THEIR_BATCH), rng.integers(1, EVENTS, THEIR_BATCH)
        seen = np.zeros((THEIR_BATCH, length), np.int64)
        for row, (user, end) in enumerate(zip(users, ends, strict=True)):
            latest = items[user, max(0, end - length) : end]
            seen[row, : len(latest)] = latest
        fields = {"item_list": seen, "length": np.minimum(ends, length), "item": items[users, ends]}
        return {name: torch.from_numpy(value).long() for name, value in fields.items()}

    torch.manual_seed(0)
    model = SASRec(theirs, Data()).train()
    batches = [batch() for _ in range(count)]
    run = torch_steps(model, config, batches, lambda model, batch: model.calculate_loss(batch))
    return lambda rounds: run(rounds * count)


def main(_: list[str]) -> None:
    """Prints seconds a round of each, and the ratio; then the memory of each, and the ratio."""
    logging.set_verbosity(logging.WARNING)
    time_and_memory(
        "benchmarks.steps.sasrec",
        {"here": here, "torch": torch_eager},
        {"here": "launch.engine.steps", "torch": "torch"},
        [f"--length={flags.FLAGS.length}", f"--part={flags.FLAGS.part}"],
    )


if __name__ == "__main__":
    app.run(main)
