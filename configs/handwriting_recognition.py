"""Handwriting recognition: lines of digits.

python -m launch.train --config=configs/handwriting_recognition.py:WRITER --workdir=runs/NAME

The lines are composed: three to eight digits of MNIST, slanted, thick or thin, close or far, in
noise; no digit is in two splits. WRITER is location_aware (if none is named) or another alignment
of `attention.registry`, with options if any, whose decoder writes alone: "additive",
"multi_head(num_heads=4)", "none", the control that has one fixed vector; "temporal", additive with
attention to the decoder's own past as well; ctc; or joint. See RESULTS.md for what to expect.

One's own lines, from a manifest with the columns path and text, or a folder of pictures with a
text file beside each:

python -m launch.train --config=configs/handwriting_recognition.py --workdir=runs/mine
    --config.data.path=FOLDER

Of few distinct texts validation and test are split off with --config.data.split_by=file, or by a
column of the manifest: --config.data.split_by=writer.
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
    """The config of a writer."""
    try:
        writer = _writer(argument.strip())
    except ValueError as error:
        raise UserError(
            f"config: {error}; WRITER is joint, ctc, temporal or an alignment"
        ) from None
    return experiment(
        task="handwriting_recognition",
        name="_".join(re.findall(r"\w+(?:\.\w+)?", argument)),
        data=DataConfig(
            train_size=60_000,
            # Of 8,000 digits that never change a model learns the pixels.
            train_lines=Lines(slant=0.5, scale=0.25, thickness=0.7, wobble=0.15),
        ),
        model=LineConfig(dropout_rate=0.2, transcriber=writer),
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


def _writer(name: str) -> TranscriberConfig:
    if name == "ctc":
        return TranscriberConfig(
            decoder="none", ctc_weight=1.0, decoding_ctc_weight=0.0, max_length=_UNITS
        )
    if name == "joint":
        return TranscriberConfig(alignment="location_aware", max_length=_UNITS)
    alone = {"ctc_weight": 0.0, "decoding_ctc_weight": 0.0, "max_length": _UNITS}
    if name == "temporal":
        return TranscriberConfig(alignment="additive", temporal_attention=4, **alone)
    return TranscriberConfig(alignment=name, **alone)
