"""Semantic segmentation of images.

python -m launch.train --config=configs/segmentation.py:DATA,ATTENTION --workdir=runs/NAME

DATA is camvid (the default), camvid_480x360 (its frames at full size), land_water or own.
ATTENTION is none (the default), gates, or a map attention of `attention.registry` after every
stage, with its options: "scse", "cbam(reduction=4)". With an attention the network has fewer
channels, so that the number of parameters is within 2 % of the number without attention. `,long` at
the end selects a larger network and more steps, for an accelerator.

The default of camvid has 1.09 million parameters and 0.87 billion multiplications per image. Its
test mean IoU is 0.426 and its pixel accuracy 0.823 in eleven minutes on 2 cores (random forest:
0.253 and 0.692); with gates 0.403 and 0.809, one seed each. camvid_480x360 has 2.9 million
parameters; its test mean IoU is 0.539 and its pixel accuracy 0.871 (random forest: 0.253 and
0.691), one seed. land_water has mean IoU 0.955 in seven minutes (random forest on its colors:
0.952).

Your own images: mine/images/a.jpg, mine/masks/a.png with the class index of each pixel, and
mine/classes.txt with one name per line, from class 0; or a table with the paths of images and
masks, and the group of each image, such as its patient:

python -m launch.train --config=configs/segmentation.py:own --data=mine
    --config.data.image_size="(240, 320)" --workdir=runs/mine
python -m launch.train --config=configs/segmentation.py:own --data=scans.csv --image=scan
    --label=mask --group=patient --workdir=runs/mine

Black-and-white masks need --config.data.mask_values="(0, 255)"; otherwise pixels of value 255 are
void. With --config.data.fit=tiles, large images such as micrographs or aerial photographs are cut
into windows of image_size instead of being scaled. To draw predictions and attention maps over an
image of any size:

python -m launch.predict --workdir=runs/mine --input=new.jpg --figures=drawn
"""

import dataclasses
import re

from launch.engine.arguments import check_argument, wrong_argument
from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.data.user_files import OWN, UNSET
from tasks.common.images.augmentation import AugmentationConfig
from tasks.segmentation.data import DataConfig
from tasks.segmentation.datasets import CAMVID_FULL_SIZE, CAMVID_SIZE, DATA_SETS, LAND_SIDE
from tasks.segmentation.losses import LossConfig
from tasks.segmentation.unet import GATES, UNetConfig, match_parameter_count


def get_config(argument: str = "camvid"):
    """Returns the config of 'DATA', 'DATA,ATTENTION' or 'ATTENTION', optionally with ',long'."""
    known = (*DATA_SETS, OWN)
    names = {"DATA": known, "ATTENTION": ("none", GATES), "long": ("long",)}
    check_argument(argument, names)
    words = [word.strip() for word in argument.split(",")]
    long = words[-1] == "long"
    words = words[:-1] if long else words
    data = words.pop(0) if words and words[0] in known else "camvid"
    # Options of an attention may contain commas.
    attention = ",".join(words) or "none"
    options = re.findall(r"\w+(?:\.\w+)?", attention.removeprefix("none"))
    try:
        fields = _FIELDS[data](long)
        model = UNetConfig(**fields.pop("model"), attention=attention)
        if attention != "none":
            # The number of classes of user data is not known. It hardly affects the parameter
            # count, so the number of classes of camvid is used.
            of_data = "camvid" if data == OWN else data
            model = match_parameter_count(model, len(DATA_SETS[of_data].names))
    except ValueError as error:
        names = {"DATA": known, "ATTENTION": "none, gates or a map attention"}
        raise wrong_argument(error, argument, names) from None
    name = "_".join(["unet", *options, *(["long"] if long else [])])
    return experiment(task="segmentation", name=name, model=model, **fields)


def camvid(long: bool):
    """Returns the settings for 367 street frames, scaled to 240 x 180."""
    colors = {"brightness": 0.1, "contrast": 0.2, "saturation": 0.2}
    return {
        "data": DataConfig(
            augmentation=AugmentationConfig(flip=True, scale_min=0.8, scale_max=1.6, **colors)
        ),
        # Rare classes have little weight in the cross-entropy, but the same weight as others in
        # Dice.
        "model": {
            "channels": (32, 64, 128, 256) if long else (24, 48, 96, 192),
            "loss": LossConfig(cross_entropy=1.0, dice=1.0),
        },
        "optimizer": OptimizerConfig(
            learning_rate=3e-3,
            warmup_steps=50,
            weight_decay=0.05,
            average_decay=0.998 if long else 0.99,
        ),
        "training": TrainingConfig(
            steps=8000 if long else 1200,
            batch_size=16 if long else 8,
            evaluation_batch_size=16,
            evaluate_every=1000 if long else 300,
            log_every=25,
        ),
    }


def camvid_480x360(long: bool):
    """Returns the settings for the same frames at full size, with random crops in training."""
    fields = camvid(long)
    fields["data"] = DataConfig(
        name="camvid_480x360",
        image_size=CAMVID_FULL_SIZE,
        crop_size=CAMVID_SIZE,
        # At the smallest scale a crop shows the complete frame, as in `camvid`.
        augmentation=dataclasses.replace(fields["data"].augmentation, scale_min=0.5, scale_max=1.5),
    )
    # At full size, a cell of the fifth stage covers as much of a frame as a cell of the fourth
    # stage does at half size.
    fields["model"]["channels"] += fields["model"]["channels"][-1:]
    fields["optimizer"] = dataclasses.replace(fields["optimizer"], average_decay=0.998)
    fields["training"] = dataclasses.replace(
        fields["training"],
        steps=20000 if long else 6000,
        evaluation_batch_size=4,
        evaluate_every=1000,
    )
    return fields


def land_water(long: bool):
    """Returns the settings for 218 crops of the Blue Marble. Vertical flips keep labels valid."""
    return {
        "data": DataConfig(
            name="land_water",
            image_size=(LAND_SIDE, LAND_SIDE),
            fit="tiles",
            augmentation=AugmentationConfig(flip=True, flip_vertical=True),
        ),
        "model": {"channels": (32, 64, 128, 256) if long else (16, 32, 64, 128)},
        "optimizer": OptimizerConfig(
            learning_rate=3e-3, warmup_steps=20, weight_decay=0.05, average_decay=0.99
        ),
        "training": TrainingConfig(
            steps=3000 if long else 1800,
            batch_size=16,
            evaluation_batch_size=32,
            evaluate_every=500 if long else 300,
            log_every=25,
        ),
    }


def own(long: bool):
    """Returns the settings of `camvid` for user images."""
    fields = camvid(long)
    data = dataclasses.replace(fields["data"], name=OWN, path=UNSET)
    return {**fields, "data": data}


_FIELDS = {
    "camvid": camvid,
    "camvid_480x360": camvid_480x360,
    "land_water": land_water,
    OWN: own,
}
