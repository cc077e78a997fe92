"""Every registered mechanism behind one signature, so that one test asks all of them the same.

The shapes are few and shared: what a test needs is usually compiled already.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import attend, attention_weights, kernels, masks, registry
from attention.kernels.cpu import build as compiled
from tests.attention.references import REFERENCES, VARIANTS

B, T, S, N, K, H, V, D = 2, 5, 7, 4, 2, 6, 3, 8
LONGEST = 11
VALID = np.array([[1, 1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 0, 0, 0]], bool)


# kernels/test_split.py has those that work on a mesh alone.
DEVICES = {"cuda", "tpu", "mesh"}


def runs_here(entry):
    """Returns True if a kernel can run here: its device or compiler is available or not needed."""
    if "cpu" in entry.capabilities and compiled.find_compiler() is None:
        return False
    return not entry.capabilities & DEVICES or "interpreted" in entry.capabilities


def running(name):
    """Returns a context in which the kernel can be called."""
    entry = registry.find("kernel", name)
    return (
        kernels.interpreted() if "interpreted" in entry.capabilities else contextlib.nullcontext()
    )


KERNELS = [entry.name for entry in registry.mechanisms("kernel") if runs_here(entry)]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(given):
    return {name: value() if callable(value) else value for name, value in given.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A mechanism to be tested.

    Attributes:
      label: for the test's name.
      entry: its registry entry.
      given: everything it depends on, weights included: a dict, float32, of arrays or of functions
        that give them (`inputs` has them all).
      keys: names of the inputs whose axis 1 is masked.
      apply: (inputs, valid, causal, dropout_key) -> output and weights.
      rows_are_positions: the output has a row for each position of the masked sequence.
      options: what the module was built with, for the reference.
      constants: variables that are no parameters, for the reference; or functions again.
      build: params -> module, where there is a module.
      first: whether it stands for its entry where one variant is enough.
    """

    label: str
    entry: registry.Mechanism
    given: dict
    keys: tuple[str, ...]
    apply: object
    rows_are_positions: bool = False
    options: dict = dataclasses.field(default_factory=dict)
    constants: Mapping = dataclasses.field(default_factory=dict)
    build: object = None
    first: bool = True

    @functools.cached_property
    def inputs(self):
        # At once, even where a program that asks for them is being traced.
        with jax.ensure_compile_time_eval():
            return drawn(self.given)

    @property
    def capabilities(self):
        """Capabilities that the entry declares, except those that the options disable."""
        lost = set()
        if self.options.get("positions", "none") != "none":
            lost.add("permutation")
        if self.options.get("sinks"):
            lost.add("normalized")
        return self.entry.capabilities - lost

    @property
    def valid(self):
        return VALID[:, : self.inputs[self.keys[0]].shape[1]]

    def resized(self, queries, keys):
        """Returns inputs with other lengths; all positions are valid except the last of many
        keys."""
        inputs = dict(self.inputs)
        for name, length in ((self.inputs_of_queries, queries), *((k, keys) for k in self.keys)):
            if name == "query" and inputs[name].ndim == 2:
                continue
            shape = list(inputs[name].shape)
            shape[1] = length
            inputs[name] = normal(length, *shape)
        valid = np.ones((B, keys), bool)
        valid[1, 2:] = keys < 3
        return inputs, valid

    @functools.cached_property
    def cotangent(self):
        out, _ = jax.eval_shape(lambda i: self.apply(i, self.valid, False, None), self.inputs)
        return np.asarray(normal(99, *out.shape), out.dtype)

    @functools.cached_property
    def program(self):
        def run(inputs, valid, cotangent, causal):
            def output(inputs):
                return self.apply(inputs, valid, causal, None)

            out, backward, weights = jax.vjp(output, inputs, has_aux=True)
            return out, weights, backward(cotangent)[0]

        return jax.jit(run, static_argnums=3)

    @functools.cached_property
    def forward_program(self):
        return jax.jit(lambda inputs, valid: self.apply(inputs, valid, False, None))

    def forward(self, inputs=None, valid=None):
        """Returns output and weights by a program without gradients."""
        inputs = self.inputs if inputs is None else inputs
        valid = self.valid if valid is None else valid
        return jax.tree.map(np.asarray, self.forward_program(inputs, valid))

    def run(self, inputs=None, valid=None, causal=False, cotangent=None):
        """Returns output, weights and the gradient of Σ output · cotangent."""
        inputs = self.inputs if inputs is None else inputs
        valid = self.valid if valid is None else valid
        cotangent = self.cotangent if cotangent is None else cotangent
        return jax.tree.map(np.asarray, self.program(inputs, valid, cotangent, causal))

    def draw(self, key):
        """Returns the output under dropout."""
        return self.apply(self.inputs, self.valid, False, key)[0]

    @functools.cached_property
    def draw_keys(self):
        """Twice the same key, then others, 4098 in all."""
        keys = jax.random.split(jax.random.key(0), 4097)
        return jnp.concatenate([keys[:1], keys])

    @functools.cached_property
    def draws(self):
        """`draw` for each of `draw_keys`."""
        return np.asarray(jax.jit(jax.vmap(self.draw))(self.draw_keys))

    def reference(self, inputs, valid, causal=False):
        """Computes output and weights with NumPy, in float64."""
        function = REFERENCES[self.entry.kind, self.entry.name]
        inputs = inputs | drawn(self.constants)
        if self.entry.kind not in ("kernel", "mixer"):
            return function(inputs, valid, **self.options)
        rows, columns = inputs[self.inputs_of_queries].shape[1], valid.shape[1]
        allowed = np.broadcast_to(valid[:, None, None, :], (len(valid), 1, rows, columns))
        if causal or "always_causal" in self.entry.capabilities:
            allowed = allowed & np.tri(rows, columns, columns - rows, dtype=bool)
        return function(inputs, allowed, **self.options)

    @property
    def inputs_of_queries(self):
        return "x" if self.entry.kind == "mixer" else "query" if "query" in self.given else "states"

    def with_keys(self, change):
        """Returns the inputs with `change` applied to each masked sequence."""
        return self.inputs | {name: change(self.inputs[name]) for name in self.keys}


