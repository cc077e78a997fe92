"""Draft."""

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.errors import UserError
from tasks.sequence_copy.data import DataConfig
from tasks.sequence_copy.model import EncoderDecoderConfig


def get_config(alignment: str = "dot"):
    """The config of an alignment of `attention.registry`."""
    try:
        model = EncoderDecoderConfig(alignment=alignment)
    except ValueError as error:
        raise UserError(f"config: {error}") from None
    return experiment(
        task="sequence_copy",
        name=alignment,
        data=DataConfig(),
        model=model,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
        training=TrainingConfig(
            steps=1500,
            batch_size=64,
            evaluation_batch_size=256,
            evaluate_every=300,
            log_every=25,
        ),
    )
