"""LanguageModel compared with BERT, DistilBERT and RoBERTa of transformers, with the weights that
`tasks.common.huggingface.weights` makes of ours.
"""

import numpy as np
from flax import nnx

from tasks.common.huggingface.weights import first_position, our_order, to_tensors
from tasks.language_modeling.model import LanguageModel, LanguageModelConfig
from tests.oracles.problems import differentiate, torch_answers

B, T, D, N, F, L, V = 2, 6, 16, 2, 20, 2, 23
CASES = (
    "bert_model",
    "bert_masked",
    "bert_pretraining",
    "distilbert_model",
    "distilbert_masked",
    "roberta_model",
    "roberta_masked",
)
VOCABULARY = ["[PAD]", "a", "[UNK]", "b", "[CLS]", "[SEP]", "[MASK]", *map(str, range(V - 7))]
ORDER = our_order(VOCABULARY)


def inputs(case: str) -> dict[str, np.ndarray]:
    """Weights by our path, and tokens with our ids."""
    rng = np.random.RandomState(320 + CASES.index(case))

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    arrays = {"tokens": rng.randint(3, V, size=(B, T)), "lengths": np.array([T, 4])}
    arrays["cotangent"] = normal(B, T, D if case.endswith("model") else V)
    if case.startswith("bert"):
        arrays["segments"] = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    for path, leaf in nnx.to_flat_state(nnx.state(_model(case), nnx.Param)):
        name = "/".join(map(str, path))
        centre = 1.0 if name.endswith("scale") else 0.0
        arrays[name] = np.float32(centre) + normal(*leaf[...].shape, scale=0.3)
    return arrays


def ours(case: str) -> dict[str, np.ndarray]:
    """Outputs, and gradients named `d_<input>`, of what this repository computes."""
    return differentiate(lambda arrays: _ours(case, arrays), inputs(case))


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with transformers."""
    return torch_answers(lambda arrays: _theirs(case, arrays), inputs(case))


def _model(case):
    segments = {"bert": 2, "distilbert": 0, "roberta": 1}[case.partition("_")[0]]
    config = LanguageModelConfig(
        model_size=D,
        num_layers=L,
        num_heads=N,
        feedforward_size=F,
        objective="masked",
        norm="post",
        input_norm=True,
        norm_epsilon=1e-12,
        positions="learned",
        max_length=8,
        segments=segments,
        next_sentence=case == "bert_pretraining",
    )
    return LanguageModel(config, V, rngs=nnx.Rngs(0))


def _ours(case, a):
    model = _model(case)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf[...] = a["/".join(map(str, path))]
    options = {"segments": a.get("segments"), "return_weights": True}
    hidden, weights = model(a["tokens"], a["lengths"], **options)
    if case.endswith("model"):
        # Its head is not used: no gradient.
        return {"out": hidden, "weights": weights}
    results = {"out": model.logits(hidden), "weights": weights}
    if case == "bert_pretraining":
        results["follows"] = model.next_sentence(hidden)
    return results


def _theirs(case, a):
    import torch
    import transformers

    kind, what = case.split("_")
    name = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}[kind]
    options = {"type_vocab_size": 1, "pad_token_id": 0} if kind == "roberta" else {}
    # The rows before the first token are unused.
    unused = first_position(kind, 0)
    # The dropout rates are of no account in evaluation.
    config = getattr(transformers, f"{name}Config")(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=N,
        max_position_embeddings=8 + unused,
        attn_implementation="eager",
        **{"hidden_dim" if kind == "distilbert" else "intermediate_size": F},
        **options,
    )
    suffix = {"model": "Model", "masked": "ForMaskedLM", "pretraining": "ForPreTraining"}[what]
    pools = case in ("bert_model", "roberta_model")
    options = {"add_pooling_layer": False} if pools else {}
    model = getattr(transformers, f"{name}{suffix}")(config, **options).eval()
    weights = to_tensors(kind, L, a, ORDER)
    table = "embeddings.position_embeddings.weight"
    weights[table] = torch.cat([torch.zeros(unused, D), weights[table]])
    if what == "model":
        known = model.state_dict()
        weights = {name: tensor for name, tensor in weights.items() if name in known}
    else:
        head = ("cls.", "vocab_", "lm_head.")
        words = weights["embeddings.word_embeddings.weight"]
        weights = {n if n.startswith(head) else f"{kind}.{n}": w for n, w in weights.items()}
        output = {
            "bert": "cls.predictions.decoder",
            "distilbert": "vocab_projector",
            "roberta": "lm_head.decoder",
        }[kind]
        weights[f"{output}.weight"] = words
        if kind != "distilbert":
            weights[f"{output}.bias"] = weights[f"{output.removesuffix('.decoder')}.bias"]
    assert {*weights} == {*model.state_dict()}
    given = {
        "input_ids": torch.tensor(ORDER)[a["tokens"]],
        "attention_mask": (torch.arange(T) < a["lengths"][:, None]).long(),
        "output_attentions": True,
    }
    if kind == "bert":
        given["token_type_ids"] = a["segments"]
    result = torch.func.functional_call(model, weights, (), given)
    shares = {"weights": torch.stack(result.attentions)}
    if what == "model":
        return {"out": result.last_hidden_state} | shares
    logits = (result.prediction_logits if what == "pretraining" else result.logits)[..., ORDER]
    if what != "pretraining":
        return {"out": logits} | shares
    # In transformers the first of the two classes means that the sentence follows.
    return {"out": logits, "follows": result.seq_relationship_logits[:, [1, 0]]} | shares
