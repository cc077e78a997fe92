"""A Conformer with CTC in JAX and in PyTorch eager.

The model has the sizes of configs/speech_recognition.py:conformer,ctc: log-mel features, two
convolutions, Conformer layers, CTC, dropout, AdamW and gradient clipping, without augmentation. The
PyTorch layers are those of SeamlessM4T v2 in transformers, without position embeddings; the JAX
layers use RoPE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import engine_steps, torch_steps, unaugmented

CONFIG = "configs/speech_recognition.py:conformer,ctc"
WORDS = 5


def setup(batch_size: int | None = None, seconds: float = 2.0) -> tuple[Any, list]:
    """Returns the experiment and its batches of clips.

    Args:
      batch_size: clips per batch; 32 if None.
      seconds: length of a clip.
    """
    config = unaugmented(CONFIG, training__batch_size=batch_size or 32)
    return config, batches(config, seconds)


def batches(config, seconds: float, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Returns batches of clips of noise, with random words as targets."""
    rng, B = np.random.default_rng(0), config.training.batch_size
    P = round(seconds * config.data.features.sample_rate)
    return [
        {
            "samples": (1000 * rng.normal(size=(B, P))).astype(np.int16),
            "length": np.full(B, P, np.int32),
            "target": rng.integers(1, 11, (B, WORDS)).astype(np.int32),
            "weight": np.ones(B, np.float32),
            "id": np.arange(B, dtype=np.int32),
        }
        for _ in range(count)
    ]


def jax_step(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.common.text.tokenizer import Tokenizer
    from tasks.speech_recognition.datasets.spoken_digits import WORDS as DIGITS
    from tasks.speech_recognition.processor import SpeechProcessor
    from tasks.speech_recognition.task import SpeechRecognition

    bands = config.data.features.bands
    scale = (np.zeros(bands, np.float32), np.ones(bands, np.float32))
    tokenizer = Tokenizer.fit(DIGITS, config.data.text)
    processor = SpeechProcessor(config.data, config.model, tokenizer, *scale)
    return engine_steps(SpeechRecognition(config.data, config.model, processor), config, data)


def torch_step(
    config, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch and returns the last loss."""
    import torch
    from transformers import SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2 import modeling_seamless_m4t_v2 as library

    model, features = config.model, config.data.features
    options = SeamlessM4Tv2Config(
        hidden_size=model.model_size,
        speech_encoder_attention_heads=model.num_heads,
        speech_encoder_intermediate_size=model.feedforward_size,
        speech_encoder_dropout=model.dropout_rate,
        speech_encoder_hidden_act="swish",
        conv_depthwise_kernel_size=model.conv_kernel_size,
        position_embeddings_type="none",
        attn_implementation="sdpa",
    )
    window, hop = features.samples_of(features.window), features.samples_of(features.hop)
    filters, hann = torch.tensor(features.filters()), torch.hann_window(window)
    channels, rows = model.channels, (features.bands + 3) // 4

    class Recognizer(torch.nn.Module):
        """Log-mel features, convolutions, Conformer layers and CTC."""

        def __init__(self):
            super().__init__()
            self.convolutions = torch.nn.Sequential(
                torch.nn.Conv2d(1, channels, 3, stride=2, padding=1), torch.nn.ReLU(),
                torch.nn.Conv2d(channels, channels, 3, stride=2, padding=1), torch.nn.ReLU(),
            )  # fmt: skip
            self.project = torch.nn.Linear(rows * channels, model.model_size)
            self.layers = torch.nn.ModuleList(
                library.SeamlessM4Tv2ConformerEncoderLayer(options) for _ in range(model.num_layers)
            )
            self.out = torch.nn.Linear(model.model_size, 11)

        def forward(self, samples, target):
            spectrum = torch.stft(
                samples.float() / 32768, features.fft_size, hop, window, hann, center=False,
                return_complex=True,
            )  # fmt: skip
            power = spectrum.real.square() + spectrum.imag.square()
            x = torch.log(torch.clamp(filters @ power, min=features.floor))
            x = self.convolutions((x - x.mean(-1, keepdim=True)).swapaxes(1, 2)[:, None])
            x = self.project(x.permute(0, 2, 1, 3).flatten(2))
            for layer in self.layers:
                x = layer(x)
            scores = self.out(x).log_softmax(-1).swapaxes(0, 1)
            frames = torch.full((len(samples),), len(scores))
            words = torch.full((len(samples),), WORDS)
            total = torch.nn.functional.ctc_loss(scores, target, frames, words, reduction="sum")
            return total / words.sum()

    torch.manual_seed(0)
    tensors = [{name: torch.tensor(b[name]).long() for name in ("samples", "target")} for b in data]
    model = Recognizer().train()
    return torch_steps(model, config, tensors, lambda m, batch: m(**batch), compiled)
