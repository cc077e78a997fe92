"""NAIS compared with RecBole's.

RecBole 1.2.1 pins what others need newer, so golden/collaborative.npz is made apart, in a copy of
the environment of requirements-oracles.txt:

    pip install --no-deps recbole==1.2.1 colorlog==4.7.2 colorama==0.4.4 pandas python-dateutil \\
        pytz tzdata six tabulate thop texttable tensorboard
    python -m tests.oracles.make_golden collaborative
"""

import numpy as np
from flax import nnx

from attention.collaborative.nais import NAIS
from tests.oracles.problems import differentiate, torch_answers

LIVE = False
PACKAGES = ("torch", "recbole")

USERS, ITEMS, LONGEST, D, A = 4, 9, 6, 5, 7
# Form, α, β.
OPTIONS = {
    "nais_prod": ("prod", 0.0, 0.5),
    "nais_concat": ("concat", 0.0, 0.5),
    "nais_prod_length": ("prod", 0.5, 0.8),
    "nais_concat_softmax": ("concat", 1.0, 1.0),
}
CASES = tuple(OPTIONS)


def inputs(case: str) -> dict[str, np.ndarray]:
    """Tables of items, weights, histories of 1 to 6 items, and pairs of user and item. Item 0 is
    padding."""
    rng = np.random.RandomState(CASES.index(case))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    lengths = np.array([LONGEST, 3, 1, 4])
    history = np.zeros((USERS, LONGEST), np.int64)
    for user, length in enumerate(lengths):
        history[user, :length] = 1 + rng.permutation(ITEMS - 1)[:length]
    inside = D if OPTIONS[case][0] == "prod" else 2 * D
    return {
        "source": normal(ITEMS, D) / 2,
        "target": normal(ITEMS, D) / 2,
        "bias": normal(ITEMS),
        "hidden_kernel": normal(inside, A) / np.float32(np.sqrt(inside)),
        "hidden_bias": normal(A) / 2,
        "score": normal(A) / 2,
        "history": history,
        "lengths": lengths,
        "users": np.arange(USERS).repeat(3),
        "items": 1 + rng.randint(ITEMS - 1, size=3 * USERS),
        "cotangent": normal(3 * USERS),
    }


def ours(case: str) -> dict[str, np.ndarray]:
    """Scores, and gradients named `d_<input>`, of what this repository computes."""
    form, alpha, beta = OPTIONS[case]

    def compute(a):
        module = NAIS(D, form=form, hidden_size=A, alpha=alpha, beta=beta, rngs=nnx.Rngs(0))
        module.hidden.kernel[...] = a["hidden_kernel"]
        module.hidden.bias[...] = a["hidden_bias"]
        module.score[...] = a["score"]
        items = a["items"][:, None]
        valid = np.arange(LONGEST) < a["lengths"][a["users"]][:, None]
        # A candidate is not left out of its history there, so it is not here.
        scores = module(
            a["target"][items],
            a["source"][a["history"][a["users"]]],
            bias=a["bias"][items],
            valid=valid,
        )
        return {"out": scores[:, 0]}

    return differentiate(compute, inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with RecBole."""
    return torch_answers(lambda a: _recbole(case, a), inputs(case))


def _recbole(case, a):
    import torch
    from recbole.model.general_recommender.nais import NAIS as RecBoleNAIS

    form, alpha, beta = OPTIONS[case]
    fields = ("USER_ID_FIELD", "ITEM_ID_FIELD", "LABEL_FIELD", "NEG_PREFIX")
    config = {name: name for name in fields} | {
        "algorithm": form,
        "alpha": alpha,
        "beta": beta,
        "device": torch.device("cpu"),
        "embedding_size": D,
        "weight_size": A,
        "reg_weights": [0.0, 0.0, 0.0],
        "split_to": 0,
        "pretrain_path": None,
    }

    class Data:
        """Stub of the data set interface that the model uses."""

        def num(self, field):
            return USERS if field == "USER_ID_FIELD" else ITEMS

        def history_item_matrix(self):
            return a["history"], None, a["lengths"]

    kernel = a["hidden_kernel"].T
    if form == "concat":
        # There the history stands before the candidate.
        kernel = torch.cat([kernel[:, D:], kernel[:, :D]], dim=1)
    weights = {
        "item_src_embedding.weight": a["source"],
        "item_dst_embedding.weight": a["target"],
        "bias": a["bias"],
        "mlp_layers.mlp_layers.1.weight": kernel,
        "mlp_layers.mlp_layers.1.bias": a["hidden_bias"],
        "weight_layer": a["score"][:, None],
    }
    model = RecBoleNAIS(config, Data())
    assert dict(model.named_parameters()).keys() == weights.keys()
    return {"out": torch.func.functional_call(model, weights, (a["users"], a["items"]))}
