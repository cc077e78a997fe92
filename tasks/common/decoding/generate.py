"""Writing token by token: greedy decoding, beam search and sampling, for every model that steps.

    decoded = generate(
        step, state, config=DecodingConfig("beam", beam_size=5),
        batch_size=B, max_length=T, start=START, end=END, pad=PAD,
    )

Beam search: see `tasks.common.decoding.beam_search`. Top-k: Fan et al. 2018, "Hierarchical Neural
Story Generation"; top-p: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".

B batch, K beams, T steps, V words, R = B, or B·K with the beams of an example side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention import recording, shapes
from tasks.common.configs import (
    Config,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    one_of,
    within,
)
from tasks.common.decoding.batching import flatten_beams, mask_leaves, take_rows, write_step
from tasks.common.decoding.beam_search import beam_search, length_normalized

Array = jax.Array
Step = Callable[[Array, Any], tuple[Array, Any, Any]]


@dataclasses.dataclass(frozen=True)
class DecodingConfig(Config):
    """How tokens are chosen.

    Attributes:
      method: "greedy", the likeliest token each time; "beam"; or "sample".
      beam_size: K, prefixes that are kept of each example. One is greedy decoding.
      length_penalty: p of score = Σ log-probabilities / length^p (Wu et al. 2016, simplified); the
        length counts the end token. Above 0 it favours long sequences.
      stopping: when the beam of an example is closed. "heuristic": the best prefix, were it
        finished at the length it has, is no better than the worst of K finished ones
        (early_stopping=False in transformers). "exact": no prefix can be better at any length
        ("never" there), which takes more steps and differs where length_penalty is above 0.
      n_best: sequences given for each example: of the beam, or independent samples.
      temperature: of samples; logits are divided by it.
      top_k: sample from as many of the likeliest tokens; 0 is all.
      top_p: sample from the fewest of the likeliest tokens that have this probability together,
        after temperature and top_k.
      seed: of samples; see `example_keys`.
    """

    method: one_of("greedy", "beam", "sample") = "greedy"
    beam_size: PositiveInt = 1
    length_penalty: FiniteFloat = 1.0
    stopping: one_of("heuristic", "exact") = "heuristic"
    n_best: PositiveInt = 1
    temperature: within("(0, inf)", "a finite number above 0 (method 'greedy' is the limit)") = 1.0
    top_k: NonNegativeInt = 0
    top_p: within("(0, 1]", "a probability in (0, 1]") = 1.0
    seed: NonNegativeInt = 0

    def __post_init__(self):
        super().__post_init__()
        # What a method does not read would have no effect.
        read = {"beam": ("beam_size", "stopping"), "sample": ("temperature", "top_k", "top_p")}
        for method, names in read.items():
            for field in dataclasses.fields(self):
                is_default = getattr(self, field.name) == field.default
                reads = field.name not in names or method == self.method
                expected = f"{field.default!r}, or method {method!r}"
                self.expect(field.name, reads or is_default, expected)
        most = {"greedy": 1, "beam": self.beam_size}.get(self.method, self.n_best)
        expected = f"at most {most} with method {self.method!r}"
        expected += " and this beam_size" if self.method == "beam" else ""
        self.expect("n_best", self.n_best <= most, expected)


class DecodingResult(NamedTuple):
    """What was written. Where there is no n-th sequence, it is all `pad` with score -inf.

    Attributes:
      tokens: int32 [B, n_best, T], the end token included, `pad` after it.
      scores: float32 [B, n_best], best first; by the model's own probabilities, whatever the
        temperature. A sequence that T cuts off has the score of what there is.
      extras: what the steps gave beside logits: leaves [B, n_best, T, ...], 0 after the end.
    """

    tokens: Array
    scores: Array
    extras: Any


def generate(
    step: Step,
    state: Any,
    *,
    config: DecodingConfig,
    batch_size: int,
    max_length: int,
    start: int | Array,
    end: int | None,
    pad: int,
    keys: Array | None = None,
    forbidden: Sequence[int] = (),
    scores_are_log_probs: bool = False,
) -> DecodingResult:
    """Writes up to T tokens for each example; ends as soon as all have ended.

    What is written for one example depends on nothing but its own rows of `state`, as far as `step`
    does so.

    Args:
      step: tokens int32 [R], state -> logits [R, V], the next state, extras. The state keeps its
        shapes and dtypes; each leaf of state and extras has the leading axis R. Rows that have
        ended read `pad`, and what comes of it is dropped.
      state: before the first step, with B rows; for beams it is repeated. After a prompt: what is
        left by all its tokens but the last, which is `start`.
      config: how tokens are chosen.
      batch_size: B.
      max_length: T, tokens written at most, the end token included.
      start: the first token read, int or int [B].
      end: the token after which a sequence has ended, or None where all go on to T.
      pad: what stands after the end.
      keys: one for each example, [B], for samples; see `example_keys`.
      forbidden: tokens that are never written. Probabilities stay those of the model.
      scores_are_log_probs: whether `step` returns scores to be summed without a softmax, such as
        weighted log-probabilities of two models, instead of logits.

    Raises:
      ValueError: shapes or options do not fit.
    """
    B, T = batch_size, max_length
    for name, size in (("batch_size", B), ("max_length", T)):
        if size < 1:
            raise ValueError(f"{name}: got {size}, expected at least 1")
    if (keys is None) == (config.method == "sample"):
        got, expected = ("none", f"keys [{B}]") if keys is None else ("keys", "none")
        raise ValueError(f"keys: got {got}, expected {expected} with method {config.method!r}")
    if keys is not None and keys.shape[0] != B:
        raise ValueError(f"keys: got shape {shapes.show(keys.shape)}, expected [B] with B={B}")
    start = jnp.asarray(start, jnp.int32)
    if start.ndim:
        shapes.expect("start", start, "B", {"B": B})
    start = jnp.broadcast_to(start, (B,))
    copies = config.beam_size if config.method == "beam" else config.n_best
    state, start = _repeated((state, start), copies, B)
    V, seen = _expect_step(step, start, state)
    for name, token in (("end", end), *(("forbidden", token) for token in forbidden)):
        if token is not None and not 0 <= token < V:
            raise ValueError(f"{name}: got token {token}, expected one of the {V} that are written")
    closed = jnp.zeros((V,), bool).at[jnp.array(forbidden, jnp.int32)].set(True)

    def scored(tokens: Array, state: Any) -> tuple[Array, Any, Any]:
        """Log-probabilities [R, V], -inf of what must not be written; state; extras."""
        logits, state, extras = step(tokens, state)
        logits = logits.astype(jnp.float32)
        impossible = closed | (logits == -jnp.inf)
        scores = logits if scores_are_log_probs else jax.nn.log_softmax(logits)
        return jnp.where(impossible, -jnp.inf, scores), state, extras

    extras = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype), seen)
    options = {"max_length": T, "end": end, "pad": pad}
    if config.method == "beam" and config.beam_size > 1:
        options |= {"K": config.beam_size, "N": config.n_best, "exact": config.stopping == "exact"}
        options["length_penalty"] = config.length_penalty
        return DecodingResult(*beam_search(scored, start, state, extras, **options))
    return _decode_independently(scored, start, state, extras, config, keys, **options)


class _Written(NamedTuple):
    """Rows that know nothing of each other."""

    t: Array
    tokens: Array
    state: Any
    total: Array
    length: Array
    ended: Array
    written: Array
    extras: Any


def _decode_independently(
    scored: Step,
    start: Array,
    state: Any,
    extras: Any,
    config: DecodingConfig,
    keys: Array | None,
    *,
    max_length: int,
    end: int | None,
    pad: int,
) -> DecodingResult:
    """Greedy decoding, or n_best samples of each example."""
    R, N, T = len(start), config.n_best, max_length
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in)(keys[jnp.arange(R) // N], jnp.arange(R) % N)

    def write(now: _Written) -> _Written:
        scores, state, seen = scored(now.tokens, now.state)
        if keys is None:
            token = jnp.argmax(scores, axis=-1)
        else:
            token = _sample(jax.vmap(jax.random.fold_in, (0, None))(keys, now.t), scores, config)
        gained = jnp.take_along_axis(scores, token[:, None], axis=-1)[:, 0]
        token = jnp.where(now.ended, pad, token).astype(jnp.int32)
        # Where nothing can be written, nothing comes after it either.
        ends = (gained == -jnp.inf) | (False if end is None else token == end)
        return _Written(
            now.t + 1,
            token,
            state,
            now.total + jnp.where(now.ended, 0, gained),
            now.length + ~now.ended,
            now.ended | ends,
            now.written.at[now.t].set(token),
            write_step(now.extras, now.t, mask_leaves(~now.ended, seen)),
        )

    first = _Written(
        jnp.int32(0),
        start,
        state,
        jnp.zeros((R,), jnp.float32),
        jnp.zeros((R,), jnp.int32),
        jnp.zeros((R,), bool),
        jnp.full((T, R), pad, jnp.int32),
        extras,
    )
    last = jax.lax.while_loop(lambda now: (now.t < T) & ~jnp.all(now.ended), write, first)
    scores = length_normalized(last.total, last.length, config.length_penalty).reshape(-1, N)
    possible = scores != -jnp.inf
    best = jnp.argsort(-scores, axis=1, stable=True)

    def ordered(leaf: Array) -> Array:
        """[T, R, ...] -> [B, N, T, ...], best first."""
        return take_rows(jnp.moveaxis(leaf, 0, 1).reshape(-1, N, T, *leaf.shape[2:]), best)

    possible, scores = take_rows(possible, best), take_rows(scores, best)
    tokens = jnp.where(possible[..., None], ordered(last.written), pad)
    return DecodingResult(tokens, scores, mask_leaves(possible, jax.tree.map(ordered, last.extras)))


def _sample(keys: Array, scores: Array, config: DecodingConfig) -> Array:
    """Keys [R], log-probabilities [R, V] -> tokens [R]."""
    logits, V = scores / config.temperature, scores.shape[-1]
    draw = jax.vmap(jax.random.categorical)
    if config.top_k == 0 and config.top_p == 1.0:
        return draw(keys, logits)
    # Likeliest first.
    logits, tokens = jax.lax.top_k(logits, min(config.top_k or V, V))
    shares = jax.nn.softmax(logits, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    # The first always stays.
    kept = (before < config.top_p).at[:, 0].set(True)
    drawn = draw(keys, jnp.where(kept, logits, -jnp.inf))
    return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]


def _repeated(tree: Any, copies: int, B: int) -> Any:
    """Each row of each leaf so many times, side by side.

    Raises:
      ValueError: a leaf has not B rows.
    """

    def repeated(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if leaf.ndim == 0 or leaf.shape[0] != B:
            got, expected = shapes.show(leaf.shape), f"a leading axis of {B}, the number of rows"
            raise ValueError(f"state: got a leaf of shape {got}, expected {expected}")
        return flatten_beams(jnp.broadcast_to(leaf[:, None], (B, copies, *leaf.shape[1:])))

    return jax.tree.map(repeated, tree)


def _expect_step(step: Step, tokens: Array, state: Any) -> tuple[int, Any]:
    """V, and shapes of the extras.

    Raises:
      ValueError: what the step gives does not fit what it gets.
    """
    R = len(tokens)
    with recording.suppressed():
        logits, after, extras = jax.eval_shape(step, tokens, state)
    shapes.expect("logits", logits, "R V", {"R": R})
    before, after = (jax.tree_util.tree_flatten_with_path(tree) for tree in (state, after))
    if before[1] != after[1]:
        raise ValueError(f"state: got {after[1]} after a step, expected {before[1]} as before it")
    for (path, old), (_, new) in zip(before[0], after[0], strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"state: got {new.dtype.name} {shapes.show(new.shape)} at "
                f"{jax.tree_util.keystr(path) or 'the top'} after a step, expected "
                f"{old.dtype.name} {shapes.show(old.shape)} as before it"
            )
    for leaf in jax.tree.leaves(extras):
        if leaf.ndim == 0 or leaf.shape[0] != R:
            raise ValueError(
                f"extras: got a leaf of shape {shapes.show(leaf.shape)}, expected a leading axis "
                f"of {R}, the number of rows"
            )
    return logits.shape[1], extras
