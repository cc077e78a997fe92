"""The table of mechanisms: names, modules, costs and capabilities.

A new mechanism is one file and one entry of `_ENTRIES`; tests/attention/test_contract.py then tests
it. Modules are imported on first use; `attention.registry` is the interface to this table.

The signatures of each kind follow, with B examples, T queries or times, S keys, N heads and D model
size. "Or with the weights" means that calls with `return_weights=True` return the weights too:

* kernel: a function with the signature of `attention.attend`, but without `implementation` and
  without defaults (`attention.kernels.options`).
* mixer: `cls(model_size, num_heads=..., dropout_rate=0.0, dtype=float32, rngs=rngs, **options)`,
  then `mixer(x, *, mask=None, dropout_key=None, return_weights=False) -> [B, T, D]`, or with the
  weights. Mixers with the capability "cache" have `cache = mixer.init_cache(batch_size,
  max_length)` and `y, cache = mixer.decode(x, cache, lengths=None)`. The class of a mixer with the
  capability "max_length" also takes `max_length`.
* alignment: `cls(query_size, memory_size, dtype=float32, rngs=rngs, **options)`, then once
  `memory = prepare(states, valid=...)` and `state = initial_state(memory)`, then in each step
  `context, weights, state = step(query, memory, state)`. The weights are [B, S], or [B, N, S] with
  several heads.
* map_attention: `cls(channels, dtype=float32, rngs=rngs, **options)`, then
  `y = attention(x, *, valid=None, training=False, return_weights=False)`, or with the weights. x
  and y are [B, Y, X, C]. `training` and `valid`, bool [B], affect batch statistics only. The
  weights of a mechanism with the capability "gate" are the factors of x, [B, Y or 1, X or 1, C or
  1]. Weights between positions are [B, N, P, P], for P = Y·X positions in row-major order.
* gate: `cls(channels, signal_channels, dtype=float32, rngs=rngs, **options)`, then
  `y = gate(x, gating_signal, ...)` as above. The gating signal is a feature map [B, Y', X', G]
  whose resolution is at most that of x.
* pool: `cls(model_size, rngs=rngs, **options)`, then
  `pooled, weights = pool(states, valid=..., dropout_key=None)`. The results are [B, D] and
  [B, heads, T]. Several queries or hops count as heads.
* `neighbours`: `cls(model_size, dtype=float32, rngs=rngs, **options)`, then
  `scores = attention(user, neighbors, ratings, *, valid=None, return_weights=False)`, or with the
  weights. The scores are [B, I] for I candidates, and the weights [B, 1, I, S]. The arguments are
  user [B, D], neighbors [B, S, D] and ratings [B, S, I], and valid, bool [B, S], or [B, I, S] if it
  is different for each candidate. A module with a parameter for each user takes `ids`, int [B, S],
  the indices of the neighbors.
* history: `cls(model_size, dtype=float32, rngs=rngs, **options)`, then
  `scores = attention(candidates, history, *, bias=None, valid=None, return_weights=False)`, or with
  the weights. The scores are [B, I], and the weights [B, 1, I, S]. The arguments are candidates
  [B, I, D] and history [B, S, D], and valid, bool [B, S] or [B, I, S].
* profile: `cls(model_size, dtype=float32, rngs=rngs, **options)`, then `profile = attention(user,
  items, auxiliary, *, valid=None, return_weights=False)`, or with the weights. The profile is
  [B, D], and the weights are [B, 1, 1, S]. The arguments are user [B, D], items and auxiliary
  [B, S, D], and valid, bool [B, S]. A module with a `content_size` takes the content of the items
  as `content`, [B, S, C].
* components: `cls(model_size, component_size, dtype=float32, rngs=rngs, **options)`, then
  `content = attention(user, components, *, valid=None, return_weights=False)`, or with the weights.
  The content is [B, S, C], and the weights are [B, 1, S, M]. The arguments are user [B, D],
  components [B, S, M, C], and valid, bool [B, S, M].
* lags: `cls(channels, lags, horizon, dtype=float32, rngs=rngs, **options)`, then
  `y = attention(x, *, valid=None, return_weights=False)`, or with the weights. x is [B, T, C], but
  only its last `lags` times are used. y is [B, horizon, C], and the weights are [B, 1 or C,
  horizon, T]. valid is bool [B, T] or [B, T, C].
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
    "gate": "Gates: a coarser feature map weights a finer one",
    "pool": "Pools: one vector for a sequence",
    "neighbours": "Similar users: scores from their ratings",
    "history": "Histories: scores by the similarity of items",
    "profile": "Profiles: a vector of the user from the history",
    "components": "Components: a vector of each item from its components",
    "lags": "Lags: forecasts from the past of a series",
}

CAPABILITIES = {
    "mask": "supports any `Mask`",
    "padding": "supports `masks.lengths` and `masks.valid`, or the argument `valid`",
    "causal": "supports `masks.causal()`: no position depends on a later one",
    "always_causal": "is causal even without a causal mask",
    "cross": "queries and keys may come from different sequences (T != S)",
    "weights": "returns its weights, the matrix that maps values to results",
    "normalized": "weights are at least 0, and rows with a visible key sum to 1",
    "bias": "adds a bias to the logits",
    "logit_cap": "bounds the logits",
    "sinks": "learned logits in the denominator of the softmax, without values",
    "grouped_query": "fewer key/value heads than query heads",
    "value_size": "value head size may differ from head size",
    "dropout": "applies dropout to the weights or, if they are never computed, to the result",
    "positions": "supports positions='rope', 'alibi', 't5' or 'shaw'",
    "permutation": "without positions, the result does not depend on the order of the keys",
    "sparse": "restricts each query to a subset of the visible keys",
    "cpu": "runs only on a CPU",
    "cuda": "runs only on an NVIDIA GPU",
    "tpu": "runs only on a TPU",
    "interpreted": "runs anywhere under `kernels.interpreted()`, slowly, for tests",
    "cache": "decodes step by step: `init_cache`, `decode`",
    "max_length": "has a maximum sequence length, set at construction",
    "length_dependent": "results depend on the amount of padding; inputs should have equal length",
    "state": "carries a state from step to step",
    "gate": "its weights are factors that multiply the input",
    "gradients": "`attribution.attention_gradients` computes gradients of its weights",
    "forward_mode": "has forward-mode derivatives (jvp, jacfwd, hessian)",
    "higher_derivatives": "has second and higher derivatives in reverse mode",
    "symbolic": "supports symbolic batch sizes of `jax.export`",
    "per_device": "runs on each device of a mesh for its examples and heads, without communication",
    "mesh": "shards sequences over the mesh axis 'sequence', and needs a mesh with this axis",
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
      capabilities: names from `CAPABILITIES`; test_contract.py tests exactly these.
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
            expected = f"some of {list(CAPABILITIES)}"
            raise ValueError(f"{self.name}: got capabilities {unknown}, expected {expected}")

    def load(self) -> Any:
        """Imports and returns the function or class."""
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)


def _parsed(kind: str, paragraph: str) -> Mechanism:
    try:
        head, equation, costs, *capabilities = paragraph.splitlines()
        name, target, paper = head.split(" | ")
        time, memory = costs.strip().removeprefix("time ").split("; memory ")
    except ValueError:
        expected = "the lines 'name | module:attribute | paper', equation, costs, capabilities"
        raise ValueError(f"{kind}: got {paragraph!r}, expected {expected}") from None
    words = frozenset(" ".join(capabilities).split())
    target = f"attention.{target}"
    return Mechanism(name, kind, target, paper, equation.strip(), time, memory, words)


# The entries of each kind are separated by blank lines. An entry has these lines:
#
#   name | module:attribute | paper
#     equation
#     time ...; memory ...
#     capabilities, on one or more lines
#
# Kernels are in the order in which "auto" tries them; the reference, which supports everything, is
# last.
_ENTRIES = {
    "kernel": """
