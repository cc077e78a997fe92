"""Flag that marks traces in which only shapes are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_shapes_only: list[bool] = []


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Declares that traces in this context compute only shapes, as under `jax.eval_shape`.

    "auto" then selects the reference kernel without initializing the devices.
    """
    _shapes_only.append(True)
    try:
        yield
    finally:
        _shapes_only.pop()


def only_shapes() -> bool:
    """Returns whether `shapes_only` is active."""
    return bool(_shapes_only)
