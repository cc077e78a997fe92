"""Two virtual devices give the losses of one, augmentation and sampling included."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.launch.conftest import ROOT

SCRIPT = """
import dataclasses, json, pathlib, sys
from launch.engine.devices import set_up_determinism
from launch.engine.sharding import MeshConfig, request_devices
from tasks.detection.augmentation import AugmentationConfig
from tests.tasks.detection import test_task as toy

set_up_determinism()
request_devices(MeshConfig(cpu_devices=2))
folder = pathlib.Path(sys.argv[1])
toy.write(folder)
changed = AugmentationConfig(flip=True, transpose=True, scale_min=0.8, scale_max=1.3, contrast=0.2)
data = toy.DataConfig(path=str(folder), image_size=toy.SIDE, augmentation=changed)
task = toy.TASK.prepare(data, toy.MODEL, None)
(batch,) = toy.evaluation_batches(task.examples("train"), batch_size=4)
found = []
for devices in (1, 2):
    steps = toy.engine(task, data, toy.MODEL, devices)
    _, losses = toy.train(steps, batch, 3)
    found.append([{name: float(value) for name, value in row.items()} for row in losses])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    one, two = json.loads(answer.stdout.splitlines()[-1])
    for left, right in zip(one, two, strict=True):
        for name in left:
            np.testing.assert_allclose(right[name], left[name], rtol=1e-3, atol=1e-5, err_msg=name)