ring | kernels.blockwise.ring:attend | Liu et al. 2023 (Ring Attention)
  Σ_r exp(z_r - z)·o_r, r over the shards of the keys
  time O(T·S / R), R devices; memory O((T + S) / R)
  mask padding causal cross weights normalized bias logit_cap sinks grouped_query value_size
  dropout permutation mesh

ulysses | kernels.blockwise.ulysses:attend | Jacobs et al. 2023 (DeepSpeed Ulysses)
  softmax(cap(scale·qkᵀ + bias))·v, a part of the heads on each device
  time O(T·S / R), R devices; memory O((T + S) / R)
  mask padding causal cross weights normalized bias logit_cap sinks grouped_query value_size
  dropout permutation mesh

cudnn | kernels.gpu.cudnn:attend | Dao 2024, by cuDNN
  softmax(scale·qkᵀ + bias)·v, block by block
  time O(T·S), about half if causal; O(T·W); memory O(T + S)
  causal cross bias grouped_query permutation cuda per_device

triton | kernels.gpu.triton:attend | Dao 2024, through Pallas
  softmax(cap(scale·qkᵀ + bias))·v, block by block
  time O(T·S); O(T·W) where blocks are skipped; memory O(T + S); O(T·S) for a bias with gradient
  mask padding causal cross bias logit_cap sinks grouped_query value_size permutation cuda
  interpreted per_device