def _mask(valid, causal, queries):
    mask = masks.valid(key=valid)
    return mask & masks.causal(valid.shape[1] - queries) if causal else mask


def _kernel(entry, dtype):
    # Kernels that need a device, and their errors without one, are tested in kernels/.
    if not runs_here(entry):
        return

    def apply(inputs, valid, causal, dropout_key):
        query, key, value = (jnp.asarray(inputs[n], dtype) for n in ("query", "key", "value"))
        mask = _mask(valid, causal, query.shape[1])
        rate = 0.0 if dropout_key is None else 0.5
        options = {"dropout_rate": rate, "dropout_key": dropout_key}
        with running(entry.name):
            out = attend(query, key, value, mask=mask, implementation=entry.name, **options)
        return out, attention_weights(query, key, mask=mask)

    k = K if "grouped_query" in entry.capabilities else N
    v = V if "value_size" in entry.capabilities else H
    inputs = {"query": normal(0, B, T, N, H), "key": normal(1, B, S, k, H)}
    inputs["value"] = normal(2, B, S, k, v)
    yield Subject(entry.name, entry, inputs, ("key", "value"), apply)


class Late(Mapping):
    """A mapping that a function returns when it is read first."""

    def __init__(self, function):
        self._values = functools.cache(function)

    def __getitem__(self, key):
        return self._values()[key]

    def __iter__(self):
        return iter(self._values())

    def __len__(self):
        return len(self._values())


def module_of(entry, *args, prepare=lambda module: None, **options):
    """Returns functions: from params to the module; to random params, biases included; and, in a
    mapping that is empty where there are none, to the other variables. Nothing is built or drawn
    before it is needed.

    `prepare` may change the module before it is taken apart.
    """

    def make():
        return registry.load(entry.kind, entry.name)(*args, **options, rngs=nnx.Rngs(0))

    @functools.cache
    def parts():
        with jax.ensure_compile_time_eval():
            module = make()
            prepare(module)
            return nnx.split(module, nnx.Param, ...)

    def params():
        leaves = nnx.to_pure_dict(parts()[1])
        # The first test that asks may ask under jit.
        with jax.ensure_compile_time_eval():
            return jax.tree.map(
                lambda leaf: np.asarray(leaf + 0.3 * normal(7, *leaf.shape)), leaves
            )

    def build(params):
        graphdef, *variables = parts()
        fresh, rest = jax.tree.map(lambda leaf: leaf, variables)
        nnx.replace_by_pure_dict(fresh, params)
        return nnx.merge(graphdef, fresh, rest)

    def buffers():
        others = nnx.to_pure_dict(parts()[2])
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), others)

    def constants():
        _, _, others = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
        return {"buffers": buffers} if nnx.to_pure_dict(others) else {}

    return build, params, Late(constants)


