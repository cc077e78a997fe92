"""Handwriting recognition of lines of digits.

python -m launch.train --config=configs/handwriting_recognition.py:DATA,DECODER --workdir=runs/NAME

DATA is digit_strings (the default, which may be left out) or own. Lines of digit_strings are
composed of three to eight MNIST digits with random slant, thickness, spacing and noise.
No digit image occurs in two splits. DECODER is location_aware (the default) or another alignment of
`attention.registry` with its options: "additive", "multi_head(num_heads=4)", or "none", the control
with one fixed context vector. "temporal" is the additive alignment, with attention to earlier
decoder states. "ctc" has no decoder; "joint" combines CTC and location-aware attention. "ctc_long"
is "ctc" with elastic distortion of the digits, twice as many training lines and twice as many
steps. RESULTS.md has the results.

Your own lines: a manifest with columns of paths and texts, or a folder of images with a text file
beside each. With --group, no writer is in two splits:

python -m launch.train --config=configs/handwriting_recognition.py:own,ctc --data=lines.csv
    --image=path --text=text --group=writer --workdir=runs/mine

If there are few distinct texts and no writers, split by file with --config.data.split_by=file.
"""

import re

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.backbones.transcriber import TranscriberConfig
from tasks.common.data.user_files import OWN, UNSET
from tasks.common.errors import UserError
from tasks.handwriting_recognition.data import NAMES, DataConfig
from tasks.handwriting_recognition.datasets.digit_lines import Lines
from tasks.handwriting_recognition.model import LineConfig

# Largest number of units of a line of digits, and of a line in a user file.
_UNITS, _LONGEST = 20, 120


def get_config(argument: str = "location_aware"):
    """Returns the config of 'DATA,DECODER', each of them optional."""
    data, _, rest = argument.partition(",")
    if data.strip() not in (*NAMES, OWN):
        data, rest = NAMES[0], argument
    is_own, name = data.strip() == OWN, rest.strip() or "location_aware"
    is_long = name == "ctc_long"
    # Without augmentation the model memorizes the 8,000 digits.
    lines = Lines(slant=0.5, scale=0.25, thickness=0.7, wobble=0.15, elastic=1.0 * is_long)
    try:
        decoder = _transcriber("ctc" if is_long else name, _LONGEST if is_own else _UNITS)
    except ValueError as error:
        raise UserError(
            f"config: {error}; expected joint, ctc, ctc_long, temporal or an alignment"
        ) from None
    return experiment(
        task="handwriting_recognition",
        name="_".join(re.findall(r"\w+(?:\.\w+)?", name)),
        data=DataConfig(
            name=data.strip(),
            path=UNSET if is_own else None,
            train_size=120_000 if is_long else 60_000,
            train_lines=lines,
        ),
        model=LineConfig(dropout_rate=0.2, transcriber=decoder),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=0.01,
            average_decay=0.999 if is_long else 0.99,
            clip_norm=5.0,
        ),
        training=TrainingConfig(
            steps=7000 if is_long else 3500,
            batch_size=64,
            evaluation_batch_size=100,
            evaluate_every=500,
            log_every=25,
        ),
    )


def _transcriber(name: str, units: int) -> TranscriberConfig:
    if name == "ctc":
        return TranscriberConfig(
            decoder="none", ctc_weight=1.0, decoding_ctc_weight=0.0, max_length=units
        )
    if name == "joint":
        return TranscriberConfig(alignment="location_aware", max_length=units)
    attention_only = {"ctc_weight": 0.0, "decoding_ctc_weight": 0.0, "max_length": units}
    if name == "temporal":
        return TranscriberConfig(alignment="additive", temporal_attention=4, **attention_only)
    return TranscriberConfig(alignment=name, **attention_only)
