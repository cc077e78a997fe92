"""Train steps of a Conformer with CTC, here and in PyTorch eager, side by side: time, and memory at
its peak.

python -m benchmarks.steps.speech        (make bench brings torch and transformers)

The same model: sizes of configs/speech_recognition.py:conformer,ctc - log-mel features, two
convolutions, Conformer layers, CTC, dropout, AdamW, clipping - on the same batches of noise, drawn
once, without augmentation. In PyTorch the layers are those that transformers has of SeamlessM4T v2,
without positions; ours turn queries and keys (RoPE). The two take turns in rounds, and the ratio is
that of the medians. Memory is measured in a process of each one's own: how much larger its resident
set is at most, in steps after the first, than before the model is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from absl import app, flags, logging

from benchmarks.comparison import (
    define_flags,
    engine_steps,
    time_and_memory,
    torch_steps,
    unaugmented,
)

define_flags()
flags.DEFINE_integer("batch_size", 32, "Clips a step.", lower_bound=1)
flags.DEFINE_float("seconds", 2.0, "Length of a clip.", 0.1, 60.0)

CONFIG = "configs/speech_recognition.py:conformer,ctc"
WORDS = 5


def batches(config, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Batches of noise, and words that nobody said."""
    rng, B = np.random.default_rng(0), config.training.batch_size
    P = round(flags.FLAGS.seconds * config.data.features.sample_rate)
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


def here(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """A function that takes steps with this project's engine and returns the last loss."""
    from tasks.common.text.tokenizer import Tokenizer
    from tasks.speech_recognition.datasets.spoken_digits import WORDS as DIGITS
    from tasks.speech_recognition.processor import SpeechProcessor
    from tasks.speech_recognition.task import SpeechRecognition

    bands = config.data.features.bands
    scale = (np.zeros(bands, np.float32), np.ones(bands, np.float32))
    tokenizer = Tokenizer.fit(DIGITS, config.data.text)
    processor = SpeechProcessor(config.data, config.model, tokenizer, *scale)
    return engine_steps(SpeechRecognition(config.data, config.model, processor), config, data)


def torch_eager(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """The same in PyTorch."""
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
        conv_depthwise_kernel_size=model.width,
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
    return torch_steps(Recognizer().train(), config, tensors, lambda m, batch: m(**batch))


def main(_: list[str]) -> None:
    """See `time_and_memory`."""
    logging.set_verbosity(logging.WARNING)
    B = flags.FLAGS.batch_size
    config = unaugmented(CONFIG, training__batch_size=B)
    data = batches(config)
    time_and_memory(
        "benchmarks.steps.speech",
        {"here": lambda: here(config, data), "torch": lambda: torch_eager(config, data)},
        {"here": "tasks.speech_recognition.task", "torch": "transformers"},
        [f"--batch_size={B}", f"--seconds={flags.FLAGS.seconds}"],
    )


if __name__ == "__main__":
    app.run(main)
