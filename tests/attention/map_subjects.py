"""Subjects of attention over feature maps: what differs from sequences is here.

An axis 1 and 2 in place of one, options `training` and `valid` in place of masks. A mechanism with
batch statistics is a subject once more in training.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.attention.references import REFERENCES, VARIANTS
from tests.attention.subjects import B, Subject, drawn, module_of, normal

# Of no two axes the same; windows of 2 and 3 do not fit.
Y, X, C, G = 3, 4, 4, 3


@dataclasses.dataclass(frozen=True, eq=False)
class MapSubject(Subject):
    """A test subject for map attention; `apply` takes the valid examples as a column, bool [B, 1].

    Attributes:
      training: whether the mechanism normalizes by the batch.
    """

    training: bool = False

    @property
    def capabilities(self):
        """Capabilities that the entry declares, except those that the options disable."""
        lost = set()
        # Modules are built only to answer this question, not at collection of the tests.
        if "batch_statistics" in self.entry.capabilities and "buffers" not in self.constants:
            lost.add("batch_statistics")
        if self.options.get("similarity") == "dot_product":
            lost.add("normalized")
        return self.entry.capabilities - lost

    @property
    def valid(self):
        return np.ones((B, 1), bool)

    def resized(self, queries, keys):
        """Maps of that height and width; the signal has half of each."""
        inputs = self.inputs | {"x": normal(keys, B, queries, keys, C)}
        if "gating_signal" in inputs:
            inputs["gating_signal"] = normal(queries, B, -(-queries // 2), -(-keys // 2), G)
        return inputs, self.valid

    def reference(self, inputs, valid, causal=False):
        function = REFERENCES[self.entry.kind, self.entry.name]
        return function(inputs | drawn(self.constants), self.training, **self.options)

    @functools.cached_property
    def moved(self):
        """The running statistics after a call: a function of inputs and valid, bool [B]."""

        @jax.jit
        def run(inputs, valid):
            module = self.build(inputs["params"])
            module(*self.maps(inputs), valid=valid, training=self.training)
            return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        return run

    @staticmethod
    def maps(inputs):
        return [jnp.asarray(inputs[name]) for name in ("x", "gating_signal") if name in inputs]


def subjects_of(entry, dtype):
    """Returns each variant of a registry entry; again in training if it has batch statistics."""
    for label, options in VARIANTS.get(entry.name, {"default": {}}).items():
        subject = _subject(entry, f"{entry.name}-{label}", options, False, dtype)
        yield subject
        if "batch_statistics" in subject.capabilities:
            yield _subject(entry, f"{entry.name}-{label}-training", options, True, dtype)


def _subject(entry, label, options, training, dtype):
    sizes, inputs = [C], {"x": normal(3, B, Y, X, C)}
    if entry.kind == "gate":
        sizes, inputs = [C, G], inputs | {"gating_signal": normal(4, B, 2, 2, G)}
    build, params, constants = module_of(entry, *sizes, **options, dtype=dtype, prepare=_unsettle)

    def apply(inputs, valid, causal, dropout_key):
        module = build(inputs["params"])
        flags = {"valid": valid[:, 0], "training": training, "return_weights": True}
        return module(*MapSubject.maps(inputs), **flags)

    return MapSubject(
        label,
        entry,
        {"params": params} | inputs,
        tuple(inputs),
        apply,
        options=options,
        constants=constants,
        build=build,
        training=training,
    )


def _unsettle(module):
    """Running statistics that are neither 0 nor 1."""
    for number, (_, variable) in enumerate(nnx.iter_graph(module)):
        if isinstance(variable, nnx.BatchStat):
            moved = variable[...] + 0.4 * jnp.abs(normal(number, *variable[...].shape))
            variable[...] = moved
