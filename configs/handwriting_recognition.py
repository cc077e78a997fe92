"""Handwriting recognition of lines of digits.

python -m launch.train --config=configs/handwriting_recognition.py:DECODER --workdir=runs/NAME

Lines are composed of three to eight MNIST digits with random slant, thickness, spacing and noise.
No digit image occurs in two splits. DECODER is location_aware (the default) or another alignment of
`attention.registry` with its options: "additive", "multi_head(num_heads=4)", or "none", the control
with one fixed context vector. "temporal" is the additive alignment, with attention to earlier
decoder states. "ctc" has no decoder; "joint" combines CTC and location-aware attention. RESULTS.md
has the results.

User lines, from a manifest with the columns path and text, or a folder of images with a text file
beside each:

python -m launch.train --config=configs/handwriting_recognition.py --workdir=runs/mine
    --config.data.path=FOLDER

If there are few distinct texts, split by file with --config.data.split_by=file, or by a column of
the manifest: --config.data.split_by=writer.
"""

import re

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.backbones.transcriber import TranscriberConfig
from tasks.common.errors import UserError
from tasks.handwriting_recognition.data import DataConfig
from tasks.handwriting_recognition.datasets.digit_lines import Lines
from tasks.handwriting_recognition.model import LineConfig

_UNITS = 20


def get_config(argument: str = "location_aware"):
    """Returns the config of a decoder."""
    try:
        decoder = _transcriber(argument.strip())
    except ValueError as error:
        raise UserError(f"config: {error}; expected joint, ctc, temporal or an alignment") from None
    return experiment(
        task="handwriting_recognition",
        name="_".join(re.findall(r"\w+(?:\.\w+)?", argument)),
        data=DataConfig(
            train_size=60_000,
            # Without augmentation the model memorizes the 8,000 digits.
            train_lines=Lines(slant=0.5, scale=0.25, thickness=0.7, wobble=0.15),
        ),
        model=LineConfig(dropout_rate=0.2, transcriber=decoder),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=0.01,
            average_decay=0.99,
            clip_norm=5.0,
        ),
        training=TrainingConfig(
            steps=3500, batch_size=64, evaluation_batch_size=100, evaluate_every=500, log_every=25
        ),
    )


def _transcriber(name: str) -> TranscriberConfig:
    if name == "ctc":
        return TranscriberConfig(
            decoder="none", ctc_weight=1.0, decoding_ctc_weight=0.0, max_length=_UNITS
        )
    if name == "joint":
        return TranscriberConfig(alignment="location_aware", max_length=_UNITS)
    attention_only = {"ctc_weight": 0.0, "decoding_ctc_weight": 0.0, "max_length": _UNITS}
    if name == "temporal":
        return TranscriberConfig(alignment="additive", temporal_attention=4, **attention_only)
    return TranscriberConfig(alignment=name, **attention_only)