def _mixer(entry, dtype):
    settings = {"dropout_rate": 0.5} if "dropout" in entry.capabilities else {}
    settings["dtype"] = dtype

    def subject(label, options, inputs, key_name, more=None, **fields):
        built = options | settings | (more or {})
        if "max_length" in entry.capabilities:
            built = {"max_length": LONGEST} | built
        build, params, constants = module_of(entry, D, num_heads=2, **built)
        inputs = {"params": params} | inputs

        def apply(inputs, valid, causal, dropout_key):
            sequences = [inputs[name] for name in ("x", "memory") if name in inputs]
            mask = _mask(valid, causal, inputs["x"].shape[1])
            mixer = build(inputs["params"])
            if "weights" not in entry.capabilities:
                return mixer(*sequences, mask=mask, dropout_key=dropout_key), None
            return mixer(*sequences, mask=mask, dropout_key=dropout_key, return_weights=True)

        return Subject(
            f"{entry.name}-{label}",
            entry,
            inputs,
            (key_name,),
            apply,
            options=options,
            constants=constants,
            build=build,
            **fields,
        )

    for label, options in VARIANTS.get(entry.name, {"self": {}}).items():
        inputs = {"x": normal(3, B, T, D)}
        yield subject(label, options, inputs, "x", rows_are_positions=True)
    if "cross" in entry.capabilities:
        grouped = {"key_value_heads": 1} if "grouped_query" in entry.capabilities else {}
        sized = {"value_head_size": V} if "value_size" in entry.capabilities else {}
        inputs = {"x": normal(3, B, T, D), "memory": normal(4, B, S, H)}
        yield subject("cross", {}, inputs, "memory", grouped | sized | {"memory_size": H})


def _labelled(entry, *parts):
    return "-".join([entry.name, *filter(None, parts)])


def _alignment(entry, dtype):
    """One step of the first variant; of all, a scan of four that carries what there is to carry."""
    steps = 4

    def subject(label, options, query):
        build, params, _ = module_of(entry, D, D, **options, dtype=dtype)

        def apply(inputs, valid, causal, dropout_key):
            alignment, queries = build(inputs["params"]), jnp.asarray(inputs["query"])
            memory = alignment.prepare(jnp.asarray(inputs["states"]), valid=jnp.asarray(valid))

            def step(state, query):
                context, weights, state = alignment.step(query, memory, state)
                return state, (context, weights)

            state = alignment.initial_state(memory)
            if queries.ndim == 2:
                return step(state, queries)[1]
            _, found = jax.lax.scan(step, state, jnp.swapaxes(queries, 0, 1))
            return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)

        inputs = {"params": params, "query": query, "states": normal(6, B, S, D)}
        return Subject(label, entry, inputs, ("states",), apply, options=options, build=build)

    for index, (label, options) in enumerate(
        VARIANTS.get((entry.kind, entry.name), {"": {}}).items()
    ):
        if not index:
            yield subject(_labelled(entry, label), options, normal(5, B, D))
        yield subject(_labelled(entry, label, "steps"), options, normal(5, B, steps, D))


def _pool(entry, dtype):
    droppable = {"dropout_rate": 0.5} if "dropout" in entry.capabilities else {}

    def subject(label, options):
        build, params, _ = module_of(entry, D, **options, **droppable, dtype=dtype)

        def apply(inputs, valid, causal, dropout_key):
            pool, states = build(inputs["params"]), jnp.asarray(inputs["states"])
            return pool(states, valid=jnp.asarray(valid), dropout_key=dropout_key)

        inputs = {"params": params, "states": normal(6, B, S, D)}
        return Subject(label, entry, inputs, ("states",), apply, options=options, build=build)

    for label, options in VARIANTS.get((entry.kind, entry.name), {"": {}}).items():
        yield subject(_labelled(entry, label), options)


def _map(entry, dtype):
    from tests.attention import map_subjects

    yield from map_subjects.subjects_of(entry, dtype)


def _neighbours(entry, dtype):
    from tests.attention import neighbor_subjects

    yield from neighbor_subjects.subjects_of(entry, dtype)


_BUILDERS = {
    "kernel": _kernel,
    "mixer": _mixer,
    "alignment": _alignment,
    "map_attention": _map,
    "gate": _map,
    "pool": _pool,
    **dict.fromkeys(("neighbours", "history", "profile", "components", "lags"), _neighbours),
}


@functools.cache
def subjects(dtype="float32"):
    """Returns all subjects with the given dtype, one or more for each registry entry."""
    found = []
    for entry in registry.mechanisms():
        for index, subject in enumerate(_BUILDERS[entry.kind](entry, jnp.dtype(dtype))):
            first = not index or subject.label.endswith("-cross")
            found.append(dataclasses.replace(subject, first=first))
    return found
