"""Location-aware alignment against the attention of torchaudio's Tacotron 2 (Shen et al. 2018).

torchaudio's wheel loads a CUDA library when imported, and models of transformers import it where
it is installed, so there is no live test: golden/recurrent_tacotron2.npz keeps what it gave. To
make it again, in a separate environment:

    python -m venv speech-oracles
    speech-oracles/bin/pip install torch==2.13.0
    speech-oracles/bin/pip install --no-deps torchaudio==2.11.0
    speech-oracles/bin/pip install jax==0.10.2 flax==0.12.8
    speech-oracles/bin/python -m tests.oracles.make_golden recurrent_tacotron2

Of torchaudio the one file models/tacotron2.py is loaded. It has no bias b and uses previous and
cumulative weights; its convolution's kernel is [K, 2, width], ours [width, 2, K].
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import LocationAwareAlignment
from tests.oracles.problems import differentiate, torch_answers

LIVE = False
PACKAGES = ("torch", "torchaudio")
B, T, S, Q, D, A, K, WIDTH = 2, 4, 7, 5, 6, 3, 4, 5
CASES = ("tacotron2_attention", "tacotron2_attention_padded")


def inputs(case: str) -> dict[str, np.ndarray]:
    """Queries of T steps, states and weights, float32; lengths."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    arrays = {"queries": normal(B, T, Q), "states": normal(B, S, D), "cotangent": normal(B, T, D)}
    arrays |= {"W": normal(Q, A), "V": normal(D, A), "U": normal(K, A), "v": normal(A)}
    arrays["F"] = normal(WIDTH, 2, K)
    arrays["lengths"] = np.array([S, 4 if case.endswith("padded") else S])
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Returns a scan of steps."""
    return differentiate(_steps, inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with torchaudio."""
    return torch_answers(_torchaudio, inputs(case))


def _steps(a):
    alignment = LocationAwareAlignment(
        Q, D, hidden_size=A, num_filters=K, width=WIDTH, cumulative=True, rngs=nnx.Rngs(0)
    )
    alignment.query.kernel[...], alignment.key.kernel[...] = a["W"], a["V"]
    alignment.location.kernel[...], alignment.filters[...] = a["U"], a["F"]
    alignment.score[...] = a["v"]
    memory = alignment.prepare(a["states"], valid=jnp.arange(S) < a["lengths"][:, None])

    def step(state, query):
        context, weights, state = alignment.step(query, memory, state)
        return state, (context, weights)

    queries = jnp.swapaxes(a["queries"], 0, 1)
    _, (out, weights) = jax.lax.scan(step, alignment.initial_state(memory), queries)
    return {"out": jnp.swapaxes(out, 0, 1), "weights": jnp.swapaxes(weights, 0, 1)}


def _torchaudio(a):
    import torch

    # Found, not imported.
    folder = importlib.util.find_spec("torchaudio").submodule_search_locations[0]
    path = pathlib.Path(folder) / "models" / "tacotron2.py"
    spec = importlib.util.spec_from_file_location("tacotron2", path)
    tacotron2 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tacotron2)
    module = tacotron2._Attention(Q, D, A, K, WIDTH)
    # As functions of our arrays, so that these have the gradients.
    weights = {
        "query_layer.weight": a["W"].T,
        "memory_layer.weight": a["V"].T,
        "v.weight": a["v"][None],
        "location_layer.location_conv.weight": a["F"].permute(2, 1, 0),
        "location_layer.location_dense.weight": a["U"].T,
    }
    processed = a["states"] @ a["V"]
    padding = torch.arange(S) >= a["lengths"][:, None]
    previous = cumulative = torch.zeros(B, S)
    contexts, shares = [], []
    for t in range(T):
        looked = torch.stack([previous, cumulative], dim=1)
        context, previous = torch.func.functional_call(
            module, weights, (a["queries"][:, t], a["states"], processed, looked, padding)
        )
        cumulative = cumulative + previous
        contexts.append(context)
        shares.append(previous)
    return {"out": torch.stack(contexts, 1), "weights": torch.stack(shares, 1)}
