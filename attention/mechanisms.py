"""The table of mechanisms: names, modules, costs and capabilities.

A new mechanism is one file and one entry of `TABLE`; the contract suite then tests it. Modules are
imported on first use; `attention.registry` is the interface.

Signatures of each kind:

* kernel: a function with the signature of `attention.attend`.
* mixer: `cls(model_size, num_heads=..., dropout_rate=0.0, dtype=float32, rngs=rngs, **options)`,
  then `mixer(x, *, mask=None, dropout_key=None, return_weights=False) -> [B, T, D]`, or with the
  weights. Mixers with "cache" have `cache = mixer.init_cache(batch_size, max_length)` and `y, cache
  = mixer.decode(x, cache, lengths=None)`; those with "max_length" also take `max_length`.
* alignment: `cls(query_size, memory_size, dtype=float32, rngs=rngs, **options)`, then
  `memory = prepare(states, valid=...)` once, `state = initial_state(memory)` and
  `context, weights, state = step(query, memory, state)`; weights [B, S], or of several heads
  [B, N, S].
* map_attention: `cls(channels, dtype=float32, rngs=rngs, **options)`, then
  `y = attention(x, *, valid=None, training=False, return_weights=False)`, or with the weights; x
  and y [B, Y, X, C]. `training` and `valid`, bool [B], affect batch statistics only. The
  weights of a gate are the factors of x, [B, Y or 1, X or 1, C or 1]; those between positions are
  [B, N, P, P], P = Y·X in row-major order.
* gate: `cls(channels, signal_channels, dtype=float32, rngs=rngs, **options)`, then
  `y = gate(x, gating_signal, ...)` as above; the gating signal is a map [B, Y', X', G] no finer
  than x.
* pool: `cls(model_size, rngs=rngs, **options)`, then
  `pooled, weights = pool(states, valid=..., dropout_key=None)`, [B, D] and [B, heads, T]; several
  queries or hops count as heads.
* `neighbours`: `cls(model_size, dtype=float32, rngs=rngs, **options)`, then
  `scores = attention(user, neighbors, ratings, *, valid=None, return_weights=False)`, [B, I] for I
  candidates, or with the weights [B, 1, I, S]; user [B, D], neighbors [B, S, D], ratings [B, S, I];
  valid bool [B, S], or [B, I, S] if it differs by candidate. One with a parameter for each user
  takes the indices of the neighbors as `ids`, int [B, S].
* history: `cls(model_size, dtype=float32, rngs=rngs, **options)`, then
  `scores = attention(candidates, history, *, bias=None, valid=None, return_weights=False)`, [B, I],
  or with the weights [B, 1, I, S]; candidates [B, I, D], history [B, S, D]; valid as above.
* profile: `cls(model_size, dtype=float32, rngs=rngs, **options)`, then
  `profile = attention(user, items, auxiliary, *, valid=None, return_weights=False)`, [B, D], or
  with the weights [B, 1, 1, S]; user [B, D], items and auxiliary [B, S, D]; valid bool [B, S]. One
  with content takes it as `content`, [B, S, C].
* components: `cls(model_size, component_size, dtype=float32, rngs=rngs, **options)`, then
  `content = attention(user, components, *, valid=None, return_weights=False)`, [B, S, C], or with
  the weights [B, 1, S, M]; user [B, D], components [B, S, M, C]; valid bool [B, S, M].
* lags: `cls(channels, lags, horizon, dtype=float32, rngs=rngs, **options)`, then
  `y = attention(x, *, valid=None, return_weights=False)`, x [B, T, C] with the last `lags` times
  used, y [B, horizon, C], or with the weights [B, 1 or C, horizon, T]; valid bool [B, T] or
  [B, T, C].
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

KINDS = {
    "kernel": "Kernels: implementations of `attend`",
    "mixer": "Sequence mixers",
    "alignment": "Alignments for recurrent decoders",
    "map_attention": "Attention over feature maps",
    "gate": "Gates of a feature map by a coarser one",
    "pool": "Pools: a sequence to one vector",
    "neighbours": "Similar users: scores from their ratings",
    "history": "Histories: scores by the similarity of items",
    "profile": "Histories: a vector of the user",
    "components": "Components of an item: its content for a user",
    "lags": "The past of a series: forecasts",
}

CAPABILITIES = {
    "mask": "supports any `Mask`",
    "padding": "supports `masks.lengths` and `masks.valid`, or the argument `valid`",
    "causal": "supports `masks.causal()`: no position depends on a later one",
    "always_causal": "is causal with any mask",
    "cross": "queries and keys may come from different sequences (T != S)",
    "weights": "returns its weights, the matrix from values to results",
    "normalized": "weights are at least 0, and rows with a visible key sum to 1",
    "bias": "adds a bias to the logits",
    "logit_cap": "bounds the logits",
    "sinks": "learned logits of keys without values",
    "grouped_query": "fewer key/value heads than query heads",
    "value_size": "value head size may differ from head size",
    "dropout": "drops weights or, if they are never formed, parts of the result",
    "positions": "supports positions='rope', 'alibi', 't5' or 'shaw'",
    "permutation": "without positions, the result does not depend on the order of the keys",
    "sparse": "restricts each query to a subset of the visible keys",
    "cpu": "runs only on a CPU",
    "cuda": "runs only on an NVIDIA GPU",
    "tpu": "runs only on a TPU",
    "interpreted": "runs anywhere under `kernels.interpreted()`, slowly, for tests",
    "cache": "decodes step by step: `init_cache`, `decode`",
    "max_length": "is built for a maximum length",
    "length_dependent": "results depend on the amount of padding; for inputs of equal length",
    "state": "carries a state from step to step",
    "gate": "its weights are factors of the input",
    "forward_mode": "has forward-mode derivatives (jvp, jacfwd, hessian)",
    "higher_derivatives": "has reverse-mode derivatives of derivatives",
    "symbolic": "supports symbolic batch sizes of `jax.export`",
    "mesh": "shards sequences over the mesh axis 'sequence', and runs only there",
    "batch_statistics": "normalizes by the batch in training, by running statistics in evaluation",
}


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """One registry entry.

    Attributes:
      name: the name in configs.
      kind: one of `KINDS`.
      target: `module:attribute`, imported on first use.
      paper, equation, time, memory: short phrases for the README table.
      capabilities: names from `CAPABILITIES`; the contract suite tests exactly these.
    """

    name: str
    kind: str
    target: str
    paper: str
    equation: str
    time: str
    memory: str
    capabilities: frozenset[str]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: got kind {self.kind!r}, expected one of {list(KINDS)}")
        unknown = sorted(self.capabilities - CAPABILITIES.keys())
        if unknown:
            raise ValueError(f"{self.name}: unknown capabilities {unknown}")

    def load(self) -> Any:
        """Imports and returns the function or class."""
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)


def _entry(
    kind: str, name: str, target: str, paper: str, equation: str, time: str, memory: str, can: str
) -> Mechanism:
    return Mechanism(
        name, kind, f"attention.{target}", paper, equation, time, memory, frozenset(can.split())
    )


# Kernels are in the order in which "auto" tries them; the reference, which supports all, is last.
TABLE: list[Mechanism] = [
    _entry(
        "kernel",
        "ring",
        "kernels.blockwise.ring:attend",
        "Liu et al. 2023 (Ring Attention)",
        "Σ_r exp(z_r - z)·o_r, r over the parts of the keys",
        "O(T·S / R), R devices",
        "O((T + S) / R)",
        "mask padding causal cross weights normalized bias logit_cap sinks grouped_query "
        "value_size dropout permutation mesh",
    ),
    _entry(
        "kernel",
        "ulysses",
        "kernels.blockwise.ulysses:attend",
        "Jacobs et al. 2023 (DeepSpeed Ulysses)",
        "softmax(cap(scale·qkᵀ + bias))·v, some heads a device",
        "O(T·S / R), R devices",
        "O((T + S) / R)",
        "mask padding causal cross weights normalized bias logit_cap sinks grouped_query "
        "value_size dropout permutation mesh",
    ),
    _entry(
        "kernel",
        "cudnn",
        "kernels.gpu.cudnn:attend",
        "Dao 2024, by cuDNN",
        "softmax(scale·qkᵀ + bias)·v, block by block",
        "O(T·S), about half if causal; O(T·W)",
        "O(T + S)",
        "causal cross bias grouped_query permutation cuda",
    ),
    _entry(
        "kernel",
        "triton",
        "kernels.gpu.triton:attend",
        "Dao 2024, through Pallas",
        "softmax(cap(scale·qkᵀ + bias))·v, block by block",
        "O(T·S); O(T·W) where blocks are skipped",
        "O(T + S); O(T·S) for a bias that learns",
        "mask padding causal cross bias logit_cap sinks grouped_query value_size permutation cuda "
        "interpreted",
    ),
    _entry(
        "kernel",
        "splash",
        "kernels.tpu.splash:attend",
        "Dao 2024, by JAX's splash attention",
        "softmax(cap(scale·qkᵀ))·v, block by block",
        "O(T·S); O(T·W) where blocks are skipped",
        "O(T + S)",
        "padding causal cross logit_cap sinks grouped_query value_size permutation tpu interpreted",
    ),
    _entry(
        "kernel",
        "tokamax",
        "kernels.gpu.tokamax:attend",
        "Dao 2024, by tokamax",
        "softmax(cap(scale·qkᵀ + bias))·v, block by block",
        "O(T·S), about half if causal",
        "O(T + S); O(T·S) for masks that are not causal",
        "mask padding causal cross bias logit_cap grouped_query value_size permutation cuda",
    ),
    _entry(
        "kernel",
        "native",
        "kernels.cpu.attention:attend",
        "Dao et al. 2022; Milakov & Gimelshein 2018",
        "softmax(cap(scale·qkᵀ + bias))·v by blocks, in C++ on a CPU",
        "O(T·S); of seen blocks only",
        "O(T + S)",
        "mask padding causal cross weights normalized bias logit_cap sinks grouped_query "
        "value_size dropout permutation cpu higher_derivatives",
    ),
    _entry(
        "kernel",
        "blockwise",
        "kernels.blockwise.attention:attend",
        "Dao et al. 2022 (FlashAttention)",
        "softmax(cap(scale·qkᵀ + bias))·v, block by block",
        "O(T·S), less what the mask hides",
        "O(T + S)",
        "mask padding causal cross weights normalized bias logit_cap sinks grouped_query "
        "value_size dropout permutation symbolic",
    ),
    _entry(
        "kernel",
        "reference",
        "kernels.reference:attend",
        "Vaswani et al. 2017",
        "softmax(cap(scale·qkᵀ + bias))·v",
        "O(T·S)",
        "O(T·S)",
        "mask padding causal cross weights normalized bias logit_cap sinks grouped_query "
        "value_size dropout permutation forward_mode higher_derivatives symbolic",
    ),
    _entry(
        "mixer",
        "dot_product",
        "multi_head:MultiHeadAttention",
        "Vaswani et al. 2017; grouped: Ainslie et al. 2023",
        "concatₙ(attend(xW_q, mW_k, mW_v))·W_o",
        "O(T·S·D + T·D²)",
        "O(T·S)",
        "mask padding causal cross weights normalized bias logit_cap grouped_query value_size "
        "dropout positions permutation cache",
    ),
    _entry(
        "mixer",
        "sliding_window",
        "sequence.sparse:SlidingWindow",
        "Beltagy et al. 2020; Jiang et al. 2023",
        "attend over -right ≤ t - s ≤ left",
        "O(T·W·D + T·D²) where blocks are skipped",
        "O(T²); O(T·W) where blocks are skipped",
        "mask padding causal weights normalized bias logit_cap grouped_query value_size dropout "
        "positions sparse cache",
    ),
    _entry(
        "mixer",
        "strided",
        "sequence.sparse:Strided",
        "Child et al. 2019",
        "attend over -L < t - s < L or (t - s) mod L = 0",
        "O(T·W·D + T·D²) where blocks are skipped",
        "O(T²); O(T·W) where blocks are skipped",
        "mask padding causal weights normalized bias logit_cap grouped_query value_size dropout "
        "positions sparse cache",
    ),
    _entry(
        "mixer",
        "fixed",
        "sequence.sparse:Fixed",
        "Child et al. 2019",
        "attend over ⌊t/L⌋ = ⌊s/L⌋ or s mod L ≥ L - c",
        "O(T·W·D + T·D²) where blocks are skipped",
        "O(T²); O(T·W) where blocks are skipped",
        "mask padding causal weights normalized bias logit_cap grouped_query value_size dropout "
        "positions sparse cache",
    ),
    _entry(
        "mixer",
        "longformer",
        "sequence.longformer:Longformer",
        "Beltagy et al. 2020",
        "attend over a window and global s; global t over all, by W_q', W_k', W_v'",
        "O(T·W·D + T·D²) where blocks are skipped",
        "O(T²); O(T·W) where blocks are skipped",
        "mask padding causal weights normalized bias logit_cap grouped_query value_size dropout "
        "positions sparse cache",
    ),
    _entry(
        "mixer",
        "bigbird",
        "sequence.sparse:BigBird",
        "Zaheer et al. 2020",
        "attend over blocks near by, at the front and at random",
        "O(T·W·D + T·D²) where blocks are skipped",
        "O(T²); O(T·W) where blocks are skipped",
        "mask padding causal weights normalized bias logit_cap grouped_query value_size dropout "
        "positions sparse cache",
    ),
    _entry(
        "mixer",
        "linformer",
        "sequence.low_rank:Linformer",
        "Wang et al. 2020",
        "softmax(q(Eᵀk)ᵀ)·Fᵀv",
        "O(T·R·D + T·D²)",
        "O(T·R)",
        "padding weights dropout max_length",
    ),
    _entry(
        "mixer",
        "prob_sparse",
        "sequence.prob_sparse:ProbSparse",
        "Zhou et al. 2021",
        "softmax(qkᵀ)·v of the queries that prefer some keys; the mean of v of the others",
        "O(T·log T·D + T·D²)",
        "O(T·log T)",
        "padding weights normalized dropout length_dependent",
    ),
    _entry(
        "mixer",
        "nystromformer",
        "sequence.nystrom:Nystromformer",
        "Xiong et al. 2021",
        "softmax(qk̃ᵀ)·softmax(q̃k̃ᵀ)⁺·softmax(q̃kᵀ)·v + conv(v)",
        "O(T·M·D + N·M³ + T·D²)",
        "O(T·M)",
        "padding weights dropout",
    ),
    _entry(
        "mixer",
        "linear",
        "sequence.linear:LinearAttention",
        "Katharopoulos et al. 2020",
        "φ(q)ᵀ·Σₛ φ(kₛ)vₛᵀ / φ(q)·Σₛ φ(kₛ), φ = elu + 1",
        "O(T·D·H)",
        "O(T·D)",
        "padding causal weights normalized dropout permutation cache",
    ),
    _entry(
        "mixer",
        "performer",
        "sequence.performer:Performer",
        "Choromanski et al. 2021 (FAVOR+)",
        "as linear, φ = exp(Ωx - |x|²/2) or ReLU(Ωx) + ε",
        "O(T·N·F·H), F features",
        "O(T·N·F)",
        "padding causal weights normalized dropout permutation cache",
    ),
    _entry(
        "mixer",
        "gated_delta_net",
        "sequence.gated_delta_net:GatedDeltaNet",
        "Yang et al. 2025; delta rule: Schlag et al. 2021",
        "Sₜ = αₜ(I - βₜkₜkₜᵀ)Sₜ₋₁ + βₜkₜvₜᵀ, oₜ = Sₜᵀqₜ",
        "O(T·D·H + T·D²)",
        "O(T·D)",
        "padding causal always_causal weights dropout cache",
    ),
    _entry(
        "mixer",
        "fourier",
        "sequence.fourier:Fourier",
        "FNet: Lee-Thorp et al. 2022 (control)",
        "Re(F_seq F_hidden x)",
        "O(T·D·log(T·D)); with padding O(T²·D)",
        "O(T·D); with padding O(T²)",
        "padding dropout",
    ),
    _entry(
        "mixer",
        "talking_heads",
        "sequence.talking_heads:TalkingHeadsAttention",
        "Shazeer et al. 2020",
        "(softmax((qkᵀ)·P)·R)·v, P and R mix heads",
        "O(T·S·(D + N²) + T·D²)",
        "O(N·T·S)",
        "mask padding causal cross weights dropout permutation cache",
    ),
    _entry(
        "mixer",
        "latent",
        "sequence.latent:LatentAttention",
        "MLA: DeepSeek-AI 2024",
        "attend([q; q_rope], [U c; k_rope], W c), c = norm(xW_c)",
        "O(T·S·D + T·D²); a step O(S·N·C)",
        "O(T·S); cache O(S·C)",
        "mask padding causal weights normalized dropout cache",
    ),
    _entry(
        "mixer",
        "differential",
        "sequence.differential:DifferentialAttention",
        "Ye et al. 2024",
        "(1 - λ₀)·norm((softmax(q₁k₁ᵀ) - λ·softmax(q₂k₂ᵀ))·v)",
        "O(T·S·D + T·D²)",
        "O(T·S)",
        "mask padding causal weights grouped_query dropout positions permutation cache",
    ),
    _entry(
        "mixer",
        "temporal",
        "recurrent.temporal:TemporalAttention",
        "Cheng et al. 2016; heads: Vaswani et al. 2017",
        "concatₙ(attend(hₜW_q, hₛW_k, hₛW_v))·W_o over s ≤ t",
        "O(T²·D + T·D²); a step O(T·D + D²)",
        "O(T²); cache O(T·D)",
        "mask padding causal always_causal weights normalized dropout cache",
    ),
    _entry(
        "alignment",
        "additive",
        "recurrent.additive:AdditiveAlignment",
        "Bahdanau et al. 2015",
        "softmax(v·tanh(Wq + Uhₛ + b))",
        "O(S·A) a step",
        "O(S·(A + D))",
        "padding cross weights normalized permutation",
    ),
    _entry(
        "alignment",
        "dot",
        "recurrent.dot_product:DotAlignment",
        "Luong et al. 2015",
        "softmax(q·hₛ)",
        "O(S·D) a step",
        "O(S·D)",
        "padding cross weights normalized permutation",
    ),
    _entry(
        "alignment",
        "general",
        "recurrent.dot_product:GeneralAlignment",
        "Luong et al. 2015",
        "softmax(qᵀW·hₛ)",
        "O(S·D) a step",
        "O(S·D)",
        "padding cross weights normalized permutation",
    ),
    _entry(
        "alignment",
        "concat",
        "recurrent.additive:ConcatAlignment",
        "Luong et al. 2015",
        "softmax(v·tanh(W[q; hₛ]))",
        "O(S·A) a step",
        "O(S·(A + D))",
        "padding cross weights normalized permutation",
    ),
    _entry(
        "alignment",
        "local_p",
        "recurrent.local:LocalAlignment",
        "Luong et al. 2015",
        "softmax(qᵀW·hₛ)·exp(-(s - p)²/2σ²) over |s - p| ≤ 2σ, p = S·σ(v·tanh(W_p q))",
        "O(S·D) a step",
        "O(S·D)",
        "padding cross weights",
    ),
    _entry(
        "alignment",
        "location_aware",
        "recurrent.location:LocationAwareAlignment",
        "Chorowski et al. 2015; cumulative: Shen et al. 2018",
        "softmax(v·tanh(Wq + Vhₛ + U(F * αₜ₋₁)ₛ + b))",
        "O(S·K·(A + W)) a step, K filters W wide",
        "O(S·(A + D))",
        "padding cross weights normalized state",
    ),
    _entry(
        "alignment",
        "multi_head",
        "recurrent.multi_head:MultiHeadAlignment",
        "Vaswani et al. 2017",
        "concatₙ(softmax(qW_q·hₛW_k)·hW_v)·W_o",
        "O(S·D + D²) a step",
        "O(S·D)",
        "padding cross weights normalized permutation",
    ),
    _entry(
        "alignment",
        "none",
        "recurrent.dot_product:NoAlignment",
        "Sutskever et al. 2014 (control)",
        "the last valid state, at every step",
        "O(1) a step",
        "O(S·D)",
        "padding cross weights normalized",
    ),
    _entry(
        "map_attention",
        "se",
        "image.channel:SqueezeExcite",
        "Hu et al. 2018",
        "x·σ(W₂ relu(W₁ mean(x)))",
        "O(P·C + C·R)",
        "O(C)",
        "weights gate",
    ),
    _entry(
        "map_attention",
        "eca",
        "image.channel:EfficientChannel",
        "Wang et al. 2020 (ECA-Net)",
        "x·σ(conv(mean(x))) along the channels",
        "O(P·C)",
        "O(C)",
        "weights gate",
    ),
    _entry(
        "map_attention",
        "cbam",
        "image.cbam:CBAM",
        "Woo et al. 2018",
        "x' = x·M_c(x), y = x'·M_s(x')",
        "O(P·(C + K²) + C·R)",
        "O(P + C)",
        "weights gate batch_statistics",
    ),
    _entry(
        "map_attention",
        "cbam_channel",
        "image.cbam:ChannelGate",
        "Woo et al. 2018, M_c alone",
        "x·σ(MLP(mean(x)) + MLP(max(x)))",
        "O(P·C + C·R)",
        "O(C)",
        "weights gate",
    ),
    _entry(
        "map_attention",
        "cbam_spatial",
        "image.cbam:SpatialGate",
        "Woo et al. 2018, M_s alone",
        "x·σ(BN(conv([max_c x; mean_c x])))",
        "O(P·(C + K²))",
        "O(P)",
        "weights gate batch_statistics",
    ),
    _entry(
        "map_attention",
        "scse",
        "image.scse:ChannelAndSpatial",
        "Roy et al. 2018",
        "x·σ(W₂ relu(W₁ mean(x))) + x·σ(w·x)",
        "O(P·C + C·R)",
        "O(P + C)",
        "weights gate",
    ),
    _entry(
        "map_attention",
        "coordinate",
        "image.coordinate:Coordinate",
        "Hou et al. 2021",
        "x·σ(f(mean_x x))·σ(f(mean_y x))",
        "O(P·C + (Y + X)·C·R)",
        "O((Y + X)·C)",
        "weights gate batch_statistics",
    ),
    _entry(
        "map_attention",
        "non_local",
        "image.non_local:NonLocal",
        "Wang et al. 2018",
        "x + BN(softmax(θ(x)φ(x)ᵀ)·g(x)·W_z)",
        "O(P²·C + P·C²)",
        "O(P²)",
        "weights normalized batch_statistics",
    ),
    _entry(
        "map_attention",
        "axial",
        "image.axial:Axial",
        "Ho et al. 2019; Wang et al. 2020",
        "h = x + attend(rows of x), y = h + attend(columns of h)",
        "O(P·(Y + X)·C + P·C²)",
        "O(P·(Y + X))",
        "weights normalized positions",
    ),
    _entry(
        "map_attention",
        "shifted_window",
        "image.window:ShiftedWindow",
        "Swin: Liu et al. 2021",
        "x + softmax(qkᵀ + b)·v in shifted windows",
        "O(P·S²·C + P·C²)",
        "O(P·S²)",
        "weights normalized",
    ),
    _entry(
        "gate",
        "attention_gate",
        "image.attention_gate:AttentionGate",
        "Attention U-Net: Oktay et al. 2018",
        "x·σ(ψ·relu(W_x x + W_g g))",
        "O(P·C·F)",
        "O(P·F)",
        "weights gate",
    ),
    _entry(
        "pool",
        "mean",
        "pooling:MeanPool",
        "control",
        "Σₜ xₜ / T",
        "O(T·D)",
        "O(D)",
        "padding weights normalized permutation",
    ),
    _entry(
        "pool",
        "max",
        "pooling:MaxPool",
        "control; Collobert et al. 2011",
        "maxₜ xₜ, a channel at a time",
        "O(T·D)",
        "O(D)",
        "padding weights normalized permutation",
    ),
    _entry(
        "pool",
        "attention",
        "pooling:AttentionPool",
        "Yang et al. 2016",
        "Σₜ softmax(u·tanh(Wxₜ + b))·xₜ",
        "O(T·D·A)",
        "O(T·A)",
        "padding weights normalized dropout permutation",
    ),
    _entry(
        "pool",
        "multi_head",
        "pooling:MultiHeadPool",
        "Lee et al. 2019 (PMA)",
        "concatₙ(attend(seedₙ, xW_k, xW_v))·W_o",
        "O(T·D²)",
        "O(T·D)",
        "padding weights normalized dropout permutation",
    ),
    _entry(
        "pool",
        "structured",
        "structured_pooling:StructuredPool",
        "Lin et al. 2017",
        "concatᵣ(softmax(w₂ᵣ·tanh(W₁xₜ))·x)·W_o",
        "O(T·D·A + T·R·(A + D) + R·D²), R hops",
        "O(T·(A + R))",
        "padding weights normalized dropout permutation",
    ),
    _entry(
        "neighbours",
        "user_neighbours",
        "collaborative.neighbors:UserNeighbors",
        "after Resnick et al. 1994",
        "Σᵥ wᵥ·sim(u, v)·r(v, i) / Σᵥ |wᵥ·sim(u, v)|",
        "O(S·(D + I))",
        "O(S·D + I)",
        "padding weights permutation",
    ),
    _entry(
        "history",
        "fism",
        "collaborative.nais:FISM",
        "Kabbur et al. 2013 (control)",
        "b + n^(-α)·Σⱼ qⱼ·p",
        "O(I·S·D)",
        "O(I·S)",
        "padding weights permutation",
    ),
    _entry(
        "history",
        "nais",
        "collaborative.nais:NAIS",
        "He et al. 2018",
        "b + n^(-α)·Σⱼ aⱼ·qⱼ·p, aⱼ = exp(fⱼ) / (Σ exp(f))^β",
        "O(I·S·D·A); concat O((I + S)·D·A + I·S·(D + A))",
        "O(I·S·(D + A))",
        "padding weights permutation",
    ),
    _entry(
        "profile",
        "acf",
        "collaborative.acf:ItemAttention",
        "Chen et al. 2017",
        "Σₗ softmax(w·relu(W_u u + W_v vₗ + W_p pₗ + W_x x̄ₗ + b))·pₗ",
        "O(S·D·A)",
        "O(S·(D + A))",
        "padding weights normalized permutation",
    ),
    _entry(
        "components",
        "acf",
        "collaborative.acf:ComponentAttention",
        "Chen et al. 2017",
        "Σₘ softmax(w·relu(W_u u + W_x xₗₘ + b))·xₗₘ",
        "O(S·M·C·A), M components",
        "O(S·M·(C + A))",
        "padding weights normalized permutation",
    ),
    _entry(
        "lags",
        "lag",
        "lag:LagAttention",
        "Yule 1927; softmax: Vaswani et al. 2017 (control)",
        "Σᵢ softmax(l)ᵢ·xₜ₋ᵢ",
        "O(F·L·C)",
        "O(F·L + L·C)",
        "padding weights normalized",
    ),
    _entry(
        "lags",
        "lag_residual",
        "lag:ResidualLagAttention",
        "after Zeng et al. 2023 (NLinear)",
        "c + Σₙ Wₙ·Σᵢ softmax(lₙ)ᵢ·(xₜ₋ᵢ - c)",
        "O(F·L·(C + N))",
        "O(N·F·L + L·C)",
        "padding weights",
    ),
]
