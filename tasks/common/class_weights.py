"""Weights of classes in the training loss, for data whose classes have different frequencies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tasks.common.configs import LATER, Config

NONE, BALANCED = "none", "balanced"
_EXPECTED = (
    f"{NONE!r}, {BALANCED!r}, numbers above 0 in the order of the classes such as '1,5', or "
    f"CLASS=NUMBER such as 'spam=5'"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassWeightsConfig(Config):
    """Config of the class weights of a classifier.

    Attributes:
      class_weights: weights of the classes in the training loss. "none" gives equal weights.
        "balanced" gives weights that are inversely proportional to the number of training examples
        of the class. Numbers such as "1,5" are weights in the order of the classes. CLASS=NUMBER,
        such as "spam=5", is the weight of one class; classes that are not named have weight 1. The
        weights are scaled so that their mean over the training examples is 1. Metrics are not
        weighted.
    """

    class_weights: str = dataclasses.field(default=NONE, metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        if self.class_weights not in (NONE, BALANCED):
            self.expect("class_weights", self._given() is not None, _EXPECTED)

    def _given(self) -> list[tuple[str, float]] | None:
        """Parses the comma-separated weights.

        Returns:
          (class name, number) for each weight, where the name is "" in a list without names; None
          if the weights are malformed.
        """
        found = []
        for part in self.class_weights.split(","):
            name, equals, text = part.rpartition("=")
            try:
                number = float(text)
            except ValueError:
                return None
            if not 0 < number < float("inf") or (equals and not name.strip()):
                return None
            found.append((name.strip(), number))
        names = [name for name, _ in found]
        return found if all(names) or not any(names) else None

    def weights(self, labels: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
        """Computes the weight of each of the C classes.

        Args:
          labels: int [n], class of each of the n training examples.
          names: names of the classes.

        Returns:
          float32 [C]; None if `class_weights` is "none".

        Raises:
          ValueError: the number of weights differs from C, or a weight names an unknown class.
        """
        if self.class_weights == NONE:
            return None
        counts = np.bincount(labels, minlength=len(names)).astype(np.float64)
        given = [] if self.class_weights == BALANCED else self._given() or []
        if self.class_weights == BALANCED:
            found = 1 / np.maximum(counts, 1)
        elif all(name for name, _ in given):
            found = np.ones(len(names))
            for name, number in given:
                if name not in names:
                    raise ValueError(
                        f"class_weights: got the class {name!r}, expected one of "
                        f"{', '.join(names[:20])}"
                    )
                found[list(names).index(name)] = number
        elif len(given) != len(names):
            raise ValueError(
                f"class_weights: got {len(given)} numbers, expected {len(names)}, one for each of "
                f"the classes {', '.join(names[:20])}"
            )
        else:
            found = np.array([number for _, number in given])
        return (found * counts.sum() / (found * counts).sum()).astype(np.float32)