splash | kernels.tpu.splash:attend | Dao 2024, by JAX's splash attention
  softmax(cap(scale·qkᵀ))·v, block by block
  time O(T·S); O(T·W) where blocks are skipped; memory O(T + S)
  padding causal cross logit_cap sinks grouped_query value_size permutation tpu interpreted
  per_device

tokamax | kernels.gpu.tokamax:attend | Dao 2024, by tokamax
  softmax(cap(scale·qkᵀ + bias))·v, block by block
  time O(T·S), about half if causal; memory O(T + S); O(T·S) for masks that are not causal
  mask padding causal cross bias logit_cap grouped_query value_size permutation cuda per_device

native | kernels.cpu.attention:attend | Dao et al. 2022; Milakov & Gimelshein 2018
  softmax(cap(scale·qkᵀ + bias))·v by blocks, in C++ on a CPU
  time O(T·S), visible blocks only; memory O(T + S)
  mask padding causal cross weights normalized bias logit_cap sinks grouped_query value_size
  dropout permutation cpu higher_derivatives

blockwise | kernels.blockwise.attention:attend | Dao et al. 2022 (FlashAttention)
  softmax(cap(scale·qkᵀ + bias))·v, block by block
  time O(T·S), less what the mask hides; memory O(T + S)
  mask padding causal cross weights normalized bias logit_cap sinks grouped_query value_size
  dropout permutation symbolic

reference | kernels.reference:attend | Vaswani et al. 2017
  softmax(cap(scale·qkᵀ + bias))·v
  time O(T·S); memory O(T·S)
  mask padding causal cross weights normalized bias logit_cap sinks grouped_query value_size
  dropout permutation forward_mode higher_derivatives symbolic
""",
    "mixer": """
dot_product | multi_head:MultiHeadAttention | Vaswani et al. 2017; grouped: Ainslie et al. 2023
  concatₙ(attend(xW_q, mW_k, mW_v))·W_o
  time O(T·S·D + T·D²); memory O(T·S)
  mask padding causal cross weights normalized bias logit_cap grouped_query value_size dropout
  positions permutation cache gradients

sliding_window | sequence.sparse:SlidingWindow | Beltagy et al. 2020; Jiang et al. 2023
  attend over -right ≤ t - s ≤ left
  time O(T·W·D + T·D²) where blocks are skipped; memory O(T²); O(T·W) where blocks are skipped
  mask padding causal weights normalized bias logit_cap grouped_query value_size dropout positions
  sparse cache gradients

strided | sequence.sparse:Strided | Child et al. 2019
  attend over -L < t - s < L or (t - s) mod L = 0
  time O(T·W·D + T·D²) where blocks are skipped; memory O(T²); O(T·W) where blocks are skipped
  mask padding causal weights normalized bias logit_cap grouped_query value_size dropout positions
  sparse cache gradients

fixed | sequence.sparse:Fixed | Child et al. 2019
  attend over ⌊t/L⌋ = ⌊s/L⌋ or s mod L ≥ L - c
  time O(T·W·D + T·D²) where blocks are skipped; memory O(T²); O(T·W) where blocks are skipped
  mask padding causal weights normalized bias logit_cap grouped_query value_size dropout positions
  sparse cache gradients

