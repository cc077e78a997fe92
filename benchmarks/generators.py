"""Text generation with the models of this project, with transformers, and with CTranslate2.

`Problem` is a model with random weights and its inputs. `here`, `with_transformers` and
`with_ctranslate2` return functions that generate the same number of tokens. The weights are copied
from this project's model, so all of these functions generate the same tokens in float32.

The translation model is the architecture of Pegasus: norms before the layers and at the end of
each stack, ReLU, sinusoidal positions, one table for embeddings and logits. The language model is
the architecture of GPT-2.

In shapes, B is the batch size and S the number of tokens of a source sentence or prompt.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

CONFIGS = {
    "translation": "configs/translation.py",
    "language_model": "configs/language_modeling.py",
}
# Tokens of the tokenizers of these configs: BPE of Multi30k, characters of Tiny Shakespeare.
VOCABULARIES = {"translation": 10_000, "language_model": 68}
# Lengths of the source sentences or prompts, and tokens generated after them. The language model
# has a context of 64.
LENGTHS = {"translation": (16, 32), "language_model": (16, 48)}
# Factor of the initial weights. Trained weights are larger than initial ones, too; without the
# factor, the scores of the best tokens would be nearly equal.
_GAIN = 3.0
Generate = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model with inputs.

    Attributes:
      name: name of the model in `CONFIGS`.
      config: the experiment of the config file in `CONFIGS`.
      model: this project's module.
      tokens: int32 [B, S], source sentences or prompts.
      new: number of generated tokens of each example.
    """

    name: str
    config: Any
    model: Any
    tokens: np.ndarray
    new: int

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The model's parameters by path, such as "encoder/layers/0/attention/query/kernel"."""
        from launch.engine.state import split_model
        from launch.exports.writer import named_weights
        from tasks.common.backbones.stacking import separated

        _, params, _ = split_model(self.model)
        return named_weights(separated(params))

    @property
    def vocabulary(self) -> int:
        """Number of tokens, V; the last two are the start and end tokens of the task."""
        return VOCABULARIES[self.name] + 2

    @property
    def start(self) -> int:
        """First input token of the translation decoder."""
        return self.vocabulary - 2

    @property
    def end(self) -> int:
        """End token."""
        return self.vocabulary - 1

    @property
    def forbidden(self) -> list[int]:
        """Tokens that are never generated: padding, unknown, CLS, start and end."""
        return [0, 1, 2, self.start, self.end]

    def decoder(self, model: Any, tokens: Any) -> Any:
        """Returns the `TokenDecoder` of the task, without an end token."""
        from tasks.language_modeling.model import decoding

        if self.name == "translation":
            # The limit is one more than the number of tokens, because the decoder of translations
            # forces the end token at the limit.
            found = model.decoding(tokens, self.new + 1)
        else:
            lengths = np.full(len(tokens), tokens.shape[1], np.int32)
            found = decoding(model, tokens, lengths, None)
        changes = {"max_length": self.new, "end": None, "forbidden": self.forbidden}
        return dataclasses.replace(found, **changes)


def problem(name: str, batch_size: int) -> Problem:
    """Returns a problem: the model of a config with random weights, and random inputs."""
    from flax import nnx

    from launch.engine import config as configs
    from tasks.language_modeling.model import LanguageModel
    from tasks.translation.model import TransformerTranslator

    config, V = configs.load_file(CONFIGS[name]), VOCABULARIES[name] + 2
    if name == "translation":
        # The translator takes the size of the tokenizer, and adds the start and end tokens.
        model = TransformerTranslator(config.model, V - 2, rngs=nnx.Rngs(0))
    else:
        model = LanguageModel(config.model, V, rngs=nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] == "kernel" or (name == "language_model" and path[-1] == "embedding"):
            leaf[...] = _GAIN * leaf[...]
    S, new = LENGTHS[name]
    tokens = np.random.default_rng(batch_size).integers(3, V - 2, (batch_size, S))
    return Problem(name, config, model, tokens.astype(np.int32), new)


