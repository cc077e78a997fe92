"""Compiled functions that score a prediction while positions of its input are replaced.

The U positions of an input have gates in [0, 1]: 1 keeps a position, 0 replaces it, and a value
in between mixes the position with its replacement; see `tasks.explainer.Explainer.score`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from attention import attribution
from launch.engine import sharding
from launch.engine import state as states
from tasks.explainer import Explainer

# Number of points in the sum of integrated gradients, and number of points of a curve after its
# first point.
_PATH, _POINTS = 32, 20
# Number of positions whose occlusion is computed at a time.
_ROWS = 8


class Scorer:
    """Computation of prediction scores for one model, and attribution of scores to positions.

    Each function is compiled once for each shape of the inputs.

    Args:
      explainer: explainer of the task.
      mesh: device mesh that the model runs on.
      variables: variables of the model, as `launch.engine.steps.Steps.predict` takes them.
      seed: seed of the config.
    """

    def __init__(self, explainer: Explainer, mesh: Any, variables: Any, seed: int):
        self.explainer, self.variables = explainer, variables
        graph = states.graph_definition(explainer.task, seed)

        def score_of(variables: Any, inputs: Any, target: Any, gates: Any) -> Any:
            model = states.merge_model(graph, variables["params"], variables["statistics"])
            return explainer.score(model, inputs, gates, target)

        # Uncompiled, for functions that differentiate it.
        self.score = score_of

        def compiled(function: Callable[..., Any]) -> Any:
            def call(variables: Any, inputs: Any, target: Any, *arrays: Any) -> Any:
                score = lambda gates: score_of(variables, inputs, target, gates)  # noqa: E731
                return function(score, *arrays)

            return sharding.OnMesh(jax.jit(call), mesh)

        self._scores = compiled(lambda score, gates: score(gates))
        self._gradient = compiled(attribution.gradient_times_input)
        self._integrated = compiled(
            lambda score, gates: attribution.integrated_gradients(score, gates, steps=_PATH)
        )
        self._occlusion = compiled(attribution.occlusion)
        self._curves = compiled(
            lambda score, order, valid: [
                curve(score, order, valid=valid, steps=_POINTS)
                for curve in (attribution.deletion_curve, attribution.insertion_curve)
            ]
        )

    def with_variables(self, variables: Any) -> Scorer:
        """Returns a scorer for other variables that uses the same compiled functions."""
        found = copy.copy(self)
        found.variables = variables
        return found

    def scores(self, inputs: Mapping[str, Any], target: Any, gates: np.ndarray) -> np.ndarray:
        """Returns the score for each row of gates.

        Args:
          inputs: inputs of the model, with one row.
          target: see `tasks.explainer.Explainer.target`.
          gates: G rows of gates for the U positions, [G, U].

        Returns:
          Scores [G].
        """
        return np.asarray(self._call(self._scores, inputs, target, np.float32(gates)))

    def gradient(self, inputs: Mapping[str, Any], target: Any) -> np.ndarray:
        """Returns the derivative [U] of the score with respect to each gate, at gates of 1."""
        gates = np.ones((1, self._width(inputs)), np.float32)
        return np.asarray(self._call(self._gradient, inputs, target, gates)[0])

    def integrated(self, inputs: Mapping[str, Any], target: Any) -> tuple[np.ndarray, float]:
        """Returns the integrated gradients from gates 0 to 1, [U], and their convergence gap."""
        gates = np.ones((1, self._width(inputs)), np.float32)
        found = self._call(self._integrated, inputs, target, gates)
        return np.asarray(found.attributions[0]), float(found.gap[0])

    def occlusion(self, inputs: Mapping[str, Any], target: Any) -> np.ndarray:
        """Returns the decreases [U] of the score when each position alone is replaced."""
        width = self._width(inputs)
        rows = min(_ROWS, width)
        groups = np.zeros((rows, -(-width // rows), width), bool)
        numbers = np.arange(width)
        groups[numbers % rows, numbers // rows, numbers] = True
        found = np.asarray(self._call(self._occlusion, inputs, target, groups))
        return found[numbers % rows, numbers // rows]

    def curves(
        self, inputs: Mapping[str, Any], target: Any, orders: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Computes the deletion and insertion curves for given orders of the positions.

        Args:
          inputs: inputs of the model, with one row.
          target: see `tasks.explainer.Explainer.target`.
          orders: int [M, U], M permutations of all positions; padding is ignored.

        Returns:
          Fractions of deleted or inserted positions at the p points of a curve, [p]; scores on the
          deletion curves, [M, p]; and scores on the insertion curves, [M, p].
        """
        valid = np.broadcast_to(self.explainer.positions(inputs), orders.shape)
        found = self._call(self._curves, inputs, target, orders, valid)
        deletion, insertion = (np.asarray(curve.scores, np.float64) for curve in found)
        return np.asarray(found[0].fractions, np.float64), deletion, insertion

    def _width(self, inputs: Mapping[str, Any]) -> int:
        return len(self.explainer.positions(inputs))

    def _call(self, function: Any, inputs: Mapping[str, Any], *arrays: Any) -> Any:
        return jax.device_get(function(self.variables, dict(inputs), *arrays))
