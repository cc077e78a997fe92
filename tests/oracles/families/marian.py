"""Encoder, Decoder, TokenEmbedding and `generate` compared with MarianMTModel of transformers.

Small random weights, our layout: kernels [D, N, H] and [D, F]; theirs are matrices [out, in].
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.transformer import Decoder, Encoder, EncoderConfig
from tasks.common.decoding import generate
from tests.oracles.problems import differentiate, torch_answers

B, S, T, D, N, H, F, V = 3, 6, 5, 16, 2, 8, 20, 23
END, PAD, LONGEST = 0, V - 1, 12
GENERATION = {
    "marian_greedy": {},
    "marian_beam": {"beam_size": 4, "n_best": 3},
    "marian_beam_for_short": {"beam_size": 4, "n_best": 2, "length_penalty": -1.0, "end": -0.5},
    "marian_beam_exact": {"beam_size": 4, "length_penalty": 2.0, "stopping": "exact", "end": 1.0},
}
CASES = ("marian_post_norm", *GENERATION)

# With small weights it would write one word again and again.
WRITER, GAINS = 24, {"(query|key)/kernel": 6.0, "(up|down)/kernel": 3.0, "bias": 0.2}
# Our name of a part -> that of its attention there; its norm's name begins with it too.
PARTS = {"attention": "self_attn", "cross_attention": "encoder_attn"}
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
CONFIG = EncoderConfig(
    model_size=D,
    num_layers=2,
    num_heads=N,
    feedforward_size=F,
    norm="post",
    activation="silu",
    positions="sinusoidal(interleaved=False)",
    max_length=16,
)


def inputs(case: str) -> dict[str, np.ndarray]:
    """Weights by our path, "encoder/layers/0/attention/query/kernel", and tokens."""
    generates = case in GENERATION
    # One model writes in all cases.
    rng = np.random.RandomState(WRITER if generates else 300)

    def normal(*shape, scale=0.3):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    source = rng.randint(1, PAD, size=(B, S))
    lengths = np.array([S, 3, 4])
    source[np.arange(S) >= lengths[:, None]] = PAD
    arrays = {"source": source, "lengths": lengths, "logits_bias": normal(V)}
    for path, leaf in nnx.to_flat_state(nnx.state(_model(), nnx.Param)):
        name = "/".join(map(str, path))
        gains = GAINS if generates else {"kernel": 0.6}
        gain = next((gain for pattern, gain in gains.items() if re.search(pattern, name)), 1.0)
        centre = 1.0 if name.endswith("scale") else 0.0
        arrays[name] = np.float32(centre) + normal(*leaf[...].shape, scale=0.3 * gain)
    if generates:
        arrays["logits_bias"][END] += GENERATION[case].get("end", 0.0)
        return arrays
    target = rng.randint(1, PAD, size=(B, T))
    return arrays | {"target": target, "cotangent": normal(B, T, V, scale=1.0)}


def ours(case: str) -> dict[str, np.ndarray]:
    """Logits, weights and gradients; or tokens and scores, padded to `LONGEST`."""
    if case not in GENERATION:
        return differentiate(_teach, inputs(case))
    options = {"method": "beam" if "beam" in case else "greedy", **GENERATION[case]}
    options.pop("end", None)
    config = generate.DecodingConfig(**options)
    tokens, scores = jax.jit(lambda a: _generate(config, a))(inputs(case))
    # A greedy search has no scores there.
    return {"tokens": np.asarray(tokens)} | ({"scores": scores} if "beam" in case else {})


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    if case not in GENERATION:
        return torch_answers(_torch_teach, inputs(case))
    return _torch_generate(GENERATION[case], "beam" in case, inputs(case))


class _Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embedding = TokenEmbedding(V, D, scale=D**0.5, rngs=rngs)
        self.encoder = Encoder(CONFIG, rngs=rngs)
        self.decoder = Decoder(CONFIG, D, rngs=rngs)


def _model(arrays=None):
    model = _Model()
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if arrays is not None:
            leaf[...] = arrays["/".join(map(str, path))]
    return model


def _encoded(a):
    model = _model(a)
    valid = jnp.arange(S) < a["lengths"][:, None]
    return model, model.encoder(model.embedding(a["source"]), valid=valid), valid


def _teach(a):
    model, memory, valid = _encoded(a)
    states, weights = model.decoder(
        model.embedding(a["target"]), memory, memory_valid=valid, return_weights=True
    )
    return {"out": model.embedding.logits(states) + a["logits_bias"], **weights}


def _generate(config, a):
    model, memory, valid = _encoded(a)

    def step(tokens, state):
        states, state, cross = model.decoder.decode(model.embedding(tokens)[:, None], state)
        return model.embedding.logits(states[:, 0]) + a["logits_bias"], state, cross[:, :, :, 0]

    state = model.decoder.init_cache(memory, valid, LONGEST)
    decoded = generate.generate(
        step,
        state,
        config=config,
        batch_size=B,
        max_length=LONGEST,
        start=PAD,
        end=END,
        pad=PAD,
        forbidden=(PAD,),
    )
    return decoded.tokens, decoded.scores


def _torch_model(a):
    """MarianMTModel, its configuration, and its weights as functions of our arrays."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=V,
        max_position_embeddings=CONFIG.max_length,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=N,
        decoder_attention_heads=N,
        encoder_ffn_dim=F,
        decoder_ffn_dim=F,
        activation_function="swish",
        d_model=D,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=END,
        forced_eos_token_id=None,
        scale_embedding=True,
        attn_implementation="eager",
    )
    weights = {"final_logits_bias": a["logits_bias"][None]}
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
        weights[f"{name}.weight"] = a["embedding/embedding"]
    weights["lm_head.weight"] = a["embedding/embedding"]

    def put(own, other, first="kernel", rows=None):
        array = a[f"{own}/{first}"]
        if first == "kernel":
            array = array.reshape(array.shape[0] if rows is None else rows, -1).T
        weights[f"{other}.weight"] = array
        weights[f"{other}.bias"] = a[f"{own}/bias"].reshape(-1)

    for stack in ("encoder", "decoder"):
        for i in range(CONFIG.num_layers):
            own, other = f"{stack}/layers/{i}", f"model.{stack}.layers.{i}"
            for part, module in list(PARTS.items())[: 1 + (stack == "decoder")]:
                for name, short in PROJECTIONS.items():
                    rows = N * H if name == "out" else D
                    put(f"{own}/{part}/{name}", f"{other}.{module}.{short}", rows=rows)
                put(f"{own}/{part}_norm", f"{other}.{module}_layer_norm", "scale")
            put(f"{own}/feedforward/up", f"{other}.fc1")
            put(f"{own}/feedforward/down", f"{other}.fc2")
            put(f"{own}/feedforward_norm", f"{other}.final_layer_norm", "scale")
    model = MarianMTModel(config).eval()
    positions = {f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder")}
    assert {*weights, *positions} == {*model.state_dict()}
    seen = torch.arange(S) < a["lengths"][:, None]
    return model, weights, {"input_ids": a["source"], "attention_mask": seen.long()}


def _torch_teach(a):
    import torch

    model, weights, options = _torch_model(a)
    options |= {"decoder_input_ids": a["target"], "output_attentions": True, "use_cache": False}
    result = torch.func.functional_call(model, weights, (), options)
    shares = {"self": result.decoder_attentions, "cross": result.cross_attentions}
    return {"out": result.logits, **{name: torch.stack(one) for name, one in shares.items()}}


def _torch_generate(options, beam, arrays):
    import torch

    with torch.no_grad():
        tensors = {name: torch.tensor(array) for name, array in arrays.items()}
        model, weights, given = _torch_model(tensors)
        model.load_state_dict(weights, strict=False)
        found = model.generate(
            **given,
            max_new_tokens=LONGEST,
            do_sample=False,
            num_beams=options.get("beam_size", 1),
            num_return_sequences=options.get("n_best", 1),
            length_penalty=options.get("length_penalty", 1.0) if beam else None,
            early_stopping="never" if options.get("stopping") == "exact" else False,
            bad_words_ids=[[PAD]],
            output_scores=True,
            return_dict_in_generate=True,
        )
    # Without the start; to the length that ours have.
    tokens = found.sequences[:, 1:].reshape(B, -1, found.sequences.shape[1] - 1).numpy()
    tokens = np.pad(tokens, [(0, 0), (0, 0), (0, LONGEST - tokens.shape[2])], constant_values=PAD)
    results = {"tokens": tokens.astype(np.int32)}
    return results | ({"scores": found.sequences_scores.reshape(B, -1).numpy()} if beam else {})
