"""Segmentation of pictures."""

import re

from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.augmentation import AugmentationConfig
from tasks.common.errors import UserError
from tasks.segmentation.data import DataConfig
from tasks.segmentation.datasets import DATA_SETS
from tasks.segmentation.unet import UNetConfig, matched


def get_config(argument: str = "camvid"):
    """The config of 'DATA', 'DATA,ATTENTION' or 'ATTENTION', with ',long' after it or not."""
    words = [word.strip() for word in argument.split(",")]
    data = words.pop(0) if words[0] in DATA_SETS else "camvid"
    long = bool(words) and words[-1] == "long"
    attention = ",".join(words[:-1] if long else words) or "none"
    try:
        return experiment(task="segmentation", **fields(data, attention, long))
    except ValueError as error:
        raise UserError(f"config: {error}") from None


def fields(data: str, attention: str, long: bool):
    model = UNetConfig(attention=attention)
    if attention != "none":
        model = matched(model, len(DATA_SETS[data].names))
    words = re.findall(r"\w+(?:\.\w+)?", attention.removeprefix("none"))
    return {
        "name": "_".join(["unet", *words, *["long"] * long]),
        "data": DataConfig(
            name=data, augmentation=AugmentationConfig(flip=True, scale_min=0.8, scale_max=1.6)
        ),
        "model": model,
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=50, weight_decay=0.02),
        "training": TrainingConfig(
            steps=800, batch_size=8, evaluation_batch_size=16, evaluate_every=200, log_every=20
        ),
    }
