"""Train steps of the recurrent translator, here and in PyTorch, side by side.

python -m benchmarks.steps.recurrent        (make bench brings torch)

The same model: sizes and options of configs/translation.py:rnn (a bidirectional GRU, and a GRU that
looks at its states by additive attention at every step), dropout, smoothed labels, AdamW, clipping;
the same batches, drawn once. The two take turns in rounds, and the ratio is that of the medians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags, logging

from benchmarks.comparison import compare, engine_steps, experiment, torch_steps

CONFIG, VOCABULARY = "configs/translation.py:rnn", 5000


def define_flags() -> None:
    """Those of this command."""
    flags.DEFINE_integer("steps", 3, "Train steps a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Rounds of each.", lower_bound=1)
    flags.DEFINE_integer("length", 24, "Tokens of the longest sentence.", lower_bound=2)


def setup(batch_size: int | None = None, length: int = 24) -> tuple[Any, list]:
    """The experiment, without what the peer lacks (means of the weights), and batches."""
    from launch.engine import config as configs

    changes: dict[str, Any] = {"optimizer.average_decay": 0.0}
    if batch_size is not None:
        changes["training.batch_size"] = batch_size
    config = configs.override(experiment(CONFIG), changes)
    return config, batches(config.training.batch_size, length)


def batches(batch_size: int, length: int, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Random sentences of half to full length on both sides, an end token after each."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        batch = {"weight": np.ones(batch_size, np.float32), "id": np.arange(batch_size)}
        for side in ("source", "target"):
            lengths = rng.integers(length // 2, length + 1, batch_size)
            lengths[0] = length
            tokens = rng.integers(3, VOCABULARY, (batch_size, length)).astype(np.int32)
            tokens[np.arange(batch_size), lengths - 1] = VOCABULARY + 1
            tokens[np.arange(length) >= lengths[:, None]] = 0
            batch[side] = tokens
        drawn.append(batch | {"id": batch["id"].astype(np.int32)})
    return drawn


class _Vocabulary:
    """Stands for a fitted tokenizer: the step needs its size alone."""

    size = VOCABULARY


def here(config: Any, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """A function that takes steps with this project's engine and returns the last loss."""
    from tasks.translation.processor import TranslationProcessor
    from tasks.translation.task import Translation

    processor = TranslationProcessor(config.data, config.model, _Vocabulary(), [])
    return engine_steps(Translation(config.data, config.model, processor), config, data)


def in_torch(
    config: Any, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """The same with PyTorch's own GRUs: packed for the encoder, a cell for the decoder, of which
    `torch.compile` gets the step, as a loop of steps would be unrolled.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    sizes = config.model
    V, E, D = VOCABULARY + 2, sizes.embedding_size, sizes.state_size

    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(V, E)
            self.encoder = nn.GRU(E, D // 2, bidirectional=True, batch_first=True)
            self.cell = nn.GRUCell(E + D, D)
            self.query, self.key = nn.Linear(D, D, bias=False), nn.Linear(D, D)
            self.score = nn.Linear(D, 1, bias=False)
            self.combine, self.classify = nn.Linear(2 * D, D), nn.Linear(D, V)
            self.dropout = nn.Dropout(sizes.dropout_rate)

        def look(self, word, context, state, memory, keys, hidden):
            """One step: the next state, and what it sees."""
            state = self.cell(torch.cat([word, context], -1), state)
            scores = self.score(torch.tanh(self.query(state)[:, None] + keys))[..., 0]
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            return state, torch.bmm(weights[:, None], memory)[:, 0]

        def forward(self, source, lengths, target):
            x = self.dropout(self.words(source))
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            states, last = self.encoder(packed)
            states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
            memory, state = self.dropout(states), torch.cat([last[0], last[1]], -1)
            keys, hidden = self.key(memory), source == 0
            start = torch.full_like(target[:, :1], VOCABULARY)
            words = self.dropout(self.words(torch.cat([start, target[:, :-1]], 1)))
            context, tops, contexts = torch.zeros_like(state), [], []
            for word in words.unbind(1):
                state, context = self.look(word, context, state, memory, keys, hidden)
                tops.append(state)
                contexts.append(context)
            seen = torch.cat([torch.stack(contexts, 1), torch.stack(tops, 1)], -1)
            return self.classify(self.dropout(torch.tanh(self.combine(seen))))

    torch.manual_seed(0)
    model = Translator().train()
    if compiled:
        model.look = torch.compile(model.look, dynamic=False)
    tensors = []
    for batch in data:
        source, target = (torch.from_numpy(batch[side]).long() for side in ("source", "target"))
        tensors.append((source, (source != 0).sum(1), target))

    def loss(model, batch):
        logits = model(*batch)
        return F.cross_entropy(
            logits.flatten(0, 1),
            batch[2].flatten(),
            ignore_index=0,
            label_smoothing=sizes.label_smoothing,
        )

    return torch_steps(model, config, tensors, loss)


def main(_: list[str]) -> None:
    """Prints seconds a round of each, and the ratio; see `compare`."""
    logging.set_verbosity(logging.WARNING)
    config, data = setup(length=flags.FLAGS.length)
    runs = {"here": here(config, data), "torch": in_torch(config, data)}
    for run in runs.values():
        run(len(data))
    compare(runs, steps=flags.FLAGS.steps, rounds=flags.FLAGS.rounds)


if __name__ == "__main__":
    define_flags()
    app.run(main)
