"""Loading of a torchvision wheel for CUDA with a CPU build of PyTorch.

The missing CUDA libraries are replaced by compiled stubs, whose functions do nothing. The CPU
kernels of the wheel do not call these functions. Requires Linux with gcc and nm.
"""

import functools


@functools.cache
def load_torchvision():
    """Returns the package with its compiled operations, loaded without CUDA.

    Raises:
      ImportError: torchvision is not installed.
    """
    import ctypes
    import importlib.util
    import pathlib
    import subprocess
    import tempfile

    import torch  # noqa: F401  loads the libraries that torchvision needs

    found = importlib.util.find_spec("torchvision")
    if found is None:
        raise ImportError("torchvision is not installed")
    package = pathlib.Path(found.origin).parent
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", package / "_C.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wanted = [line.split()[-1].split("@")[0] for line in listing.splitlines()]
    functions = [
        f"void *{name}(void) {{ return 0; }}\n" for name in wanted if "cuda" in name.lower()
    ]
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "nothing.c").write_text("".join(functions))
    (folder / "versions").write_text("libcudart.so.13 { global: cuda*; __cuda*; };\n")
    for name in ("libcudart.so.13", "libc10_cuda.so", "libtorch_cuda.so"):
        command = ["gcc", "-shared", "-fPIC", folder / "nothing.c", "-o", folder / name]
        command.append(f"-Wl,-soname,{name}")
        if name.startswith("libcudart"):
            command.append(f"-Wl,--version-script,{folder / 'versions'}")
        subprocess.run(command, check=True)
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    import torchvision

    return torchvision
