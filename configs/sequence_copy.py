"""Reversal or copying of strings of 4 to 20 digits by a GRU encoder-decoder.

python -m launch.train --config=configs/sequence_copy.py:ALIGNMENT --workdir=runs/NAME
python -m launch.train --config=configs/sequence_copy.py:copied_digits,ALIGNMENT --workdir=runs/NAME

At least 98.9 % of the test strings of 20 digits are correct with every alignment but "none". With
"none", the control with one fixed context vector, 9 % are correct. "local_p" first has to learn its
positions and needs twice the steps for 99.5 %: --config.training.steps=4200.
"""

import re

from attention import registry
from launch.engine.arguments import check_argument, wrong_argument
from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.data.user_files import OWN
from tasks.common.errors import UserError
from tasks.sequence_copy.data import DATA_SETS, DataConfig
from tasks.sequence_copy.model import EncoderDecoderConfig


def get_config(argument: str = "dot"):
    """Returns the config of 'ALIGNMENT' or 'DATA,ALIGNMENT'."""
    check_argument(argument, {"DATA": DATA_SETS, "ALIGNMENT": registry.names("alignment")})
    data, _, alignment = argument.partition(",")
    if data.strip() == OWN:
        raise UserError(
            f"config: sequence_copy takes no data of yours, because its strings of digits are "
            f"generated; expected one of {', '.join(DATA_SETS)}"
        )
    if data not in DATA_SETS:
        data, alignment = DATA_SETS[0], argument
    alignment = alignment or "dot"
    try:
        model = EncoderDecoderConfig(alignment=alignment, state_size=128, dropout_rate=0.1)
    except ValueError as error:
        names = {"DATA": DATA_SETS, "ALIGNMENT": "as above"}
        raise wrong_argument(error, argument, names) from None
    return experiment(
        task="sequence_copy",
        name=re.sub(r"[^\w.-]+", "_", alignment).strip("_"),
        data=DataConfig(name=data),
        model=model,
        optimizer=OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50, weight_decay=0.01, average_decay=0.99
        ),
        training=TrainingConfig(
            steps=2100, batch_size=64, evaluation_batch_size=256, evaluate_every=300, log_every=25
        ),
    )
