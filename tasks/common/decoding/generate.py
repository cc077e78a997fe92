"""Autoregressive decoding with any step function: greedy, beam search and sampling.

    decoded = generate(
        step, state, config=DecodingConfig("beam", beam_size=5),
        batch_size=B, max_length=T, start=START, end=END, pad=PAD,
    )

Beam search: see `tasks.common.decoding.beam_search`. Top-k: Fan et al. 2018, "Hierarchical Neural
Story Generation"; top-p: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".

In shapes, B is the batch size, K the number of beams or samples of an example, T the number of
steps, V the vocabulary size, and R = B·K the number of rows. The rows of an example are next to
each other.
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
from tasks.common.decoding.scores import TokenScores

Array = jax.Array
Step = Callable[[Array, Any], tuple[Array, Any, Any]]


@dataclasses.dataclass(frozen=True)
class DecodingConfig(Config):
    """Decoding method and its options.

    Attributes:
      method: "greedy", "beam" or "sample".
      beam_size: K, number of prefixes kept for each example; 1 is greedy decoding.
      length_penalty: p of score = Σ log-probabilities / length^p (Wu et al. 2016, simplified). The
        length includes the end token; values above 0 prefer long sequences.
      stopping: condition that ends the search of an example. "heuristic": the best prefix, scored
        at its present length, is no better than the worst of K finished hypotheses
        (early_stopping=False in transformers). "exact": no prefix can become better than the worst
        of these hypotheses at any length (early_stopping="never"). For a length_penalty above 0,
        "exact" takes more steps and may give other results.
      n_best: number of sequences returned for each example, from the beam or as independent
        samples.
      temperature: divisor of the logits in sampling.
      top_k: number of most likely tokens to sample from; 0 for all.
      top_p: samples are drawn from the fewest most likely tokens whose probabilities sum to at
        least top_p, after temperature and top_k.
      seed: random seed of sampling; see `example_keys`.
    """

    method: one_of("greedy", "beam", "sample") = "greedy"
    beam_size: PositiveInt = 1
    length_penalty: FiniteFloat = 1.0
    stopping: one_of("heuristic", "exact") = "heuristic"
    n_best: PositiveInt = 1
    temperature: within("(0, inf)", "a finite number above 0 (for 0, use method 'greedy')") = 1.0
    top_k: NonNegativeInt = 0
    top_p: within("(0, 1]", "a probability in (0, 1]") = 1.0
    seed: NonNegativeInt = 0

    def __post_init__(self):
        super().__post_init__()
        # An option of another method would silently have no effect.
        read = {"beam": ("beam_size", "stopping"), "sample": ("temperature", "top_k", "top_p")}
        for method, names in read.items():
            for name in names if method != self.method else ():
                default = getattr(DecodingConfig, name)
                expected = f"{default!r}, or method {method!r}"
                self.expect(name, getattr(self, name) == default, expected)
        most = {"greedy": 1, "beam": self.beam_size}.get(self.method, self.n_best)
        expected = f"at most {most} with method {self.method!r}"
        expected += " and this beam_size" if self.method == "beam" else ""
        self.expect("n_best", self.n_best <= most, expected)


class DecodingResult(NamedTuple):
    """Decoded sequences.

    If an example has fewer than n_best sequences, the missing ones are all `pad`, with score -inf.

    Attributes:
      tokens: int32 [B, n_best, T], including the end token, followed by `pad`.
      scores: float32 [B, n_best], best first, computed from the probabilities without temperature.
        A sequence that is truncated at T has the score of its T tokens.
      extras: extra outputs of the steps, with leaves [B, n_best, T, ...]; 0 after the end.
    """

    tokens: Array
    scores: Array
    extras: Any


@dataclasses.dataclass(frozen=True)
class TokenDecoder:
    """An autoregressive decoder before its first step: the arguments of `generate`.

    Attributes:
      step, state, start, end, pad, forbidden, scores_are_log_probs: arguments of `generate`. The
        state contains everything that a step depends on besides the model parameters, so that
        prefill and step can be separate programs.
      batch_size, max_length: B and T.
    """

    step: Step
    state: Any
    batch_size: int
    max_length: int
    start: int | Array
    end: int | None
    pad: int
    forbidden: Sequence[int] = ()
    scores_are_log_probs: bool = False

    def generate(self, config: DecodingConfig, keys: Array | None = None) -> DecodingResult:
        """Calls the function `generate` with the arguments that the attributes hold.

        Args:
          config: decoding method.
          keys: see `generate`.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[2:]}
        return generate(self.step, self.state, config=config, keys=keys, **options)


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
    """Decodes up to T tokens for each example; stops as soon as all sequences have ended.

    If `step` computes rows independently, the result of an example depends only on its own rows of
    `state`.

    Args:
      step: function that takes the previous tokens, int32 [R], and a state. It returns the logits
        [R, V] of the next tokens, the next state, and extra outputs. It keeps shapes and dtypes of
        the state. Each leaf of state and extra outputs has the leading axis R. In rows that have
        ended, the previous token is `pad`, and the results are discarded.
      state: state before the first step, with B rows, which are repeated for beams or samples. With
        a prompt, it is the state after all prompt tokens but the last, which is given as `start`.
      config: decoding method.
      batch_size: B.
      max_length: T, maximum number of decoded tokens, including the end token.
      start: first input token, int or int [B].
      end: the token that ends a sequence; None if all sequences have T tokens.
      pad: token that fills sequences after the end.
      keys: random keys [B], one for each example, for the method "sample"; see `example_keys`.
      forbidden: tokens that are never decoded. The probabilities of the other tokens are not
        renormalized.
      scores_are_log_probs: whether `step` returns log-probabilities instead of logits, or other
        scores, such as a weighted sum of the log-probabilities of two models. No softmax is applied
        to them.

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
    V, extra_shapes = _expect_step(step, start, state)
    for name, token in (("end", end), *(("forbidden", token) for token in forbidden)):
        if token is not None and not 0 <= token < V:
            raise ValueError(f"{name}: got token {token}, expected a token from 0 to {V - 1}")
    is_forbidden = jnp.zeros((V,), bool).at[jnp.array(forbidden, jnp.int32)].set(True)

    def scored(tokens: Array, state: Any) -> tuple[TokenScores, Any, Any]:
        logits, state, extras = step(tokens, state)
        return TokenScores.of(logits, is_forbidden, scores_are_log_probs), state, extras

    extras = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype), extra_shapes)
    options = {"max_length": T, "end": end, "pad": pad}
    if config.method == "beam" and config.beam_size > 1:
        options |= {"K": config.beam_size, "N": config.n_best, "exact": config.stopping == "exact"}
        options["length_penalty"] = config.length_penalty
        return DecodingResult(*beam_search(scored, start, state, extras, **options))
    return _decode_independently(scored, start, state, extras, config, keys, **options)


class _Rows(NamedTuple):
    """State of greedy decoding or sampling after t steps, in which rows are independent.

    Attributes:
      t: number of steps taken.
      tokens: last token of each row, [R].
      state: state of the step function, with leaves [R, ...].
      total: sum of the log-probabilities of the tokens of each row, [R].
      length: number of tokens of each row, [R].
      ended: bool [R], True for rows that have ended.
      written: int32 [T, R], the tokens of each step.
      extras: extra outputs of the steps, with leaves [T, R, ...].
    """

    t: Array
    tokens: Array
    state: Any
    total: Array
    length: Array
    ended: Array
    written: Array
    extras: Any


def _decode_independently(
    scored: Callable[[Array, Any], tuple[TokenScores, Any, Any]],
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
    """Decodes greedily, or draws n_best samples of each example."""
    R, N, T = start.shape[0], config.n_best, max_length
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in)(keys[jnp.arange(R) // N], jnp.arange(R) % N)

    def advance(now: _Rows) -> _Rows:
        scores, state, values = scored(now.tokens, now.state)
        if keys is None:
            token, gained = scores.best()
        else:
            all_scores = scores.log_probs(scores.values)
            steps = jax.vmap(jax.random.fold_in, (0, None))(keys, now.t)
            token = _sample(steps, all_scores, config)
            gained = jnp.take_along_axis(all_scores, token[:, None], axis=-1)[:, 0]
        token = jnp.where(now.ended, pad, token).astype(jnp.int32)
        # A row also ends if all tokens are excluded.
        ends = (gained == -jnp.inf) | (False if end is None else token == end)
        return _Rows(
            now.t + 1,
            token,
            state,
            now.total + jnp.where(now.ended, 0, gained),
            now.length + ~now.ended,
            now.ended | ends,
            now.written.at[now.t].set(token),
            write_step(now.extras, now.t, mask_leaves(~now.ended, values)),
        )

    first = _Rows(
        jnp.int32(0),
        start,
        state,
        jnp.zeros((R,), jnp.float32),
        jnp.zeros((R,), jnp.int32),
        jnp.zeros((R,), bool),
        jnp.full((T, R), pad, jnp.int32),
        extras,
    )
    last = jax.lax.while_loop(lambda now: (now.t < T) & ~jnp.all(now.ended), advance, first)
    scores = length_normalized(last.total, last.length, config.length_penalty).reshape(-1, N)
    exists = scores != -jnp.inf
    best = jnp.argsort(-scores, axis=1, stable=True)

    def ordered(leaf: Array) -> Array:
        """Sorts the rows of each example, best first: [T, R, ...] becomes [B, N, T, ...]."""
        return take_rows(jnp.moveaxis(leaf, 0, 1).reshape(-1, N, T, *leaf.shape[2:]), best)

    exists, scores = take_rows(exists, best), take_rows(scores, best)
    tokens = jnp.where(exists[..., None], ordered(last.written), pad)
    return DecodingResult(tokens, scores, mask_leaves(exists, jax.tree.map(ordered, last.extras)))


def _sample(keys: Array, scores: Array, config: DecodingConfig) -> Array:
    """Draws a token for each row.

    Args:
      keys: random keys [R].
      scores: log-probabilities [R, V].
      config: temperature, top_k and top_p.

    Returns:
      [R].
    """
    logits, V = scores / config.temperature, scores.shape[-1]
    draw = jax.vmap(jax.random.categorical)
    if config.top_k == 0 and config.top_p == 1.0:
        return draw(keys, logits)
    logits, tokens = jax.lax.top_k(logits, min(config.top_k or V, V))
    probabilities = jax.nn.softmax(logits, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The most likely token is never excluded.
    kept = (before < config.top_p).at[:, 0].set(True)
    drawn = draw(keys, jnp.where(kept, logits, -jnp.inf))
    return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]


def _repeated(tree: Any, copies: int, B: int) -> Any:
    """Repeats each row of each leaf `copies` times; the copies of a row are next to each other.

    Raises:
      ValueError: a leaf does not have B rows.
    """

    def repeated(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if leaf.ndim == 0 or leaf.shape[0] != B:
            got, expected = shapes.show(leaf.shape), f"a leading axis of {B}, the number of rows"
            raise ValueError(f"state: got a leaf of shape {got}, expected {expected}")
        return flatten_beams(jnp.broadcast_to(leaf[:, None], (B, copies, *leaf.shape[1:])))

    return jax.tree.map(repeated, tree)


def _expect_step(step: Step, tokens: Array, state: Any) -> tuple[int, Any]:
    """Checks the shapes of the results of a step, which is traced but not computed.

    Returns:
      V, and the shapes of the extra outputs.

    Raises:
      ValueError: logits, state or extras of a step have wrong shapes.
    """
    R = tokens.shape[0]
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
