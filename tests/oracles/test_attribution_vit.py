"""Attributions of a small Vision Transformer compared with transformers' ViT and Captum."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import attribution
from tasks.image_classification.model import VisionTransformer, ViTConfig

pytestmark = pytest.mark.oracle

SIDE, PATCH, D, N, F, L, CLASSES = 8, 4, 16, 2, 24, 2, 3
IMAGES = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
LABEL = 1
NAMES = [f"encoder/layers/{number}/attention" for number in range(L)]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@functools.cache
def their_model():
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=N,
        intermediate_size=F,
        layer_norm_eps=1e-5,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    model = transformers.ViTForImageClassification(config).eval()
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.3)
    return model


def their_function(images):
    """Returns logits of the label, [B], for images [B, C, Y, X]."""
    return their_model()(images).logits[:, LABEL]


def copied():
    """Returns the parameters of transformers' model by the paths of ours."""
    t = {name: tensor.numpy() for name, tensor in their_model().state_dict().items()}

    def projection(ours, theirs, shape=None):
        kernel, bias = t[f"{theirs}.weight"].T, t[f"{theirs}.bias"]
        kernel = kernel if shape is None else kernel.reshape(shape)
        bias = bias if shape is None or shape[0] != D else bias.reshape(shape[1:])
        return {f"{ours}/kernel": kernel, f"{ours}/bias": bias}

    def norm(ours, theirs):
        return {f"{ours}/scale": t[f"{theirs}.weight"], f"{ours}/bias": t[f"{theirs}.bias"]}

    patches = "vit.embeddings.patch_embeddings.projection"
    found = {
        "embed/kernel": t[f"{patches}.weight"].transpose(2, 3, 1, 0).reshape(-1, D),
        "embed/bias": t[f"{patches}.bias"],
        "first": t["vit.embeddings.cls_token"][0, 0],
        "encoder/positions/embedding": t["vit.embeddings.position_embeddings"][0],
    }
    found |= norm("encoder/final_norm", "vit.layernorm") | projection("classify", "classifier")
    for number in range(L):
        ours, theirs = f"encoder/layers/{number}", f"vit.layers.{number}"
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            source = f"{theirs}.attention.{letter}_proj"
            found |= projection(f"{ours}/attention/{name}", source, (D, N, D // N))
        source = f"{theirs}.attention.o_proj"
        found |= projection(f"{ours}/attention/out", source, (N, D // N, D))
        found |= projection(f"{ours}/feedforward/up", f"{theirs}.mlp.fc1")
        found |= projection(f"{ours}/feedforward/down", f"{theirs}.mlp.fc2")
        found |= norm(f"{ours}/attention_norm", f"{theirs}.layernorm_before")
        found |= norm(f"{ours}/feedforward_norm", f"{theirs}.layernorm_after")
    return found


@functools.cache
def our_model():
    config = ViTConfig(D, L, N, F, norm="pre", positions="learned", patch_size=PATCH, head="cls")
    model, arrays = VisionTransformer(config, (SIDE, SIDE, 3), CLASSES, rngs=nnx.Rngs(0)), copied()
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        array = arrays.pop("/".join(map(str, path)))
        assert leaf[...].shape == array.shape
        leaf[...] = jnp.asarray(array)
    assert not arrays
    return model


def our_function(images):
    return our_model()(images)[:, LABEL]


def their_images(**options):
    import torch

    return torch.tensor(IMAGES.transpose(0, 3, 1, 2), **options)


def test_attention_gradients_and_relevance():
    import torch

    result = their_model()(their_images(), output_attentions=True)
    gradients = torch.autograd.grad(result.logits[:, LABEL].sum(), result.attentions)
    theirs = [torch.stack(arrays).detach().numpy() for arrays in (result.attentions, gradients)]
    found = attribution.attention_gradients(
        our_model(), jnp.asarray(IMAGES), score=lambda logits: logits[:, LABEL]
    )
    ours = [np.stack([arrays[name] for name in NAMES]) for arrays in found]
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], **TOLERANCE)
    expected = np.stack([np.eye(theirs[0].shape[-1])] * 2)
    for layer, gradient in zip(*theirs, strict=True):
        expected = expected + np.maximum(layer * gradient, 0).mean(1) @ expected
    np.testing.assert_allclose(attribution.relevance(*ours), expected, **TOLERANCE)


def test_gradients_of_pixels_against_captum():
    import captum.attr

    images = their_images(requires_grad=True)
    expected = captum.attr.InputXGradient(their_function).attribute(images)
    found = attribution.gradient_times_input(our_function, jnp.asarray(IMAGES))
    expected = expected.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    expected, delta = captum.attr.IntegratedGradients(their_function).attribute(
        their_images(), 0.5, n_steps=8, method="gausslegendre", return_convergence_delta=True
    )
    found = attribution.integrated_gradients(our_function, jnp.asarray(IMAGES), 0.5, steps=8)
    expected = expected.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found.attributions, expected, **TOLERANCE)
    np.testing.assert_allclose(found.gap, -delta.numpy(), atol=1e-4)