def here(given: Problem, beams: int) -> Generate:
    """Returns a function that generates with this project."""
    import jax
    from flax import nnx

    from tasks.common.decoding.generate import DecodingConfig

    config = DecodingConfig("beam", beams) if beams > 1 else DecodingConfig()
    graph, state = nnx.split(given.model)

    @jax.jit
    def run(state, tokens):
        decoder = given.decoder(nnx.merge(graph, state), tokens)
        return decoder.generate(config).tokens[:, 0]

    return lambda: np.asarray(run(state, given.tokens))


def with_transformers(given: Problem, beams: int) -> Generate:
    """Returns a function that generates with transformers in PyTorch."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = torch_model(given)
    options = transformers.GenerationConfig(
        max_new_tokens=given.new,
        num_beams=beams,
        do_sample=False,
        suppress_tokens=given.forbidden,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=given.start,
    )
    tokens = torch.from_numpy(given.tokens).long()
    mask = torch.ones_like(tokens)

    def run() -> np.ndarray:
        with torch.inference_mode():
            found = model.generate(tokens, attention_mask=mask, generation_config=options)
        return found[:, -given.new :].numpy()

    return run


def with_ctranslate2(given: Problem, beams: int, threads: int) -> Generate:
    """Returns a function that generates with CTranslate2 in float32.

    The minimum length keeps CTranslate2 from generating the end token.
    """
    import ctranslate2
    from ctranslate2.converters import transformers as loaders

    model = torch_model(given)
    names = [str(number) for number in range(given.vocabulary)]
    loader = loaders.GPT2Loader() if given.name == "language_model" else loaders.PegasusLoader()
    # The loader reads these attributes, which configs of BART have.
    model.config.normalize_before, model.config.normalize_embedding = True, False
    spec = loader.get_model_spec(model)
    loader.set_vocabulary(spec, names)
    end = names[given.end]
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = end, end, names[1]
    translates = given.name == "translation"
    if translates:
        spec.config.decoder_start_token = names[given.start]
    spec.validate()
    spec.optimize(quantization=None)
    folder = tempfile.TemporaryDirectory()
    spec.save(folder.name)
    machine = ctranslate2.Translator if translates else ctranslate2.Generator
    made = machine(folder.name, compute_type="float32", intra_threads=threads)
    sequences = [[names[token] for token in row] for row in given.tokens]
    options = {
        "beam_size": beams,
        "max_batch_size": 0,
        "suppress_sequences": [[names[token]] for token in given.forbidden if token != given.end],
    }

    def run() -> np.ndarray:
        if translates:
            lengths = {"min_decoding_length": given.new, "max_decoding_length": given.new}
            found = made.translate_batch(sequences, **options, **lengths)
            written = [one.hypotheses[0] for one in found]
        else:
            lengths = {"min_length": given.new, "max_length": given.new}
            found = made.generate_batch(
                sequences, **options, **lengths, include_prompt_in_result=False
            )
            written = [one.sequences[0] for one in found]
        return np.array([[int(name) for name in row] for row in written])

    run.folder = folder  # deleted together with the function
    return run


# ---------------------------------------------------------------- weights in PyTorch


def torch_model(given: Problem) -> Any:
    """Returns the model of transformers with the weights of the problem."""
    import torch
    import transformers

    config = given.config.model
    if given.name == "translation":
        model = transformers.PegasusForConditionalGeneration(
            transformers.PegasusConfig(
                vocab_size=given.vocabulary,
                max_position_embeddings=config.max_length,
                d_model=config.model_size,
                encoder_layers=config.num_layers,
                decoder_layers=config.decoder_layers,
                encoder_attention_heads=config.num_heads,
                decoder_attention_heads=config.num_heads,
                encoder_ffn_dim=config.feedforward_size,
                decoder_ffn_dim=config.feedforward_size,
                activation_function=config.activation,
                scale_embedding=True,
                pad_token_id=0,
                eos_token_id=given.end,
                decoder_start_token_id=given.start,
                forced_eos_token_id=None,
            )
        )
        found = _pegasus_weights(given)
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=given.vocabulary,
                n_positions=config.max_length,
                n_embd=config.model_size,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                n_inner=config.feedforward_size,
                activation_function=config.activation,
                layer_norm_epsilon=config.norm_epsilon,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        found = _gpt2_weights(given)
    expected = model.state_dict()
    # Pegasus has this bias, which is 0; this project's model does not have it.
    found = {"final_logits_bias": expected.get("final_logits_bias")} | found
    tensors = {
        name: value if torch.is_tensor(value) else torch.from_numpy(np.array(value))
        for name, value in found.items()
        if name in expected
    }
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def _matrix(weights: Mapping[str, np.ndarray], path: str, inputs: int) -> np.ndarray:
    """Returns the kernel at a path as a matrix [inputs, outputs]."""
    return weights[f"{path}/kernel"].reshape(inputs, -1)


def _pegasus_weights(given: Problem) -> dict[str, np.ndarray]:
    weights, found = given.weights, {}
    D, F = given.config.model.model_size, given.config.model.feedforward_size
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
        found[f"{name}.weight"] = weights["embedding/embedding"]
    found["lm_head.weight"] = weights["embedding/embedding"]

    def linear(own: str, other: str, inputs: int = D) -> None:
        found[f"{other}.weight"] = _matrix(weights, own, inputs).T
        found[f"{other}.bias"] = weights[f"{own}/bias"].reshape(-1)

    def norm(own: str, other: str) -> None:
        found[f"{other}.weight"] = weights[f"{own}/scale"]
        found[f"{other}.bias"] = weights[f"{own}/bias"]

    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    for stack in ("encoder", "decoder"):
        module = getattr(given.model, stack)
        positions = module.positions(module.config.max_length)
        found[f"model.{stack}.embed_positions.weight"] = np.asarray(positions)
        norm(f"{stack}/final_norm", f"model.{stack}.layer_norm")
        for index in range(module.config.num_layers):
            own, other = f"{stack}/layers/{index}", f"model.{stack}.layers.{index}"
            parts = {"attention": "self_attn"}
            if stack == "decoder":
                parts["cross_attention"] = "encoder_attn"
            for part, there in parts.items():
                for name, short in projections.items():
                    linear(f"{own}/{part}/{name}", f"{other}.{there}.{short}")
                norm(f"{own}/{part}_norm", f"{other}.{there}_layer_norm")
            linear(f"{own}/feedforward/up", f"{other}.fc1")
            linear(f"{own}/feedforward/down", f"{other}.fc2", F)
            norm(f"{own}/feedforward_norm", f"{other}.final_layer_norm")
    return found


def _gpt2_weights(given: Problem) -> dict[str, np.ndarray]:
    weights, found = given.weights, {}
    D, F = given.config.model.model_size, given.config.model.feedforward_size
    found["transformer.wte.weight"] = found["lm_head.weight"] = weights["embedding/embedding"]
    encoder = given.model.encoder
    found["transformer.wpe.weight"] = np.asarray(encoder.positions(encoder.config.max_length))
    names = {"attention_norm": "ln_1", "feedforward_norm": "ln_2"}
    for index in range(encoder.config.num_layers):
        own, other = f"encoder/layers/{index}", f"transformer.h.{index}"
        for name, there in names.items():
            found[f"{other}.{there}.weight"] = weights[f"{own}/{name}/scale"]
            found[f"{other}.{there}.bias"] = weights[f"{own}/{name}/bias"]
        heads = [f"{own}/attention/{name}" for name in ("query", "key", "value")]
        # Matrices of GPT-2 are [in, out].
        joined = [_matrix(weights, path, D) for path in heads]
        found[f"{other}.attn.c_attn.weight"] = np.concatenate(joined, axis=1)
        biases = [weights[f"{path}/bias"].reshape(-1) for path in heads]
        found[f"{other}.attn.c_attn.bias"] = np.concatenate(biases)
        for path, there, inputs in (
            ("attention/out", "attn.c_proj", D),
            ("feedforward/up", "mlp.c_fc", D),
            ("feedforward/down", "mlp.c_proj", F),
        ):
            found[f"{other}.{there}.weight"] = _matrix(weights, f"{own}/{path}", inputs)
            found[f"{other}.{there}.bias"] = weights[f"{own}/{path}/bias"].reshape(-1)
    found["transformer.ln_f.weight"] = weights["encoder/final_norm/scale"]
    found["transformer.ln_f.bias"] = weights["encoder/final_norm/bias"]
    return found
