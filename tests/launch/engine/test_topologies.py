"""Names of machines, and the refusal of names that describe none."""

import re

import pytest

from attention.kernels import devices
from launch.engine.topologies import GPUS, topology
from tasks.common.errors import UserError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ["expected a kind", "h100x8"]),
        ("h100", ["expected a kind", "number of devices"]),
        ("h100x0", ["expected a kind"]),
        ("g100x8", ["did you mean h100"]),
        ("h100:8", ["h100x8"]),
        ("h100x12", ["multiple of 8"]),
        ("v5e:2x2x2", ["3 dimensions", "v5e:2x2", "v5e:1"]),
        ("v5p:2x2", ["2 dimensions", "v5p:2x2x1"]),
        ("v5ex4", ["v5e:4x4"]),
        ("cpu:0", ["cpu:8"]),
        ("cpu:65536", ["cpu:8"]),
        ("cpu", ["cpu:8"]),
        ("４x４", ["expected a kind"]),
    ],
)
def test_name_that_describes_no_machine_is_refused(name, words):
    with pytest.raises(UserError) as refused:
        topology(name)
    for word in [f"--topology={name}: ", *words]:
        assert word in str(refused.value)


def test_devices_of_this_cpu():
    found = topology("cpu:1")
    assert (found.platform, len(found.devices), found.memory) == ("cpu", 1, None)


@pytest.mark.parametrize("name", GPUS)
def test_target_of_a_gpu_has_its_properties(name):
    gpu = GPUS[name]
    fields = dict(re.findall(r"(\w+): (\d+)\b", gpu.target))
    assert int(fields["device_memory_size"]) == gpu.memory
    assert int(fields["shared_memory_per_block_optin"]) < int(fields["shared_memory_per_core"])
    major, minor = devices.CAPABILITIES[gpu.model]
    assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in gpu.target
    assert gpu.target.count("{") == gpu.target.count("}")
