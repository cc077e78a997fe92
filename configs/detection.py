"""Object detection and instance segmentation.

python -m launch.train --config=configs/detection.py:DATA,MODEL --workdir=runs/NAME

DATA is nuclei (the default), clothes_on_satellite (composed images), trees (boxes only) or own.
MODEL is mask_rcnn (the default), long (a larger mask_rcnn, for an accelerator), detr
(boxes only), or a map attention of `attention.registry` with its options, which is added after each
stage of the backbone of Mask R-CNN: "nuclei,cbam", "clothes_on_satellite,se(reduction=4)".

Test results of mask_rcnn with seed 0 on 2 cores: nuclei has mask AP50 0.860, mask AP 0.530 and DSB
2018 score 0.573 in 23 minutes (baseline of Otsu threshold and discs: 0.736, 0.365, 0.483).
clothes_on_satellite has box AP50 0.798 and mask AP50 0.797 in 20 minutes, trees box AP50 0.348 in
30. The default config of detr has no recorded run; detr needs far more steps.

Your own images with annotations in COCO format, for objects of a tenth to half of the image width:

python -m launch.train --config=configs/detection.py:own --data=mine.json
    --config.data.images=FOLDER --workdir=runs/mine

Boxes and masks of an image with an EXIF orientation refer to the stored pixels, unless the sizes
in the annotations are those of the rotated image.
"""

import re

from launch.engine.arguments import check_argument, wrong_argument
from launch.engine.config import TrainingConfig, experiment
from launch.engine.optimizers import OptimizerConfig
from tasks.common.backbones.resnet import ResNetConfig
from tasks.common.data.user_files import OWN, UNSET, cut_path
from tasks.detection.augmentation import AugmentationConfig
from tasks.detection.data import DataConfig
from tasks.detection.models.detr import DETRConfig
from tasks.detection.models.heads import HeadsConfig
from tasks.detection.models.mask_rcnn import MaskRCNNConfig
from tasks.detection.models.rpn import RPNConfig

DATA = ("nuclei", "clothes_on_satellite", "trees", OWN)
PATH = "path:"


def get_config(argument: str = "nuclei"):
    """Returns the config of 'DATA', 'DATA,MODEL' or 'MODEL'."""
    data, model = cut_path(argument, PATH)
    if not data.startswith(PATH):
        check_argument(argument, {"DATA": DATA, "MODEL": ("mask_rcnn", "long", "detr")})
    if data not in DATA and not data.startswith(PATH):
        data, model = "nuclei", argument
    try:
        fields = _fields(data, model or "mask_rcnn")
    except ValueError as error:
        models = "mask_rcnn, long, detr or a map attention"
        names = {"DATA": (*DATA, f"{PATH}FILE"), "MODEL": models}
        raise wrong_argument(error, argument, names) from None
    optimizer = OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=100,
        weight_decay=0.02,
        final_fraction=0.02,
        average_decay=0.995,
        clip_norm=5.0,
    )
    return experiment(task="detection", data=_data(data), optimizer=optimizer, **fields)


def _fields(data: str, model: str):
    if model == "detr":
        return detr(data)
    if model in ("mask_rcnn", "long"):
        return mask_rcnn(data, "none", long=model == "long")
    return mask_rcnn(data, model, long=False)


def _data(name: str):
    if name == "nuclei":
        changed = {"transpose": True, "flip_vertical": True, "scale_min": 0.8, "scale_max": 1.3}
        changed |= {"brightness": 0.1, "contrast": 0.3}
    elif name == "clothes_on_satellite":
        changed = {}
    else:
        changed = {"scale_min": 0.7, "scale_max": 1.4, "brightness": 0.1, "contrast": 0.2}
        if name == "trees":
            # The images of the splits differ in color and brightness.
            changed |= {"transpose": True, "flip_vertical": True}
            changed |= {"brightness": 0.25, "contrast": 0.3, "saturation": 0.3, "hue": 0.03}
    source = {"path": name.removeprefix(PATH)} if name.startswith(PATH) else {"name": name}
    if name == OWN:
        source["path"] = UNSET
    return DataConfig(**source, augmentation=AugmentationConfig(flip=True, **changed))


