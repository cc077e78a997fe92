"""Explanations in the Python API, and pages that show the attention of any model."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention import inspect
from launch.engine.writers import write_text
from tasks.common.errors import UserError
from tasks.explanation import AttentionMap, Axis, Explanation

# Height of a page in a notebook, in pixels.
_HEIGHT = 720


class Explanations(list[Explanation]):
    """Explanations, which notebooks show as an interactive page.

    Attributes:
      title: title of the page.
    """

    def __init__(self, explanations: Sequence[Explanation], title: str):
        """Initializes the list of explanations and the title of the page."""
        super().__init__(explanations)
        self.title = title

    def page(self) -> str:
        """Returns a self-contained HTML page, see `launch.reporting.explanation_page.page`."""
        from launch.reporting import explanation_page

        return explanation_page.page(self, self.title)

    def save(self, path: str | Path) -> Path:
        """Writes the page.

        Args:
          path: file, such as "page.html".

        Raises:
          UserError: the file cannot be written.
        """
        target = Path(path).expanduser()
        write_text(target, self.page())
        return target

    def _repr_html_(self) -> str:
        # A frame, because the styles and scripts of the page are for a whole document.
        return (
            f'<iframe title="{html.escape(self.title)}" width="100%" height="{_HEIGHT}" '
            f'style="border: 0" srcdoc="{html.escape(self.page())}"></iframe>'
        )


def show(
    model: Any, *inputs: Any, labels: Sequence[str] | None = None, example: int = 0, **options: Any
) -> Explanations:
    """Returns the attention of any model for its inputs as an interactive page.

        launch.show(model, tokens, lengths, labels=["the", "film", "was", "fine"])

    The model may be an `nnx` module, or any function of arrays that computes attention by this
    library, such as one that applies a Linen or Equinox model.

    Args:
      model, *inputs: as for `attention.inspect.capture`.
      labels: labels of the positions of the example that are not padding; weights of positions
        without a label are left out. None to number the positions.
      example: index of the shown example in the batch.
      **options: further arguments of `capture`, such as layers.

    Raises:
      ValueError: the model has no attention, or there is no such example.
      UserError: there are more labels than positions.
    """
    maps, axes = [], {}
    for name, weights in inspect.capture(model, *inputs, **options).items():
        each = _of_example(name, weights, example)
        sizes = each.shape[2:]
        names: list[str | None] = []
        for size in sizes:
            if size == 1:
                names.append(None)
                continue
            title = "positions" if labels is not None and size >= len(labels) else f"{size}"
            if title not in axes:
                count = len(labels) if labels is not None and title == "positions" else size
                given = labels if title == "positions" and labels is not None else range(count)
                axes[title] = Axis("token", [str(label) for label in given])
            names.append(title)
        cut = tuple(slice(len(axes[title].labels)) if title else slice(None) for title in names)
        keys = names[1]
        if keys is None:
            keys = "1"
            axes.setdefault(keys, Axis("token", ["0"]))
        maps.append(AttentionMap(name, each[(slice(None), slice(None), *cut)], names[0], keys))
    if labels is not None and "positions" not in axes:
        raise UserError(
            f"labels: got {len(labels)} labels, but no attention of the model has so many "
            f"positions; give one label for each position"
        )
    kind = type(model).__name__
    found = Explanation(
        id=str(example),
        input=" ".join(map(str, labels)) if labels is not None else f"example {example}",
        prediction="",
        target=None,
        explained="",
        axes=axes,
        maps=maps,
    )
    return Explanations([found], f"Attention of {kind}")


def _of_example(name: str, weights: np.ndarray, example: int) -> np.ndarray:
    """Selects the weights of one example, [layers, heads, queries, keys], from those of a batch."""
    # Shapes are [B, N, T, S], [B, heads, T], [B, S], or [calls, B, N, T, S] after several calls.
    calls = weights.ndim == 5
    batch = weights.shape[1 if calls else 0]
    if not -batch <= example < batch:
        raise ValueError(
            f"example: got {example}, expected {-batch} to {batch - 1} for the batch of {name!r}"
        )
    if calls:
        return weights[:, example]
    one = weights[example]
    if one.ndim == 3:
        return one[None]
    if one.ndim == 2:
        return one[None, :, None]
    return one.reshape(1, 1, 1, -1)
