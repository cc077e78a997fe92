"""Draft."""

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.errors import UserError
from tasks.image_classification.data import DataConfig
from tasks.image_classification.model import ViTConfig


def get_config(head: str = "multi_head"):
    """The config of a head: "cls" or a pool of `attention.registry`."""
    try:
        model = ViTConfig(head=head)
    except ValueError as error:
        raise UserError(f"config: {error}") from None
    return experiment(
        task="image_classification",
        name=f"vit_{head}",
        data=DataConfig(),
        model=model,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.1),
        training=TrainingConfig(steps=1000, batch_size=64, evaluate_every=100, log_every=25),
    )