def mask_rcnn(data: str, attention: str, long: bool):
    """Returns the settings of Mask R-CNN on a small ResNet, with anchors for the object sizes."""
    words = re.findall(r"\w+(?:\.\w+)?", attention.removeprefix("none"))
    name = "_".join(["mask_rcnn", *words, *(["long"] if long else [])])
    build = {"nuclei": _nuclei, "clothes_on_satellite": _clothes, "trees": _trees}.get(
        data, _images
    )
    model, training = build(attention, long)
    return {"name": name, "model": model, "training": training}


def _backbone(attention: str, channels: tuple[int, ...]):
    return ResNetConfig(
        channels=channels,
        depths=(2,) * len(channels),
        attention=attention,
        norm="group",
        stem_stride=2,
    )


def _training(steps: int, batch_size: int, evaluations: int):
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        evaluation_batch_size=batch_size,
        evaluate_every=steps // evaluations,
        log_every=20,
    )


def _nuclei(attention: str, long: bool):
    """Returns model and training for up to 100 round objects of 5 to 30 pixels.

    Round objects need only one aspect ratio, and small ones need features at stride 2.
    """
    channels = (48, 96, 192) if long else (24, 48, 96)
    width = 96 if long else 48
    model = MaskRCNNConfig(
        backbone=_backbone(attention, channels),
        pyramid_channels=width,
        rpn=RPNConfig(sizes=(10, 20, 40), ratios=(1.0,), positive_iou=0.5, samples=256),
        heads=HeadsConfig(
            samples=256 if long else 128,
            positive_fraction=0.375,
            mask_resolution=14 if long else 10,
            mask_channels=width,
            hidden_size=256 if long else 192,
        ),
    )
    return model, _training(6000, 8, 15) if long else _training(1440, 4, 4)


def _from_stage_2(attention: str, long: bool, rpn: RPNConfig, heads: HeadsConfig):
    channels = (32, 64, 128, 256) if long else (16, 32, 64, 128)
    return MaskRCNNConfig(
        backbone=_backbone(attention, channels),
        first_stage=2,
        pyramid_channels=64,
        rpn=rpn,
        heads=heads,
    )


def _clothes(attention: str, long: bool):
    """Returns model and training for up to six objects of 14 to 55 pixels in 128 x 128 images."""
    rpn = RPNConfig(sizes=(16, 28, 48), positive_iou=0.6, pre_nms_top_k=100, post_nms_top_k=60)
    heads = HeadsConfig(samples=32, canonical_scale=24.0, pre_nms_top_k=100, detections=20)
    training = _training(8000, 32, 10) if long else _training(1200, 16, 4)
    return _from_stage_2(attention, long, rpn, heads), training


def _images(attention: str, long: bool):
    """Returns model and training for objects of 16 to 150 pixels in images of 256 x 256."""
    rpn = RPNConfig(sizes=(20, 40, 80), positive_iou=0.6)
    heads = HeadsConfig(samples=64, canonical_scale=28.0)
    training = _training(6000, 16, 10) if long else _training(960, 4, 4)
    return _from_stage_2(attention, long, rpn, heads), training


def _trees(attention: str, long: bool):
    """Returns the settings of `_images` with more steps, because images of the splits differ."""
    model, training = _images(attention, long)
    return model, training if long else _training(3200, 4, 8)


def detr(data: str):
    """Returns the settings of DETR with as many queries as an image may have objects."""
    clothes = data == "clothes_on_satellite"
    queries = {"nuclei": 150, "clothes_on_satellite": 20, "trees": 50}
    channels = (32, 64, 128) if clothes else (16, 32, 64, 128)
    return {
        "name": "detr",
        "model": DETRConfig(backbone=_backbone("none", channels), queries=queries.get(data, 100)),
        "training": _training(2400, 16, 4) if clothes else _training(960, 4, 4),
    }
