"""The LSTM, both ways over padded sequences and step by step, compared with PyTorch's."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.recurrent import LSTM, Bidirectional, LSTMState
from tests.oracles.problems import differentiate, torch_answers

PACKAGES = ("torch",)
B, T, D, H = 2, 5, 6, 4
CASES = ("lstm_both_ways", "lstm_padded", "lstm_steps")
LENGTHS = np.array([T, 3])


def inputs(case: str) -> dict[str, np.ndarray]:
    """Sequences and weights, float32."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    steps = case.endswith("steps")
    arrays = {"x": normal(B, T, D), "cotangent": normal(B, T, H if steps else 2 * H)}
    if steps:
        arrays |= {"hidden": normal(B, H), "cell": normal(B, H)}
    for way in ("forward",) if steps else ("forward", "backward"):
        for name, size in (("input", D), ("recurrent", H)):
            arrays[f"{way}_{name}_kernel"] = normal(size, 4 * H) / 2
            arrays[f"{way}_{name}_bias"] = normal(4 * H)
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of what this repository computes."""
    compute = _steps if case.endswith("steps") else _ways
    return differentiate(lambda arrays: compute(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with PyTorch."""
    compute = _torch_steps if case.endswith("steps") else _torch_ways
    return torch_answers(lambda arrays: compute(case, arrays), inputs(case))


def _fill(lstm, way, a):
    for name in ("input", "recurrent"):
        projection = getattr(lstm, name)
        projection.kernel[...] = a[f"{way}_{name}_kernel"]
        projection.bias[...] = a[f"{way}_{name}_bias"]
    return lstm


def _ways(case, a):
    module = Bidirectional(D, H, cell="lstm", rngs=nnx.Rngs(0))
    _fill(module.forward, "forward", a)
    _fill(module.backward, "backward", a)
    valid = jnp.arange(T) < LENGTHS[:, None] if case.endswith("padded") else None
    states, final = module(a["x"], valid=valid)
    # PyTorch leaves 0 at padding, we hold the state: compared are the real positions.
    out = states if valid is None else states * valid[..., None]
    return {"out": out, "hidden": final.hidden, "cell": final.cell}


def _steps(case, a):
    lstm = _fill(LSTM(D, H, rngs=nnx.Rngs(0)), "forward", a)
    state, seen = LSTMState(a["hidden"], a["cell"]), []
    for t in range(T):
        state = lstm.step(a["x"][:, t], state)
        seen.append(state.hidden)
    return {"out": jnp.stack(seen, axis=1), "last": state.cell}


def _torch_ways(case, a):
    import torch

    module = torch.nn.LSTM(D, H, batch_first=True, bidirectional=True)
    weights = {}
    for way, suffix in (("forward", ""), ("backward", "_reverse")):
        for name, letters in (("input", "ih"), ("recurrent", "hh")):
            weights[f"weight_{letters}_l0{suffix}"] = a[f"{way}_{name}_kernel"].T
            weights[f"bias_{letters}_l0{suffix}"] = a[f"{way}_{name}_bias"]
    x, pad = a["x"], torch.nn.utils.rnn
    if case.endswith("padded"):
        x = pad.pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True)
    out, final = torch.func.functional_call(module, weights, (x,))
    if case.endswith("padded"):
        out, _ = pad.pad_packed_sequence(out, batch_first=True, total_length=T)
    hidden, cell = (leaf.transpose(0, 1).reshape(B, -1) for leaf in final)
    return {"out": out, "hidden": hidden, "cell": cell}


def _torch_steps(case, a):
    import torch

    module = torch.nn.LSTMCell(D, H)
    weights = {}
    for name, letters in (("input", "ih"), ("recurrent", "hh")):
        weights[f"weight_{letters}"] = a[f"forward_{name}_kernel"].T
        weights[f"bias_{letters}"] = a[f"forward_{name}_bias"]
    state, seen = (a["hidden"], a["cell"]), []
    for t in range(T):
        state = torch.func.functional_call(module, weights, (a["x"][:, t], state))
        seen.append(state[0])
    return {"out": torch.stack(seen, dim=1), "last": state[1]}
