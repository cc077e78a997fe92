"""The parts of Mask R-CNN compared with torchvision's, compiled operations included.

The registry's wheel of torchvision is built for CUDA and does not load beside the CPU build of
PyTorch, which here is the one of requirements-oracles.txt; so there is no live test, and
golden/torchvision_detection.npz contains its results. To make it again, in a separate environment,
on Linux with gcc and nm:

    python -m venv torchvision-oracle
    torchvision-oracle/bin/pip install torch==2.13.0
    torchvision-oracle/bin/pip install --no-deps torchvision==0.28.0
    torchvision-oracle/bin/pip install pillow jax==0.10.2 flax==0.12.8
    torchvision-oracle/bin/python -m tests.oracles.make_golden torchvision_detection

`benchmarks.torchvision_cpu.load_torchvision` makes it load. Maps are [B, C, Y, X] there.
"""

import functools

import numpy as np

from benchmarks.torchvision_cpu import load_torchvision
from tests.oracles.problems import differentiate, torch_answers

LIVE = False
PACKAGES = ("torch", "torchvision")

Y, X, C = 9, 12, 3
STRIDES = (4, 8, 16)
SIZE = 3
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ROI = {"roi_align": True, "roi_align_not_aligned": False}
CODING = ("box_encoding", "box_decoding")
CASES = (
    *ROI,
    "multilevel_roi_align",
    *CODING,
    "box_iou",
    "anchors",
    "matching_anchors",
    "matching_proposals",
    "nms",
    "batched_nms",
    "mask_pasting",
    "mask_targets",
)


