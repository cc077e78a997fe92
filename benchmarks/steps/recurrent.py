"""Recurrent translator in JAX and in PyTorch.

The model has the sizes and options of configs/translation.py:rnn: a bidirectional GRU encoder, a
GRU decoder with additive attention at every step, dropout, label smoothing, AdamW and gradient
clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import Vocabulary, engine_steps, experiment, torch_steps

CONFIG, VOCABULARY = "configs/translation.py:rnn", 5000


def setup(batch_size: int | None = None, length: int = 24) -> tuple[Any, list]:
    """Returns the experiment and its batches. EMA is off, because the PyTorch model lacks it."""
    from launch.engine import config as configs

    changes: dict[str, Any] = {"optimizer.average_decay": 0.0}
    if batch_size is not None:
        changes["training.batch_size"] = batch_size
    config = configs.override(experiment(CONFIG), changes)
    return config, batches(config.training.batch_size, length)


def batches(
    batch_size: int, length: int, count: int = 3, vocabulary: int = VOCABULARY
) -> list[dict[str, np.ndarray]]:
    """Returns batches of random sentence pairs.

    Args:
      batch_size: sentence pairs per batch.
      length: maximum length. The length of a sentence, with the end token, is between half of
        it and all of it.
      count: number of batches.
      vocabulary: size of the vocabulary without start and end tokens.
    """
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        batch = {"weight": np.ones(batch_size, np.float32), "id": np.arange(batch_size)}
        for side in ("source", "target"):
            lengths = rng.integers(length // 2, length + 1, batch_size)
            lengths[0] = length
            tokens = rng.integers(3, vocabulary, (batch_size, length)).astype(np.int32)
            tokens[np.arange(batch_size), lengths - 1] = vocabulary + 1
            tokens[np.arange(length) >= lengths[:, None]] = 0
            batch[side] = tokens
        drawn.append(batch | {"id": batch["id"].astype(np.int32)})
    return drawn


def jax_step(
    config: Any, data: list[dict[str, np.ndarray]], vocabulary: int = VOCABULARY
) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.translation.processor import TranslationProcessor
    from tasks.translation.task import Translation

    processor = TranslationProcessor(config.data, config.model, Vocabulary(vocabulary), [])
    return engine_steps(Translation(config.data, config.model, processor), config, data)


def torch_step(
    config: Any, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch's GRU and, in the decoder, GRU cell.

    `torch.compile` is applied only to a step of the decoder, because it would unroll a loop over
    the steps.
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

        def decode(self, word, context, state, memory, keys, hidden):
            """Returns the next state and the context vector."""
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
                state, context = self.decode(word, context, state, memory, keys, hidden)
                tops.append(state)
                contexts.append(context)
            read = torch.cat([torch.stack(contexts, 1), torch.stack(tops, 1)], -1)
            return self.classify(self.dropout(torch.tanh(self.combine(read))))

    torch.manual_seed(0)
    model = Translator().train()
    if compiled:
        model.decode = torch.compile(model.decode, dynamic=False)
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
