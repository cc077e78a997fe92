"""Problems posed to this repository and to independent implementations.

Each file of families/ poses some, all functions of a case's name alone:

* `CASES`: names, unique in the repository.
* `inputs(case)`: a dict of arrays; floating-point ones are differentiated, except `cotangent`, by
  which the output named "out" is multiplied.
* `ours(case)`, `theirs(case)`: outputs by name, and gradients named `d_<input>`; only `theirs` may
  import anything of requirements-oracles.txt, inside the function.
* `LIVE = False`, optional: what `theirs` needs does not install beside the others, so only its
  golden file is compared; the family's docstring explains how to make it again.
* `PACKAGES`, optional: those whose versions the golden file names.

golden/<family>.npz keeps what `theirs` gave, for `make test`; `make test-oracles` asks live.
"""

import importlib
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

# float32 on both sides, sums of up to some hundred terms of order 1; in addition to 1e-5 relative,
# 1e-5 of the largest of its array.
RELATIVE = 1e-5
FOLDER = pathlib.Path(__file__).parent
FAMILIES = tuple(path.stem for path in sorted((FOLDER / "families").glob("[a-z]*.py")))


def family(name: str):
    """Returns the module of a family."""
    return importlib.import_module(f"tests.oracles.families.{name}")


def is_live(name: str) -> bool:
    """Returns True if a family can run in the environment of requirements-oracles.txt."""
    return getattr(family(name), "LIVE", True)


def cases(*, live: bool = False) -> list[tuple[str, str]]:
    """Returns (family, case) of all cases, or of those that can run live."""
    names = [name for name in FAMILIES if is_live(name) or not live]
    return [(name, case) for name in names for case in family(name).CASES]


def assert_equal(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Asserts that names are equal, and that arrays are equal to a relative error of 1e-5.

    The gradient of a key bias is 0, because the softmax ignores what is added to all keys. Both
    sides have rounding errors at the scale of the terms that cancel, that of the kernel's gradient.
    """
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        cancelling = name.startswith("d_") and name.endswith("/key/bias")
        kernel = expected.get(name.removesuffix("bias") + "kernel", array) if cancelling else array
        absolute = RELATIVE * max(1.0, np.abs(array).max(), np.abs(kernel).max())
        np.testing.assert_allclose(actual[name], array, rtol=RELATIVE, atol=absolute, err_msg=name)


def differentiate(
    compute: Callable[[dict], dict], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the outputs of a JAX function of the arrays, and the gradient of sum(out ·
    cotangent)."""
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    cotangent = arrays.pop("cotangent")
    learned = {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    fixed = {k: v for k, v in arrays.items() if k not in learned}

    @jax.jit
    def run(learned):
        results, backward = jax.vjp(lambda learned: compute(learned | fixed), learned)
        first = {name: jnp.zeros_like(array) for name, array in results.items()}
        return results, backward(first | {"out": cotangent})[0]

    results, gradient = run(learned)
    results = dict(results) | {f"d_{name}": array for name, array in gradient.items()}
    return {name: np.asarray(array) for name, array in results.items()}


def torch_answers(
    compute: Callable[[dict], dict], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Computes `differentiate` for a function of torch tensors."""
    import torch

    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    cotangent = tensors.pop("cotangent")
    learned = {k: v.requires_grad_() for k, v in tensors.items() if v.is_floating_point()}
    results = compute(tensors)
    (results["out"] * cotangent).sum().backward()
    results = dict(results)
    for name, tensor in learned.items():
        grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        results[f"d_{name}"] = grad
    return {name: tensor.detach().numpy() for name, tensor in results.items()}
