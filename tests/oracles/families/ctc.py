"""CTC loss compared with PyTorch's, with its gradient by the logits."""

import jax.numpy as jnp
import numpy as np

from tasks.common.decoding.ctc import ctc_loss
from tests.oracles.problems import differentiate, torch_answers

PACKAGES = ("torch",)
B, S, V, T = 3, 9, 5, 4
CASES = ("ctc_full", "ctc_padded")
FRAMES = {"ctc_full": [S, S, S], "ctc_padded": [S, 6, 4]}
LABELS = np.array([[1, 2, 2, 4], [3, 3, 0, 0], [4, 0, 0, 0]])


def inputs(case: str) -> dict[str, np.ndarray]:
    """Logits, and what the losses are multiplied by."""
    rng = np.random.RandomState(CASES.index(case))
    return {
        "logits": (2 * rng.normal(size=(B, S, V))).astype(np.float32),
        "cotangent": rng.normal(size=B).astype(np.float32),
    }


def ours(case: str) -> dict[str, np.ndarray]:
    """Losses and gradients of what this repository computes."""
    valid = jnp.arange(S) < jnp.array(FRAMES[case])[:, None]
    return differentiate(lambda a: {"out": ctc_loss(a["logits"], valid, LABELS)[0]}, inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with PyTorch."""

    def compute(a):
        import torch

        losses = torch.nn.functional.ctc_loss(
            a["logits"].log_softmax(-1).transpose(0, 1),
            torch.tensor(LABELS),
            torch.tensor(FRAMES[case]),
            torch.tensor((LABELS != 0).sum(1)),
            reduction="none",
        )
        return {"out": losses}

    return torch_answers(compute, inputs(case))
