"""Handwritten digits of 8 x 8 pixels by a small Vision Transformer.

python -m launch.train --config=configs/image_classification.py --workdir=runs/digits

Within a minute on 2 cores: test accuracy 0.977 ± 0.003 over seeds 0 to 2, beside 0.959 of logistic
regression and 0.985 of an RBF-SVM on the pixels. On 342 test pictures the standard error of each is
near 0.008. `:cls` after the file's name takes a classification token in place of the learned query;
any pool of `attention.registry` may stand there.
"""

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
        training=TrainingConfig(steps=1500, batch_size=64, evaluate_every=150, log_every=25),
    )
