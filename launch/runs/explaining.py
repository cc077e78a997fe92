"""Explanations of single predictions of a run, and how faithful they are to the model."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from attention import attribution, inspect
from launch.engine.config import Experiment
from launch.engine.evaluation import Subset, prediction_inputs
from launch.engine.scoring import Scorer
from launch.engine.steps import Steps
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.explainer import AttentionPath, Subject
from tasks.explanation import AttentionMap, Attribution, Axis, Curve, Explanation
from tasks.task import Task

# Kinds of axes for which `inspect.head_pattern` finds patterns, and labels of separator tokens.
_WRITTEN, _SEPARATORS = ("token", "character"), ("[SEP]", "[END]", "end", "</s>")
# Number of random orders whose curves are averaged.
_ORDERS = 5

METHODS: Mapping[str, str] = {
    "attention": "attention from the output to the positions, through the last layer",
    "rollout": "product of the attention of all layers (Abnar & Zuidema 2020)",
    "attention_x_gradient": "attention times its gradient through all layers (Chefer et al. 2021)",
    "gradient_x_input": "derivative with respect to replacing a position (Shrikumar et al. 2017)",
    "integrated_gradients": "integral of the same derivative (Sundararajan et al. 2017)",
    "occlusion": "change of the score when one position is replaced (Zeiler & Fergus 2014)",
    "uniform": "control: positions evenly spread over the input",
    "random": f"control: mean of {_ORDERS} random orders",
}
"""Methods of attribution by name, with their definitions in words."""
CONTROLS = ("uniform", "random")


@dataclasses.dataclass(frozen=True)
class Found:
    """Attribution of one method.

    Attributes:
      values: attribution of each position without padding, [n].
      seconds: time to compute it.
      gap: convergence gap of integrated gradients; None for other methods.
    """

    values: np.ndarray
    seconds: float
    gap: float | None = None


class Explaining:
    """Computation of attributions, curves and explanations for the predictions of one model.

    Args:
      task: the task of a run.
      config: its experiment.
      steps: compiled functions.
      variables: variables of the model.
      seed: seed of random orders.
    """

    def __init__(self, task: Task, config: Experiment, steps: Steps, variables: Any, seed: int = 0):
        self.task, self.explainer, self.seed = task, task.explainer(), seed
        self._steps, self._variables = steps, variables
        # Result of `_relevances` for an example, and seconds to compute it.
        self._known: dict[Subject, tuple[np.ndarray, float]] = {}
        self.scorer = Scorer(self.explainer, steps.mesh, variables, config.seed)

    def with_variables(self, variables: Any) -> Explaining:
        """Returns a copy that explains the model with other variables."""
        found = copy.copy(self)
        found._variables, found._known = variables, {}
        found.scorer = self.scorer.with_variables(variables)
        return found

    # ------------------------------------------------------------------ examples

    def of_split(self, split: str, indices: Sequence[int]) -> Iterator[Subject]:
        """Yields the `Subject`s of examples of a split."""
        for index in map(int, indices):
            raw = self.explainer.raw(split, index)
            examples, row = self.task.examples(split), index
            if raw is not None:
                examples, row = self.task.processor.encode([raw]), 0
            yield self._subject(examples, row, raw=raw, split=split, index=index)

    def of_inputs(self, raw: Sequence[str]) -> Iterator[Subject]:
        """Yields a `Subject` for each raw input.

        If an input has several examples, such as the windows of an image, only the first is used.

        Raises:
          UserError: an input cannot be read.
        """
        for text in raw:
            examples, notes = self.task.processor.encode([text]), ()
            if len(examples) > 1:
                notes = (f"The input is read as {len(examples)} examples; this is the first.",)
            yield self._subject(examples, 0, raw=text, notes=notes)

    def _subject(self, examples: Any, row: int, **parts: Any) -> Subject:
        (batch,) = evaluation_batches(
            Subset(examples, [row]),
            batch_size=1,
            buckets=self.task.buckets,
            multiple=self._steps.batch_shards,
        )
        inputs = prediction_inputs(self.task, self._steps.place(batch))
        found = [inputs, self._steps.predict(self._variables, inputs), self._attention(inputs)]
        # Only the first row is kept, because rows of padding may follow.
        inputs, outputs, attention = (
            {name: np.asarray(array)[:1] for name, array in jax.device_get(arrays).items()}
            for arrays in found
        )
        whole = {name: array[0] for name, array in attention.items()}
        return Subject(inputs, outputs, whole, **parts)

    def _attention(self, inputs: Any) -> Mapping[str, Any]:
        return self._steps.attention(self._variables, inputs)

    def again(self, subject: Subject) -> Subject:
        """Returns a copy of another model's subject, with the attention weights of this model.

        The explained prediction remains that of the other model.
        """
        inputs = {
            name: np.repeat(array, self._steps.batch_shards, axis=0)
            for name, array in subject.inputs.items()
        }
        found = jax.device_get(self._attention(self._steps.place(inputs)))
        attention = {name: np.asarray(array)[0] for name, array in found.items()}
        return dataclasses.replace(subject, attention=attention)

    # ------------------------------------------------------------------ attributions

    def methods(self, subject: Subject) -> list[str]:
        """Returns the methods that apply to the model, in the order of `METHODS`."""
        path = self.explainer.attention_path(subject)
        left_out = set()
        if path is None:
            left_out |= {"attention"}
        if path is None or path.layers is None:
            left_out |= {"rollout", "attention_x_gradient"}
        if not self.explainer.differentiable:
            left_out |= {"attention_x_gradient", "gradient_x_input", "integrated_gradients"}
        return [name for name in METHODS if name not in left_out]

    def attributions(self, subject: Subject, methods: Sequence[str]) -> dict[str, Found]:
        """Returns the attributions of an example, by method.

        The control methods have no attributions and are left out.

        Args:
          subject: the example.
          methods: names of `METHODS` that apply.
        """
        found = {}
        for name in methods:
            if name in CONTROLS:
                continue
            start = time.perf_counter()
            values, gap = self._attribution(name, subject)
            seconds = time.perf_counter() - start
            if name == "attention_x_gradient" and subject in self._known:
                seconds += self._known[subject][1]
            found[name] = Found(np.asarray(values, np.float64), seconds, gap)
        return found

    def _attribution(self, name: str, subject: Subject) -> tuple[np.ndarray, float | None]:
        inputs, target = subject.inputs, self.explainer.target(subject.outputs)
        real = np.flatnonzero(self.explainer.positions(inputs))
        if name == "gradient_x_input":
            return self.scorer.gradient(inputs, target)[real], None
        if name == "integrated_gradients":
            values, gap = self.scorer.integrated(inputs, target)
            return values[real], gap
        if name == "occlusion":
            return self.scorer.occlusion(inputs, target)[real], None
        path = self.explainer.attention_path(subject)
        assert path is not None
        if name == "attention":
            return _read(path, len(real)), None
        assert path.layers is not None
        if name == "rollout":
            layers = np.abs(path.layers)[:, None]
            return _through(path, np.asarray(attribution.rollout(layers))[0], len(real)), None
        return self._relevance(subject, path, len(real)), None

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Computes the gradients of attention weights of many examples together.

        Examples whose inputs have the same shapes share one compilation, whose time is part of
        their seconds. Without this call, `attributions` compiles once for each example.
        """
        self._known = {}
        groups: dict[Any, list[Subject]] = {}
        for subject in subjects:
            if "attention_x_gradient" in self.methods(subject):
                shapes = sorted((name, array.shape) for name, array in subject.inputs.items())
                groups.setdefault(tuple(shapes), []).append(subject)
        for group in groups.values():
            start = time.perf_counter()
            found = self._relevances(group)
            seconds = (time.perf_counter() - start) / len(group)
            for each, relevance in zip(group, found, strict=True):
                self._known[each] = (relevance, seconds)

    def _relevances(self, group: Sequence[Subject]) -> np.ndarray:
        """Computes the relevance of each state for each other state (Chefer et al. 2021).

        Args:
          group: B examples whose inputs have the same shapes.

        Returns:
          Relevance [B, T, T]; entry [b, i, j] is the relevance of the initial state j for the final
          state i.
        """
        inputs, target = (
            {name: np.concatenate([one[name] for one in each]) for name in each[0]}
            for each in (
                [subject.inputs for subject in group],
                [self.explainer.target(subject.outputs) for subject in group],
            )
        )
        gates = np.ones((len(group), len(self.explainer.positions(group[0].inputs))), np.float32)
        found = attribution.attention_gradients(
            self.scorer.score, self.scorer.variables, inputs, target, gates, score=lambda x: x
        )
        path = self.explainer.attention_path(group[0])
        assert path is not None
        assert path.layers is not None
        # The weights of self-attention in layers are square, unlike the weights of other attention,
        # such as attention pooling.
        names = [name for name, x in found.weights.items() if x.ndim == 4 and _is_square(x)]
        assert len(names) == len(path.layers), (names, path.layers.shape)
        stacked = (np.stack([part[name] for name in names]) for part in found)
        return np.asarray(attribution.relevance(*stacked))

    def _relevance(self, subject: Subject, path: AttentionPath, count: int) -> np.ndarray:
        known = self._known.get(subject)
        relevance = self._relevances([subject])[0] if known is None else known[0]
        return _through(path, relevance - np.eye(len(relevance)), count)

    # ------------------------------------------------------------------ curves

    def curves(
        self, subject: Subject, found: Mapping[str, Found], methods: Sequence[str]
    ) -> list[Curve]:
        """Returns the deletion and insertion curves of methods, including the control methods.

        Args:
          subject: the example.
          found: attributions of the example.
          methods: names of methods in the order of the curves.
        """
        inputs, target = subject.inputs, self.explainer.target(subject.outputs)
        positions = self.explainer.positions(inputs)
        real = np.flatnonzero(positions)
        orders: list[tuple[str, np.ndarray]] = []
        for name in methods:
            orders += [(name, order) for order in self._orders(name, subject, found, len(real))]
        rest = np.flatnonzero(~positions)
        whole = np.stack([np.concatenate([real[order], rest]) for _, order in orders])
        fractions, *scores = self.scorer.curves(inputs, target, whole.astype(np.int32))
        # Nothing is deleted at the first point.
        unchanged = float(scores[0][0, 0])
        curves = []
        for name in methods:
            rows = [row for row, (owner, _) in enumerate(orders) if owner == name]
            for kind, values in zip(("deletion", "insertion"), scores, strict=True):
                measured = self.explainer.measure(values[rows], unchanged).mean(axis=0)
                curves.append(Curve(name, kind, fractions, measured))
        return curves

    def _orders(
        self, name: str, subject: Subject, found: Mapping[str, Found], count: int
    ) -> list[np.ndarray]:
        """Returns the orders of the positions for a method, with the most important position first.

        Only the method "random" has several orders.
        """
        if name == "uniform":
            return [np.asarray(attribution.uniform_order(1, count))[0]]
        if name == "random":
            rng = np.random.default_rng([self.seed, *(_number(subject) or [])])
            return [rng.permutation(count) for _ in range(_ORDERS)]
        values = found[name].values
        values = values if self.explainer.signed else np.abs(values)
        return [np.argsort(-values, kind="stable")]

    # ------------------------------------------------------------------ explanations

    def explain(self, subject: Subject, methods: Sequence[str] | None = None) -> Explanation:
        """Returns the explanation of an example.

        Args:
          subject: the example.
          methods: names of `METHODS`; all that apply if None.

        Raises:
          UserError: a method does not apply, or the input has no position, such as a user without
            a history.
        """
        described = self.explainer.describe(subject)
        if not self.explainer.positions(subject.inputs).any():
            raise UserError(
                f"input {described.input!r}: has no position to explain the prediction by"
            )
        methods = self.checked(subject, methods)
        found = self.attributions(subject, methods)
        curves = self.curves(subject, found, methods)
        areas = {(curve.method, curve.kind): area(curve) for curve in curves}
        shown = []
        for name, each in found.items():
            numbers = {kind: areas[name, kind] for kind in ("deletion", "insertion")}
            if each.gap is not None:
                numbers["convergence gap"] = each.gap
            shown.append(Attribution(name, each.values, described.axis, numbers))
        kind = {True: "correct", False: "wrong", None: ""}[described.correct]
        return Explanation(
            id="" if subject.index is None else str(subject.index),
            input=described.input,
            prediction=described.prediction,
            target=described.target,
            explained=described.explained,
            axes=described.axes,
            maps=[_with_patterns(each, described.axes) for each in described.maps],
            attributions=shown,
            curves=curves,
            medium=described.medium,
            confidence=described.confidence,
            kind=kind,
            replacement=self.explainer.replacement,
            notes=[*subject.notes, *described.notes],
        )

    def explain_all(
        self,
        subjects: Iterable[Subject],
        methods: Sequence[str] | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[Explanation]:
        """Returns the explanations of examples; see `explain`.

        Args:
          subjects: the examples.
          methods: names of `METHODS`; all that apply if None.
          progress: called with the number of new explanations.
        """
        subjects, found = list(subjects), []
        self.prepare(subjects)
        for subject in subjects:
            found.append(self.explain(subject, methods))
            progress(1)
        return found

    def checked(self, subject: Subject, methods: Sequence[str] | None) -> list[str]:
        """Checks the names of methods; returns them, including the control methods.

        Without names, all methods that apply are returned.

        Raises:
          UserError: a method is unknown, or does not apply to the model.
        """
        able = self.methods(subject)
        if methods is None:
            return able
        for name in methods:
            if name not in able:
                why = "does not apply to this model" if name in METHODS else "is unknown"
                raise UserError(f"--methods: {name} {why}; expected some of {', '.join(able)}")
        return [name for name in able if name in methods or name in CONTROLS]


def area(curve: Curve) -> float:
    """Returns the area under a curve."""
    return float(np.trapezoid(curve.scores, curve.fractions))


def _with_patterns(attention: AttentionMap, axes: Mapping[str, Axis]) -> AttentionMap:
    """Adds the pattern of each head to self-attention between tokens; other maps stay unchanged."""
    keys = axes[attention.keys]
    if attention.queries != attention.keys or keys.kind not in _WRITTEN:
        return attention
    # Weights that are differences of attention maps can be negative, and have no such patterns.
    if (attention.weights < 0).any():
        return attention
    labels = np.asarray(keys.labels)
    separators = np.isin(labels, _SEPARATORS)[None]
    tokens = np.unique(labels, return_inverse=True)[1].reshape(1, -1)
    found = [
        inspect.head_pattern(layer[None], separators=separators, tokens=tokens)
        for layer in attention.weights
    ]
    return dataclasses.replace(attention, statistics={"pattern": np.array(found)})


def _is_square(weights: np.ndarray) -> bool:
    return weights.shape[-1] == weights.shape[-2]


def _read(path: AttentionPath, count: int) -> np.ndarray:
    """Returns the attention weight of each position in the readout.

    If the path has layers, the weights of the readout are multiplied by the absolute attention
    weights of the last layer, averaged over its heads.

    Args:
      path: attention from the positions to the output.
      count: number of positions.
    """
    if path.layers is None:
        return path.readout[path.first :][:count]
    return _through(path, np.abs(path.layers[-1]).mean(axis=0), count)


def _through(path: AttentionPath, matrix: np.ndarray, count: int) -> np.ndarray:
    """Multiplies the readout weights of states by a matrix [T, T]; returns those of positions."""
    states = len(path.readout)
    return (path.readout @ matrix[:states, :states])[path.first :][:count]


def _number(subject: Subject) -> list[int] | None:
    return None if subject.index is None else [subject.index]