longformer | sequence.longformer:Longformer | Beltagy et al. 2020
  attend over a window and global s; global t over all, by W_q', W_k', W_v'
  time O(T·W·D + T·D²) where blocks are skipped; memory O(T²); O(T·W) where blocks are skipped
  mask padding causal weights normalized bias logit_cap grouped_query value_size dropout positions
  sparse cache gradients

bigbird | sequence.sparse:BigBird | Zaheer et al. 2020
  attend over neighboring, first and random blocks
  time O(T·W·D + T·D²) where blocks are skipped; memory O(T²); O(T·W) where blocks are skipped
  mask padding causal weights normalized bias logit_cap grouped_query value_size dropout positions
  sparse cache gradients

linformer | sequence.low_rank:Linformer | Wang et al. 2020
  softmax(q(Eᵀk)ᵀ)·Fᵀv
  time O(T·R·D + T·D²); memory O(T·R)
  padding weights dropout max_length gradients

prob_sparse | sequence.prob_sparse:ProbSparse | Zhou et al. 2021
  softmax(qkᵀ)·v of the queries that prefer some keys; the mean of v of the others
  time O(T·log T·D + T·D²); memory O(T·log T)
  padding weights normalized dropout length_dependent gradients

nystromformer | sequence.nystrom:Nystromformer | Xiong et al. 2021
  softmax(qk̃ᵀ)·softmax(q̃k̃ᵀ)⁺·softmax(q̃kᵀ)·v + conv(v)
  time O(T·M·D + N·M³ + T·D²); memory O(T·M)
  padding weights dropout gradients

linear | sequence.linear:LinearAttention | Katharopoulos et al. 2020
  φ(q)ᵀ·Σₛ φ(kₛ)vₛᵀ / φ(q)·Σₛ φ(kₛ), φ = elu + 1
  time O(T·D·H); memory O(T·D)
  padding causal weights normalized dropout permutation cache gradients

performer | sequence.performer:Performer | Choromanski et al. 2021 (FAVOR+)
  as linear, φ = exp(Ωx - |x|²/2) or ReLU(Ωx) + ε
  time O(T·N·F·H), F features; memory O(T·N·F)
  padding causal weights normalized dropout permutation cache gradients

gated_delta_net | sequence.gated_delta_net:GatedDeltaNet | Yang et al. 2025; Schlag et al. 2021
  Sₜ = αₜ(I - βₜkₜkₜᵀ)Sₜ₋₁ + βₜkₜvₜᵀ, oₜ = Sₜᵀqₜ
  time O(T·D·H + T·D²); memory O(T·D)
  padding causal always_causal weights dropout cache

fourier | sequence.fourier:Fourier | FNet: Lee-Thorp et al. 2022 (control)
  Re(F_seq F_hidden x)
  time O(T·D·log(T·D)); with padding O(T²·D); memory O(T·D); with padding O(T²)
  padding dropout

talking_heads | sequence.talking_heads:TalkingHeadsAttention | Shazeer et al. 2020
  (softmax((qkᵀ)·P)·R)·v, P and R mix heads
  time O(T·S·(D + N²) + T·D²); memory O(N·T·S)
  mask padding causal cross weights dropout permutation cache gradients

latent | sequence.latent:LatentAttention | MLA: DeepSeek-AI 2024
  attend([q; q_rope], [U c; k_rope], W c), c = norm(xW_c)
  time O(T·S·D + T·D²); a step O(S·N·C); memory O(T·S); cache O(S·C)
  mask padding causal weights normalized dropout cache gradients

differential | sequence.differential:DifferentialAttention | Ye et al. 2024
  (1 - λ₀)·norm((softmax(q₁k₁ᵀ) - λ·softmax(q₂k₂ᵀ))·v)
  time O(T·S·D + T·D²); memory O(T·S)
  mask padding causal weights grouped_query dropout positions permutation cache gradients

temporal | recurrent.temporal:TemporalAttention | Cheng et al. 2016; heads: Vaswani et al. 2017
  concatₙ(attend(hₜW_q, hₛW_k, hₛW_v))·W_o over s ≤ t
  time O(T²·D + T·D²); a step O(T·D + D²); memory O(T²); cache O(T·D)
  mask padding causal always_causal weights normalized dropout cache gradients
