"""Attributions compared with Captum, with autograd of PyTorch on BERT, and with loops over the
equations of the papers on its weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import attribution
from tasks.common.huggingface.weights import to_tensors
from tests.oracles.families import bert

pytestmark = pytest.mark.oracle

CASE = "bert_model"
ARRAYS = bert.inputs(CASE)
READOUT = np.random.default_rng(1).normal(size=bert.D).astype(np.float32)
BASELINE = np.random.default_rng(2).normal(size=(1, bert.T, bert.D)).astype(np.float32)
SEGMENTS, LENGTHS = ARRAYS["segments"], ARRAYS["lengths"]
NAMES = [f"encoder/layers/{number}/attention" for number in range(bert.L)]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@functools.cache
def our_model():
    model = bert._model(CASE)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf[...] = jnp.asarray(ARRAYS["/".join(map(str, path))])
    return model


def our_score(hidden):
    return hidden[:, 0] @ READOUT


def our_function(x):
    """Returns the scores [B] for word embeddings [B, T, D]."""
    model = our_model()
    x = x + model.segment_embedding(jnp.asarray(SEGMENTS))
    return our_score(model.encoder(x, lengths=jnp.asarray(LENGTHS)))


@functools.cache
def their_model():
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=bert.V,
        hidden_size=bert.D,
        num_hidden_layers=bert.L,
        num_attention_heads=bert.N,
        max_position_embeddings=8,
        intermediate_size=bert.F,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    tensors = {name: torch.tensor(array) for name, array in ARRAYS.items()}
    weights = to_tensors("bert", bert.L, tensors, bert.ORDER)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


def their_result(x, **options):
    import torch

    repeated = x.shape[0] // bert.B
    mask = torch.arange(bert.T) < torch.tensor(LENGTHS)[:, None]
    return their_model()(
        inputs_embeds=x,
        token_type_ids=torch.tensor(SEGMENTS).repeat(repeated, 1),
        attention_mask=mask.long().repeat(repeated, 1),
        **options,
    )


def their_function(x):
    import torch

    return their_result(x).last_hidden_state[:, 0] @ torch.tensor(READOUT)


@functools.cache
def embeddings():
    """Returns the word embeddings [B, T, D]."""
    return np.asarray(our_model().embedding(jnp.asarray(ARRAYS["tokens"])))


@functools.cache
def their_attention():
    """Returns weights and gradients [L, B, N, T, T], and inputs of the layers [B, T, D]."""
    import torch

    x = torch.tensor(embeddings(), requires_grad=True)
    result = their_result(x, output_attentions=True, output_hidden_states=True)
    scores = result.last_hidden_state[:, 0] @ torch.tensor(READOUT)
    gradients = torch.autograd.grad(scores.sum(), result.attentions)
    stacked = [torch.stack(arrays).detach().numpy() for arrays in (result.attentions, gradients)]
    return *stacked, [hidden.detach() for hidden in result.hidden_states]


@functools.cache
def our_attention():
    arrays = [jnp.asarray(ARRAYS[name]) for name in ("tokens", "lengths", "segments")]
    found = attribution.attention_gradients(
        our_model(), *arrays[:2], segments=arrays[2], score=our_score
    )
    return tuple(np.stack([arrays[name] for name in NAMES]) for arrays in found)


def test_the_models_are_equal():
    import torch

    expected = their_function(torch.tensor(embeddings())).detach().numpy()
    np.testing.assert_allclose(our_function(jnp.asarray(embeddings())), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("method", "name"), [("gauss_legendre", "gausslegendre"), ("midpoint", "riemann_middle")]
)
def test_integrated_gradients_against_captum(method, name):
    import captum.attr
    import torch

    x, baseline = torch.tensor(embeddings()), torch.tensor(BASELINE)
    expected, delta = captum.attr.IntegratedGradients(their_function).attribute(
        x, baseline.expand_as(x), n_steps=12, method=name, return_convergence_delta=True
    )
    found = attribution.integrated_gradients(
        our_function, jnp.asarray(embeddings()), jnp.asarray(BASELINE), steps=12, method=method
    )
    np.testing.assert_allclose(found.attributions, expected.numpy(), **TOLERANCE)
    np.testing.assert_allclose(found.gap, -delta.numpy(), atol=1e-4)


def test_gradient_times_input_against_captum():
    import captum.attr
    import torch

    x = torch.tensor(embeddings(), requires_grad=True)
    expected = captum.attr.InputXGradient(their_function).attribute(x)
    found = attribution.gradient_times_input(our_function, jnp.asarray(embeddings()))
    np.testing.assert_allclose(found, expected.detach().numpy(), **TOLERANCE)


def test_occlusion_against_captum():
    import captum.attr
    import torch

    x = torch.tensor(embeddings())
    expected = captum.attr.FeatureAblation(their_function).attribute(
        x, feature_mask=torch.arange(bert.T)[None, :, None].expand_as(x)
    )
    groups = np.broadcast_to(np.eye(bert.T, dtype=bool), (bert.B, bert.T, bert.T))
    given = embeddings()
    score = lambda gate: our_function(gate[..., None] * given)  # noqa: E731
    found = attribution.occlusion(score, groups)
    np.testing.assert_allclose(found, expected[..., 0].numpy(), **TOLERANCE)


def test_grad_cam_against_captum():
    import captum.attr
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 3)
    model = torch.nn.Sequential(
        layer, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 5, 3)
    )
    images = torch.randn(2, 3, 8, 7)
    expected = captum.attr.LayerGradCam(model, layer).attribute(
        images, target=1, relu_attributions=True
    )
    features = layer(images).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(model[1:](features)[:, 1].sum(), features)
    last = [array.detach().permute(0, 2, 3, 1).numpy() for array in (features, gradients)]
    np.testing.assert_allclose(
        attribution.grad_cam(*last), expected[:, 0].detach().numpy(), **TOLERANCE
    )


def test_attention_gradients_against_autograd():
    weights, gradients = our_attention()
    their_weights, their_gradients, _ = their_attention()
    np.testing.assert_allclose(weights, their_weights, atol=1e-5)
    np.testing.assert_allclose(gradients, their_gradients, **TOLERANCE)


def test_rollout_and_relevance_against_the_equations():
    weights, gradients, _ = their_attention()
    rolled = relevance = np.stack([np.eye(bert.T)] * bert.B)
    for layer, gradient in zip(weights.astype(np.float64), gradients, strict=True):
        rolled = (0.5 * layer.mean(1) + 0.5 * np.eye(bert.T)) @ rolled
        relevance = relevance + np.maximum(gradient * layer, 0).mean(1) @ relevance
    ours = our_attention()
    np.testing.assert_allclose(attribution.rollout(ours[0]), rolled, **TOLERANCE)
    np.testing.assert_allclose(attribution.relevance(*ours), relevance, **TOLERANCE)


def their_parts(number):
    """Returns α_nts f_n(x_s), [B, N, T, S, D], of a layer of BERT."""
    import torch

    weights, _, hidden = their_attention()
    layer = their_model().encoder.layer[number].attention
    values = layer.self.value(hidden[number]).view(bert.B, bert.T, bert.N, -1)
    out = layer.output.dense.weight.view(bert.D, bert.N, -1)
    parts = torch.einsum("bsnv,dnv->bsnd", values, out)
    return torch.einsum("bnts,bsnd->bntsd", torch.tensor(weights[number]), parts).detach()


def test_value_weighted_norms_against_their_weights():
    arrays = [jnp.asarray(ARRAYS[name]) for name in ("tokens", "lengths", "segments")]
    found = attribution.value_weighted_norms(our_model(), *arrays[:2], segments=arrays[2])
    for number, name in enumerate(NAMES):
        parts = their_parts(number)
        heads, total = parts.norm(dim=-1), parts.sum(1).norm(dim=-1)
        np.testing.assert_allclose(found[name].heads, heads.numpy(), **TOLERANCE)
        np.testing.assert_allclose(found[name].total, total.numpy(), **TOLERANCE)


def test_alti_against_their_weights():
    import torch

    expected = np.eye(bert.T)
    for number in range(bert.L):
        x = their_attention()[2][number]
        output = their_model().encoder.layer[number].attention.output
        parts = their_parts(number).sum(1) + torch.eye(bert.T)[:, :, None] * x[:, :, None]
        whole = parts.sum(2) + output.dense.bias
        y = output.LayerNorm(whole)[:, :, None]
        deviation = whole.var(-1, unbiased=False, keepdim=True)[:, :, None].sqrt()
        centered = parts - parts.mean(-1, keepdim=True)
        parts = centered / deviation * output.LayerNorm.weight
        kept = (y.abs().sum(-1) - (y - parts).abs().sum(-1)).clamp(min=0)
        expected = (kept / kept.sum(-1, keepdim=True)).detach().numpy() @ expected
    arrays = [jnp.asarray(ARRAYS[name]) for name in ("tokens", "lengths", "segments")]
    found = attribution.alti(our_model(), *arrays[:2], segments=arrays[2])
    np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_deletion_and_insertion_against_a_loop():
    import torch

    order = np.stack([np.random.default_rng(b).permutation(bert.T) for b in range(bert.B)])
    x, reference = embeddings(), BASELINE
    score = lambda gate: our_function(  # noqa: E731
        gate[..., None] * x + (1 - gate[..., None]) * reference
    )
    for inserts in (False, True):
        curve = attribution.insertion_curve if inserts else attribution.deletion_curve
        areas = jax.jit(lambda o, c=curve: attribution.area_under_curve(c(score, o)))(order)
        scores = []
        for count in range(bert.T + 1):
            changed = (np.broadcast_to(reference, x.shape) if inserts else x).copy()
            for b in range(bert.B):
                chosen = order[b, :count]
                changed[b, chosen] = x[b, chosen] if inserts else reference[0, chosen]
            scores.append(their_function(torch.tensor(changed)).detach().numpy())
        expected = np.trapezoid(scores, dx=1 / bert.T, axis=0)
        np.testing.assert_allclose(areas, expected, **TOLERANCE)
