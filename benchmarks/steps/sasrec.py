"""A training epoch of SASRec in JAX and in RecBole (PyTorch).

The model has RecBole's settings: two layers, normalization after each sublayer, dropout,
cross-entropy over all items, AdamW and gradient clipping. The random events have as many users,
events and items as movielens_100k. Every event of an epoch is predicted once. RecBole makes one
example of each event and scores only the last position of an example. In the JAX model, a sequence
is one example, and all of its positions are scored, which explains most of the ratio. A step of
`benchmarks.steps` takes the fraction `part` of an epoch.

tests/oracles/families/collaborative.py describes an environment with RecBole 1.2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import engine_steps, experiment, torch_steps

CONFIG = "configs/recommendation.py:movielens_100k,sasrec"
USERS, EVENTS, ITEMS = 943, 106, 1682
# RecBole's default batch size and model settings.
RECBOLE_BATCH = 2048
LAYERS, HEADS, SIZE, INNER, DROPOUT = 2, 2, 64, 256, 0.5


def histories() -> np.ndarray:
    """Returns the items of each user in order, [USERS, EVENTS]."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)]).astype(np.int32)


def setup(batch_size: int | None = None, length: int = 50, part: float = 0.05) -> tuple[Any, float]:
    """Returns the experiment with the settings of RecBole's model, and `part`.

    Args:
      batch_size: examples per step; that of the config if None.
      length: maximum length of a history.
      part: fraction of an epoch in a round.
    """
    from launch.engine import config as configs

    changes = {"norm": "post", "input_norm": True, "norm_epsilon": 1e-12}
    changes |= {"num_layers": LAYERS, "num_heads": HEADS, "model_size": SIZE}
    changes |= {"feedforward_size": INNER, "dropout_rate": DROPOUT}
    changes |= {"attention_dropout_rate": DROPOUT, "max_length": length}
    changes = {f"model.{name}": value for name, value in changes.items()}
    changes |= {"data.max_length": length, "mesh.data": 1}
    if batch_size is not None:
        changes["training.batch_size"] = batch_size
    return configs.override(experiment(CONFIG), changes), part


def jax_step(config, part: float) -> Callable[[int], float]:
    """Returns a function that takes rounds with the engine; a round is `part` of an epoch."""
    from tasks.common.data.pipeline import train_iterator
    from tasks.recommendation.data import RecommendationData
    from tasks.recommendation.sequences import RecommendationDataset
    from tasks.recommendation.task import Recommendation

    # Two events are added for each user, because the last two are held out.
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
    count = max(1, round(part * len(examples) / B))
    batches = train_iterator(examples, batch_size=B, seed=0, buckets=task.buckets)
    run = engine_steps(task, config, [next(batches) for _ in range(count)])
    return lambda rounds: run(rounds * count)


def torch_step(config, part: float, compiled: bool = False) -> Callable[[int], float]:
    """Returns a function that takes rounds with RecBole and returns the last loss.

    A round is `part` of an epoch.
    """
    import torch
    from recbole.model.sequential_recommender.sasrec import SASRec

    length, items = config.data.max_length, histories() + 1
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
        """Data set with the attributes that RecBole's model reads; item 0 is padding."""

        def num(self, field):
            return ITEMS + 1

    rng = np.random.default_rng(1)
    total = USERS * (EVENTS - 1)
    count = max(1, round(part * total / RECBOLE_BATCH))

    def batch():
        users, ends = (
            rng.integers(USERS, size=RECBOLE_BATCH),
            rng.integers(1, EVENTS, RECBOLE_BATCH),
        )
        rows = np.zeros((RECBOLE_BATCH, length), np.int64)
        for row, (user, end) in enumerate(zip(users, ends, strict=True)):
            latest = items[user, max(0, end - length) : end]
            rows[row, : len(latest)] = latest
        fields = {"item_list": rows, "length": np.minimum(ends, length), "item": items[users, ends]}
        return {name: torch.from_numpy(value).long() for name, value in fields.items()}

    torch.manual_seed(0)
    model = SASRec(theirs, Data()).train()
    batches = [batch() for _ in range(count)]
    run = torch_steps(
        model, config, batches, lambda model, batch: model.calculate_loss(batch), compiled
    )
    return lambda rounds: run(rounds * count)