""",
    "alignment": """
additive | recurrent.additive:AdditiveAlignment | Bahdanau et al. 2015
  softmax(v·tanh(Wq + Uhₛ + b))
  time O(S·A) a step; memory O(S·(A + D))
  padding cross weights normalized permutation gradients

dot | recurrent.dot_product:DotAlignment | Luong et al. 2015
  softmax(q·hₛ)
  time O(S·D) a step; memory O(S·D)
  padding cross weights normalized permutation gradients

general | recurrent.dot_product:GeneralAlignment | Luong et al. 2015
  softmax(qᵀW·hₛ)
  time O(S·D) a step; memory O(S·D)
  padding cross weights normalized permutation gradients

concat | recurrent.additive:ConcatAlignment | Luong et al. 2015
  softmax(v·tanh(W[q; hₛ]))
  time O(S·A) a step; memory O(S·(A + D))
  padding cross weights normalized permutation gradients

local_p | recurrent.local:LocalAlignment | Luong et al. 2015
  softmax(qᵀW·hₛ)·exp(-(s - p)²/2σ²) over |s - p| ≤ 2σ, p = S·σ(v·tanh(W_p q))
  time O(S·D) a step; memory O(S·D)
  padding cross weights gradients

location_aware | recurrent.location:LocationAwareAlignment | Chorowski et al. 2015; Shen et al. 2018
  softmax(v·tanh(Wq + Vhₛ + U(F * αₜ₋₁)ₛ + b))
  time O(S·K·(A + W)) a step, K filters W wide; memory O(S·(A + D))
  padding cross weights normalized state gradients

multi_head | recurrent.multi_head:MultiHeadAlignment | Vaswani et al. 2017
  concatₙ(softmax(qW_q·hₛW_k)·hW_v)·W_o
  time O(S·D + D²) a step; memory O(S·D)
  padding cross weights normalized permutation gradients

none | recurrent.dot_product:NoAlignment | Sutskever et al. 2014 (control)
  the last valid state, at every step
  time O(1) a step; memory O(S·D)
  padding cross weights normalized gradients
""",
    "map_attention": """
se | image.channel:SqueezeExcite | Hu et al. 2018
  x·σ(W₂ relu(W₁ mean(x)))
  time O(P·C + C·R); memory O(C)
  weights gate gradients

eca | image.channel:EfficientChannel | Wang et al. 2020 (ECA-Net)
  x·σ(conv(mean(x))) along the channels
  time O(P·C); memory O(C)
  weights gate gradients

