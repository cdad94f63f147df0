"""The mathematics of a TarFlow, written anew: in float64, token after token."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from compiled import BATCH, make_batch, make_experiment, make_noise, make_params, named

from tarflow_jax.training.objective import drop_labels, flip_half


def results(path) -> dict[str, np.ndarray]:
    """The arrays of `compiled.results`."""
    experiment = make_experiment(path)
    config, model = experiment.config, experiment.model
    noise, batch = make_noise(config), make_batch(model)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)  # as the first step draws
    noise_key, drop_key, flip_key = jax.random.split(key, 3)
    levels = batch['image']
    if config.data.random_flip:
        levels = flip_half(flip_key, levels)
    trained_on = noise.add(noise_key, levels)
    labels = drop_labels(drop_key, batch['label'], config.train.drop_label)
    scored = noise.add(jax.random.key(0), batch['image'])
    numbers = np.arange(BATCH, dtype=np.int32)
    seed_key = jax.random.key(config.sample.seed)
    prior = jax.vmap(
        lambda n: jax.random.normal(jax.random.fold_in(seed_key, n), model.image_shape)
    )(numbers)
    classes = numbers if model.num_classes else batch['label']
    inputs = jax.device_get((make_params(model), trained_on, labels, scored, prior, classes))
    with jax.enable_x64(True):
        params, trained_on, labels, scored, prior, classes = jax.tree.map(_as_float64, inputs)

        def loss(params):
            return _nats(model, params, trained_on, labels)[0].mean()

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
        clip = min(1.0, (config.optimizer.clip_norm or math.inf) / norm)
        mean = jax.tree.map(lambda g: (1 - config.optimizer.b1) * clip * g, gradient)
        nats, latents = jax.jit(functools.partial(_nats, model))(params, scored, batch['label'])
        samples = _denoise(model, params, _inverse(model, params, prior, classes), classes, config)
        arrays = {'nats': nats, 'latents': latents, 'samples': samples, 'loss': value}
        return jax.tree.map(np.asarray, arrays | named('mean', mean))


def _as_float64(x):
    return jnp.asarray(x, jnp.float64 if np.issubdtype(x.dtype, np.floating) else None)


def _nats(model, params, images, labels):
    """Negative log-density per dimension [B], and latents [B, H, W, C]."""
    x, log_det = _patches(model, images), 0.0
    for number in range(model.num_blocks):
        block = jax.tree.map(lambda p, number=number: p[number], params['blocks'])
        shift, log_scale = _affine(model, block, x, labels)
        x = ((x - shift) * jnp.exp(-log_scale))[:, ::-1]
        log_det = log_det - log_scale.sum(axis=(1, 2))
    if model.num_blocks % 2:
        x = x[:, ::-1]
    dims = math.prod(model.image_shape)
    log_prior = -0.5 * (x**2).sum(axis=(1, 2)) - dims * 0.5 * math.log(2 * math.pi)
    return -(log_prior + log_det) / dims, _images(model, x)


def _inverse(model, params, latents, labels):
    x = _patches(model, latents)
    if model.num_blocks % 2:
        x = x[:, ::-1]
    affine = jax.jit(functools.partial(_affine, model))
    for number in reversed(range(model.num_blocks)):
        block = jax.tree.map(lambda p, number=number: p[number], params['blocks'])
        z, x = x[:, ::-1], x[:, ::-1]
        for token in range(1, z.shape[1]):  # it follows from the tokens before it
            shift, log_scale = affine(block, x, labels)
            inverted = z[:, token] * jnp.exp(log_scale[:, token]) + shift[:, token]
            x = x.at[:, token].set(inverted)
    return _images(model, x)


def _denoise(model, params, images, labels, config):
    """x + std^2 grad log p(x)."""

    def log_prob(images):
        nats, _ = _nats(model, params, images, labels)
        return -nats.sum() * math.prod(model.image_shape)

    return images + config.noise.std**2 * jax.jit(jax.grad(log_prob))(images)


def _affine(model, block, x, labels):
    """shift and log_scale [B, T, P], each of a token from the tokens before it."""
    length, heads = x.shape[1], model.width // model.head_dim
    h = _linear(block['proj_in'], x) + block['pos_embed'][None, :length]
    if model.num_classes:
        table = block['class_embed']
        rows = jnp.where(labels[:, None] < 0, table.mean(axis=0)[None], table[labels])
        h = h + rows[:, None]
    for number in range(model.layers_per_block):
        layer = jax.tree.map(lambda p, number=number: p[number], block['layers'])
        query, key, value = jnp.moveaxis(
            _linear(layer['attention']['qkv'], _norm(layer['attention_norm'], h)), 3, 0
        )
        logits = jnp.einsum('btnk,bsnk->bnts', query, key) / math.sqrt(model.head_dim)
        logits = jnp.where(np.tri(length, dtype=bool)[None, None], logits, -jnp.inf)
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum('bnts,bsnk->btnk', weights, value)
        assert mixed.shape[2] == heads
        h = h + _linear(layer['attention']['out'], mixed)
        hidden = _linear(layer['mlp']['up'], _norm(layer['mlp_norm'], h))
        hidden = hidden * (1 + jax.lax.erf(hidden / math.sqrt(2))) / 2
        h = h + _linear(layer['mlp']['down'], hidden)
    out = _linear(block['proj_out'], h)
    delayed = jnp.concatenate([jnp.zeros_like(out[:, :1]), out[:, :-1]], axis=1)
    return delayed[:, :, 1], delayed[:, :, 0]


def _linear(layer, x):
    kernel, bias = layer['kernel'], layer['bias']
    inputs = kernel.ndim - bias.ndim
    y = jnp.tensordot(x, kernel, axes=inputs)
    return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _norm(layer, h):
    centred = h - h.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed = centred / jnp.sqrt(variance + 1e-5)
    return normed * layer['scale'][None, None] + layer['bias'][None, None]


def _patches(model, images):
    """Tokens [B, T, P] of images: patches row by row, each as (channel, row, column)."""
    side = model.patch_size
    height, width, _ = model.image_shape
    patches = [
        images[:, y : y + side, x : x + side].transpose(0, 3, 1, 2).reshape(len(images), -1)
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    return jnp.stack(patches, axis=1)


def _images(model, tokens):
    side = model.patch_size
    height, width, channels = model.image_shape
    columns = width // side
    patches = tokens.reshape(*tokens.shape[:2], channels, side, side).transpose(1, 0, 3, 4, 2)
    rows = [
        jnp.concatenate(list(patches[start : start + columns]), axis=2)
        for start in range(0, len(patches), columns)
    ]
    assert len(rows) * side == height
    return jnp.concatenate(rows, axis=1)
