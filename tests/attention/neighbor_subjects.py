"""Subjects of attention over neighbors and over lags: what differs from sequences is here.

The masked axis is axis 1, as everywhere; there are no queries but candidates, users and steps of a
forecast, whose number is not that of the keys.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tests.attention.references import VARIANTS
from tests.attention.subjects import LONGEST, B, D, S, Subject, module_of, normal

# Candidates, items that have components, size of a component, channels, lags, steps of a forecast:
# fewer lags than positions.
CANDIDATES, ITEMS, C, CHANNELS, LAGS, STEPS = 3, 2, 3, 3, 6, 2


# A number for each neighbor of each user; where there are more than S, some share one.
IDS = (np.arange(B)[:, None] * S + np.arange(LONGEST)) % (B * S)


@dataclasses.dataclass(frozen=True, eq=False)
class NeighbourSubject(Subject):
    """A mechanism over neighbors, items or lags.

    Attributes:
      per_query: input -> its axis of candidates or items, which may have any length.
    """

    per_query: dict = dataclasses.field(default_factory=dict)

    @property
    def capabilities(self):
        # The indices of the neighbors are not reordered.
        return self.entry.capabilities - ({"permutation"} if "num_users" in self.options else set())

    def resized(self, queries, keys):
        """As many candidates or items, and as many neighbors, components or times."""
        inputs = dict(self.inputs)
        for name in {*self.keys, *self.per_query}:
            shape = list(inputs[name].shape)
            if name in self.keys:
                shape[1] = keys
            if name in self.per_query:
                shape[self.per_query[name]] = queries
            inputs[name] = np.std(inputs[name]) * normal(keys, *shape)
        valid = np.ones((B, keys), bool)
        valid[1, 2:] = keys < 3
        return inputs, valid


def _neighbours(module, inputs, valid):
    arrays = [jnp.asarray(inputs[name]) for name in ("user", "neighbours", "ratings")]
    ids = IDS[: len(valid), : valid.shape[1]] if module.num_users else None
    return module(*arrays, ids=ids, valid=jnp.asarray(valid), return_weights=True)


def _history(module, inputs, valid):
    arrays = [jnp.asarray(inputs[name]) for name in ("candidates", "history")]
    return module(*arrays, valid=jnp.asarray(valid), return_weights=True)


def _profile(module, inputs, valid):
    arrays = [jnp.asarray(inputs[name]) for name in ("user", "items", "auxiliary")]
    content = jnp.asarray(inputs["content"]) if "content" in inputs else None
    return module(*arrays, content=content, valid=jnp.asarray(valid), return_weights=True)


def _components(module, inputs, valid):
    components = jnp.swapaxes(jnp.asarray(inputs["components"]), 1, 2)
    valid = jnp.repeat(jnp.asarray(valid)[:, None], components.shape[1], axis=1)
    return module(jnp.asarray(inputs["user"]), components, valid=valid, return_weights=True)


def _lags(module, inputs, valid):
    return module(jnp.asarray(inputs["x"]), valid=jnp.asarray(valid), return_weights=True)


_CALLS = {
    "neighbours": _neighbours,
    "history": _history,
    "profile": _profile,
    "components": _components,
    "lags": _lags,
}


def _inputs(kind, options):
    """Sizes to build with, masked inputs, the others, and `per_query`."""
    user = {"user": normal(4, B, D)}
    if kind == "neighbours":
        keyed = {"neighbours": normal(5, B, S, D), "ratings": normal(6, B, S, CANDIDATES)}
        return [D], keyed, user, {"ratings": 2}
    if kind == "history":
        # Small, as vectors of items are: the weights of NAIS grow like exp(f / 2).
        keyed = {"history": 0.4 * normal(5, B, S, D)}
        others = {"candidates": 0.4 * normal(6, B, CANDIDATES, D)}
        return [D], keyed, others, {"candidates": 1}
    if kind == "profile":
        keyed = {"items": normal(5, B, S, D), "auxiliary": normal(6, B, S, D)}
        if "content_size" in options:
            keyed["content"] = normal(7, B, S, options["content_size"])
        return [D], keyed, user, {}
    if kind == "components":
        return [D, C], {"components": normal(5, B, S, ITEMS, C)}, user, {"components": 2}
    return [CHANNELS, LAGS, STEPS], {"x": normal(5, B, S, CHANNELS)}, {}, {}


def subjects_of(entry, dtype):
    """Returns each variant of a registry entry."""
    for label, options in VARIANTS.get((entry.kind, entry.name), {"plain": {}}).items():
        sizes, keyed, others, per_query = _inputs(entry.kind, options)
        build, params, _ = module_of(entry, *sizes, **options, dtype=dtype)

        def apply(inputs, valid, causal, dropout_key, build=build):
            return _CALLS[entry.kind](build(inputs["params"]), inputs, valid)

        yield NeighbourSubject(
            f"{entry.name}-{label}",
            entry,
            {"params": params} | keyed | others,
            tuple(keyed),
            apply,
            options=options,
            constants={"ids": IDS} if entry.kind == "neighbours" else {},
            build=build,
            per_query=per_query,
        )