cbam | image.cbam:CBAM | Woo et al. 2018
  x' = x·M_c(x), y = x'·M_s(x')
  time O(P·(C + K²) + C·R); memory O(P + C)
  weights gate batch_statistics gradients

cbam_channel | image.cbam:ChannelGate | Woo et al. 2018, M_c alone
  x·σ(MLP(mean(x)) + MLP(max(x)))
  time O(P·C + C·R); memory O(C)
  weights gate gradients

cbam_spatial | image.cbam:SpatialGate | Woo et al. 2018, M_s alone
  x·σ(BN(conv([max_c x; mean_c x])))
  time O(P·(C + K²)); memory O(P)
  weights gate batch_statistics gradients

scse | image.scse:ChannelAndSpatial | Roy et al. 2018
  x·σ(W₂ relu(W₁ mean(x))) + x·σ(w·x)
  time O(P·C + C·R); memory O(P + C)
  weights gate gradients

coordinate | image.coordinate:Coordinate | Hou et al. 2021
  x·σ(f(mean_x x))·σ(f(mean_y x))
  time O(P·C + (Y + X)·C·R); memory O((Y + X)·C)
  weights gate batch_statistics gradients

non_local | image.non_local:NonLocal | Wang et al. 2018
  x + BN(softmax(θ(x)φ(x)ᵀ)·g(x)·W_z)
  time O(P²·C + P·C²); memory O(P²)
  weights normalized batch_statistics gradients

axial | image.axial:Axial | Ho et al. 2019; Wang et al. 2020
  h = x + attend(rows of x), y = h + attend(columns of h)
  time O(P·(Y + X)·C + P·C²); memory O(P·(Y + X))
  weights normalized positions

shifted_window | image.window:ShiftedWindow | Swin: Liu et al. 2021
  x + softmax(qkᵀ + b)·v in shifted windows
  time O(P·S²·C + P·C²); memory O(P·S²)
  weights normalized gradients
""",
    "gate": """
attention_gate | image.attention_gate:AttentionGate | Attention U-Net: Oktay et al. 2018
  x·σ(ψ·relu(W_x x + W_g g))
  time O(P·C·F); memory O(P·F)
  weights gate gradients
""",
    "pool": """
mean | pooling:MeanPool | control
  Σₜ xₜ / T
  time O(T·D); memory O(D)
  padding weights normalized permutation gradients

max | pooling:MaxPool | control; Collobert et al. 2011
  maxₜ xₜ, a channel at a time
  time O(T·D); memory O(D)
  padding weights normalized permutation

attention | pooling:AttentionPool | Yang et al. 2016
  Σₜ softmax(u·tanh(Wxₜ + b))·xₜ
  time O(T·D·A); memory O(T·A)
  padding weights normalized dropout permutation gradients

multi_head | pooling:MultiHeadPool | Lee et al. 2019 (PMA)
  concatₙ(attend(seedₙ, xW_k, xW_v))·W_o
  time O(T·D²); memory O(T·D)
  padding weights normalized dropout permutation gradients

structured | structured_pooling:StructuredPool | Lin et al. 2017
  concatᵣ(softmax(w₂ᵣ·tanh(W₁xₜ))·x)·W_o
  time O(T·D·A + T·R·(A + D) + R·D²), R hops; memory O(T·(A + R))
  padding weights normalized dropout permutation gradients
""",
    "neighbours": """
user_neighbours | collaborative.neighbors:UserNeighbors | after Resnick et al. 1994
  Σᵥ wᵥ·sim(u, v)·r(v, i) / Σᵥ |wᵥ·sim(u, v)|
  time O(S·(D + I)); memory O(S·D + I)
  padding weights permutation gradients
""",
    "history": """
fism | collaborative.nais:FISM | Kabbur et al. 2013 (control)
  b + n^(-α)·Σⱼ qⱼ·p
  time O(I·S·D); memory O(I·S)
  padding weights permutation gradients

nais | collaborative.nais:NAIS | He et al. 2018
  b + n^(-α)·Σⱼ aⱼ·qⱼ·p, aⱼ = exp(fⱼ) / (Σ exp(f))^β
  time O(I·S·D·A); concat O((I + S)·D·A + I·S·(D + A)); memory O(I·S·(D + A))
  padding weights permutation gradients
""",
    "profile": """
acf | collaborative.acf:ItemAttention | Chen et al. 2017
  Σₗ softmax(w·relu(W_u u + W_v vₗ + W_p pₗ + W_x x̄ₗ + b))·pₗ
  time O(S·D·A); memory O(S·(D + A))
  padding weights normalized permutation gradients
""",
    "components": """
acf | collaborative.acf:ComponentAttention | Chen et al. 2017
  Σₘ softmax(w·relu(W_u u + W_x xₗₘ + b))·xₗₘ
  time O(S·M·C·A), M components; memory O(S·M·(C + A))
  padding weights normalized permutation gradients
""",
    "lags": """
lag | lag:LagAttention | Yule 1927; softmax: Vaswani et al. 2017 (control)
  Σᵢ softmax(l)ᵢ·xₜ₋ᵢ
  time O(F·L·C); memory O(F·L + L·C)
  padding weights normalized gradients

lag_residual | lag:ResidualLagAttention | after Zeng et al. 2023 (NLinear)
  c + Σₙ Wₙ·Σᵢ softmax(lₙ)ᵢ·(xₜ₋ᵢ - c)
  time O(F·L·(C + N)); memory O(N·F·L + L·C)
  padding weights gradients
""",
}

TABLE: list[Mechanism] = [
    _parsed(kind, paragraph)
    for kind, text in _ENTRIES.items()
    for paragraph in text.strip().split("\n\n")
]
