"""Calls of `attend` to compile: kernels, options, dtypes and head sizes, and which are refused."""

import dataclasses
import itertools

DEVICES = {"a100": "a100x1", "h100": "h100x1", "v5e": "v5e:1"}
PLATFORMS = {"a100": "cuda", "h100": "cuda", "v5e": "tpu"}
# XLA's own programs are much the same for both GPUs, so those of one are compiled.
KERNELS = {
    "a100": ("triton", "cudnn", "tokamax"),
    "h100": ("triton", "cudnn", "tokamax", "blockwise", "reference"),
    "v5e": ("splash", "blockwise", "reference"),
}
OPTIONS = (
    *("none", "causal", "window", "lengths", "segments", "dense", "bias", "learned_bias"),
    *("logit_cap", "sinks", "grouped", "cross"),
)
DTYPES = ("bfloat16", "float16", "float32")
SIZES = (64, 80, 128, 256)
PASSES = ("forward", "backward")
# Kernels whose memory is linear in the length, but for arrays [T, S] that they are given.
FUSED = ("triton", "cudnn", "splash", "blockwise")
B, N, T, S = 2, 4, 1024, 1536
LONG = 4096


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
      device: one of `DEVICES`.
      kernel: name of the kernel.
      option: one of `OPTIONS`.
      dtype: dtype of query, key and value.
      size: H and V.
      which: one of `PASSES`; backward is both passes.
      length: number of queries, and of keys unless the option is "cross".
    """

    device: str
    kernel: str
    option: str
    dtype: str
    size: int
    which: str
    length: int = T

    @property
    def name(self):
        return "-".join(str(value) for value in dataclasses.astuple(self))


def parse(name):
    """Returns the case of a name."""
    *words, size, which, length = name.split("-")
    return Case(*words, int(size), which, int(length))


def refusal(case):
    """Returns the beginning of the message if the kernel refuses the case, else None."""
    kernel, option = case.kernel, case.option
    if kernel == "cudnn":
        if option in ("logit_cap", "sinks"):
            return f"{option}: not supported by cuDNN"
        if case.dtype == "float32":
            return "dtype: got float32, expected bfloat16 or float16"
        # On an A100 cuDNN has no backward pass for wider heads.
        if case.size == 256 and case.device == "a100":
            return "head size: got 256, expected a multiple of 8 up to 128"
        if option in ("segments", "dense"):
            return rf"mask: got {option}\(\), expected causal\(\), window\(\) and lengths\(\)"
        if case.size == 256:
            # JAX asks the GPU that is present, and none is a Hopper.
            return "The head dim must be <= 128 and a multiple of 8, but got 256"
    if kernel == "splash":
        if option in ("bias", "learned_bias"):
            return "bias: not supported by splash attention"
        if case.dtype == "float16":
            return "dtype: got float16, expected bfloat16 or float32"
        if option == "dense":
            return r"mask: got dense\(\), expected windows and ids"
    if kernel == "tokamax" and option == "sinks":
        return "sinks: not supported by tokamax"
    return None


def all_cases(device):
    """Returns all combinations for a device."""
    kernels = KERNELS[device]
    return [
        Case(device, *each) for each in itertools.product(kernels, OPTIONS, DTYPES, SIZES, PASSES)
    ]


def quick_cases(device):
    """Returns for each kernel and option one case, with dtypes and head sizes in turn."""
    found = []
    for shift, kernel in enumerate(KERNELS[device]):
        for number, option in enumerate(OPTIONS):
            dtype, size = DTYPES[(number + shift) % 3], SIZES[(number + shift) % 4]
            if kernel == "splash" and dtype == "float16":
                dtype = "float32"
            if kernel == "cudnn" and dtype == "float32":
                dtype = "bfloat16"
            found.append(Case(device, kernel, option, dtype, size, "backward"))
    return found


def growing_cases(device):
    """Returns pairs of a short and a long case whose temporaries are linear in the length."""
    found = []
    for kernel in KERNELS[device]:
        for option in ("causal", "lengths", "segments", "sinks", "bias"):
            dtype = "float32" if option == "sinks" else "bfloat16"
            case = Case(device, kernel, option, dtype, 64, "backward")
            # cuDNN gets a bias for each head.
            broadcast = (kernel, option) == ("cudnn", "bias")
            if kernel in FUSED and refusal(case) is None and not broadcast:
                found.append((case, dataclasses.replace(case, length=LONG)))
    return found


# Meshes of several devices: topology, sizes of the axes, and the kernels that run per device.
MESHES = {
    "h100x8": ("cuda", {"data": 2, "fsdp": 2, "tensor": 2}, ("triton", "cudnn", "auto")),
    "v5e:2x4": ("tpu", {"data": 2, "fsdp": 2, "tensor": 2}, ("splash", "auto")),
}


def mesh_cases(platform):
    """Returns the names of programs for several devices."""
    return [
        f"mesh-{topology}-{kernel}"
        for topology, (where, _, kernels) in MESHES.items()
        for kernel in kernels
        if where == platform
    ]