def _boxes(rng, n, side, least=1.0, most=0.5):
    """Returns boxes that may extend beyond a square."""
    corner = rng.uniform(-0.1 * side, 0.8 * side, (n, 2))
    sides = rng.uniform(least, most * side, (n, 2))
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def inputs(case):
    """Returns all arrays of a problem."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if case in ROI:
        return {
            "features": normal(Y, X, C),
            "boxes": _boxes(rng, 6, 4 * X),
            "cotangent": normal(6, SIZE, SIZE, C),
        }
    if case == "multilevel_roi_align":
        maps = {f"map_{stride}": normal(64 // stride, 96 // stride, C) for stride in STRIDES}
        boxes = _boxes(rng, 8, 64, most=1.0)
        return maps | {"boxes": boxes, "cotangent": normal(8, SIZE, SIZE, C)}
    if case in CODING:
        reference = _boxes(rng, 5, 50, least=4)
        boxes = _boxes(rng, 5, 50, least=4) if case == "box_encoding" else normal(5, 4) * 8
        return {"reference": reference, "boxes": boxes, "cotangent": normal(5, 4)}
    if case == "box_iou":
        return {"a": _boxes(rng, 5, 20), "b": _boxes(rng, 4, 20), "cotangent": normal(5, 4)}
    if case.startswith("matching"):
        # In steps, so that there are ties; each object overlaps an anchor.
        return {"iou": (rng.randint(0, 20, (4, 30)) / 20).astype(np.float32)}
    if case in ("nms", "batched_nms"):
        labels = rng.randint(0, 3, 60)
        return {"boxes": _boxes(rng, 60, 60), "scores": normal(60), "labels": labels}
    if case == "mask_pasting":
        return {"masks": rng.uniform(size=(6, 7, 7)).astype(np.float32), "boxes": _boxes(rng, 6, X)}
    if case == "mask_targets":
        instances = np.zeros((20, 24), np.int32)
        instances[3:12, 2:11], instances[8:18, 9:22], instances[0:4, 15:24] = 1, 2, 3
        return {
            "instances": instances,
            "objects": np.array([0, 1, 1, 2]),
            "boxes": np.array(
                [[2, 3, 11, 12], [8.5, 7, 20, 19], [12, 9, 14, 10], [10, -2, 26, 6]], np.float32
            ),
        }
    return {}


def ours(case):
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    import jax

    from tasks.detection.ops import anchors, boxes, matching, nms, pasting, roi_align

    arrays = inputs(case)
    if case in ROI:
        pool = functools.partial(
            roi_align.roi_align, scale=0.25, size=SIZE, sampling_ratio=2, aligned=ROI[case]
        )
        return differentiate(lambda a: {"out": pool(a["features"], a["boxes"])}, arrays)
    if case == "multilevel_roi_align":
        pool = functools.partial(
            roi_align.multilevel_roi_align, strides=STRIDES, size=SIZE, aligned=False
        )

        def compute(a):
            maps = [a[f"map_{stride}"] for stride in STRIDES]
            return {"out": pool(maps, a["boxes"], canonical_size=32.0, canonical_level=3)}

        return differentiate(compute, arrays)
    if case in CODING:
        code = boxes.encode if case == "box_encoding" else boxes.decode

        def compute(a):
            pair = (a["reference"], a["boxes"])
            return {"out": code(*(pair if case == "box_encoding" else pair[::-1]), WEIGHTS)}

        return differentiate(compute, arrays)
    if case == "box_iou":
        return differentiate(
            lambda a: {
                "out": boxes.generalized_iou(a["a"], a["b"]),
                "iou": boxes.iou(a["a"], a["b"]),
            },
            arrays,
        )
    if case == "anchors":
        return {
            "anchors": anchors.anchors([(6, 8), (3, 4)], (8, 16), ((8, 12), (33,)), (0.5, 1, 2))
        }
    if case.startswith("matching"):
        # A row of padding that would win everywhere.
        iou = np.concatenate([np.ones((1, 30), np.float32), arrays["iou"]])
        options = (0.7, 0.3, True) if case == "matching_anchors" else (0.5, 0.5, False)
        match = jax.jit(matching.match, static_argnums=(2, 3, 4))
        found = np.asarray(match(iou, np.arange(5) > 0, *options))
        return {"matches": np.where(found >= 0, found - 1, found)}
    if case in ("nms", "batched_nms"):
        # Rows that do not count, and that would suppress everything.
        a = {name: np.concatenate([array, array[:9]]) for name, array in arrays.items()}
        a["scores"][60:] = 99
        labels = a["labels"] if case == "batched_nms" else a["labels"] * 0
        indices, valid = jax.jit(nms.batched_nms, static_argnums=5)(
            a["boxes"], a["scores"], labels, np.arange(69) < 60, 0.3, 64
        )
        return {"kept": np.asarray(indices)[np.asarray(valid)]}
    if case == "mask_pasting":
        row = (arrays["masks"], arrays["boxes"], Y, X)
        return {"masks": pasting.paste(*row, aligned=False), "aligned": pasting.paste(*row)}
    crop = jax.jit(roi_align.mask_targets, static_argnames=("size", "sampling_ratio", "aligned"))
    return {
        name: np.asarray(crop(**arrays, size=5, aligned=aligned))
        for name, aligned in (("targets", False), ("aligned", True))
    }


def theirs(case):
    """Computes the same with torchvision."""
    import torch

    torchvision = load_torchvision()
    from torchvision.models import detection
    from torchvision.models.detection import _utils, roi_heads
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    ops = torchvision.ops
    arrays = inputs(case)
    if case in ROI:

        def compute(a):
            x, boxes = a["features"].permute(2, 0, 1)[None], [a["boxes"].detach()]
            out = ops.roi_align(x, boxes, SIZE, 0.25, 2, ROI[case])
            return {"out": out.permute(0, 2, 3, 1)}

        return torch_answers(compute, arrays)
    if case == "multilevel_roi_align":
        names = [f"map_{stride}" for stride in STRIDES]
        pool = ops.MultiScaleRoIAlign(names, SIZE, 2, canonical_scale=32, canonical_level=3)

        def compute(a):
            maps = {name: a[name].permute(2, 0, 1)[None] for name in names}
            out = pool(maps, [a["boxes"].detach()], [(64, 96)])
            return {"out": out.permute(0, 2, 3, 1)}

        return torch_answers(compute, arrays)
    if case in CODING:
        coder = _utils.BoxCoder(WEIGHTS)

        def compute(a):
            if case == "box_encoding":
                return {"out": coder.encode_single(a["boxes"], a["reference"])}
            return {"out": coder.decode_single(a["boxes"], a["reference"])}

        return torch_answers(compute, arrays)
    if case == "box_iou":
        return torch_answers(
            lambda a: {
                "out": ops.generalized_box_iou(a["a"], a["b"]),
                "iou": ops.box_iou(a["a"], a["b"]),
            },
            arrays,
        )
    if case == "anchors":
        generator = AnchorGenerator(((8, 12), (33,)), ((0.5, 1.0, 2.0),) * 2)
        images = ImageList(torch.zeros(1, 3, 48, 64), [(48, 64)])
        maps = [torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 3, 4)]
        return {"anchors": generator(images, maps)[0].numpy()}
    arrays = {name: torch.tensor(array) for name, array in arrays.items()}
    if case.startswith("matching"):
        options = (0.7, 0.3, True) if case == "matching_anchors" else (0.5, 0.5, False)
        return {"matches": detection._utils.Matcher(*options)(arrays["iou"]).numpy()}
    if case == "nms":
        return {"kept": ops.nms(arrays["boxes"], arrays["scores"], 0.3).numpy()}
    if case == "batched_nms":
        order = (arrays["boxes"], arrays["scores"], arrays["labels"], 0.3)
        return {"kept": ops.batched_nms(*order).numpy()}
    if case == "mask_pasting":
        masks, found = arrays["masks"][:, None], arrays["boxes"]
        # As in Detectron2: the center of each pixel in units of its box, from -1 to 1.
        low, sides = found[:, None, :2], (found[:, 2:] - found[:, :2])[:, None]
        x, y = (
            (torch.arange(length) + 0.5 - low[..., axis]) / sides[..., axis] * 2 - 1
            for axis, length in ((0, X), (1, Y))
        )
        grid = torch.stack([x[:, None].expand(-1, Y, -1), y[:, :, None].expand(-1, -1, X)], dim=3)
        aligned = torch.nn.functional.grid_sample(masks, grid, align_corners=False)
        pasted = roi_heads.paste_masks_in_image(masks, found, (Y, X))
        return {"masks": pasted[:, 0].numpy(), "aligned": aligned[:, 0].numpy()}
    masks = (arrays["instances"] == torch.arange(1, 4)[:, None, None]).float()[:, None]
    rows = torch.cat([arrays["objects"][:, None].float(), arrays["boxes"]], dim=1)
    return {
        name: ops.roi_align(masks, rows, 5, 1.0, 2, aligned)[:, 0].numpy()
        for name, aligned in (("targets", False), ("aligned", True))
    }
