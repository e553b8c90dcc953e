"""From a tokenizer of images to one of video."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.inflation import inflate

FIELDS = dict(
    channels=4,
    multipliers=(1, 2, 2),
    blocks=(1, 0, 1),
    middle_blocks=0,
    spatial_strides=(2, 2),
    latent_channels=3,
    groups=2,
)
IMAGE = Tokenizer(kernel_t=1, temporal_strides=(1, 1), **FIELDS)
VIDEO = Tokenizer(temporal_strides=(2, 2), **FIELDS)


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, clip):
    """(reconstruction, latents)."""
    fake, bottled = module.apply({'params': params}, clip)
    return fake, bottled.z_BTHWC


@pytest.fixture(scope='module')
def frames():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(2, 1, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope='module')
def inflated(random_parameters):
    """(parameters of images, of the video tokenizer made of them)."""
    image = random_parameters(IMAGE, jnp.zeros((1, 1, 8, 8, 3)))
    shapes = random_parameters(VIDEO, jnp.zeros((1, 5, 8, 8, 3)))
    return image, inflate(image, shapes)


def test_an_image_is_reconstructed_as_before(inflated, frames):
    image_params, params = inflated
    before, z_before = run(IMAGE, image_params, frames)
    after, z_after = run(VIDEO, params, frames)
    np.testing.assert_allclose(z_after, z_before, atol=1e-5)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_clip_that_stands_still_is_the_image_in_every_frame(inflated, frames):
    image_params, params = inflated
    image, _ = run(IMAGE, image_params, frames)
    clip, _ = run(VIDEO, params, jnp.repeat(frames, 9, axis=1))
    np.testing.assert_allclose(clip, jnp.repeat(image, 9, axis=1), atol=1e-5)


def test_a_latent_frame_is_that_of_the_last_frame_of_its_group(inflated):
    image_params, params = inflated
    clip = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 9, 8, 8, 3)), jnp.float32)
    _, z = run(VIDEO, params, clip)
    for i in range(3):
        _, alone = run(IMAGE, image_params, clip[:, 4 * i : 4 * i + 1])
        np.testing.assert_allclose(z[:, i : i + 1], alone, atol=1e-5)


def test_tokenizers_that_differ_in_more_than_time_are_refused_with_both_shapes(random_parameters):
    image = random_parameters(IMAGE, jnp.zeros((1, 1, 8, 8, 3)))
    wider = Tokenizer(temporal_strides=(2, 2), **FIELDS | {'channels': 8})
    shapes = jax.eval_shape(lambda: random_parameters(wider, jnp.zeros((1, 5, 8, 8, 3))))
    with pytest.raises(ValueError, match=r'decoder/head/kernel of shape \(1, 3, 3, 4, 3\) .* \(3, 3, 3, 8, 3\)'):
        inflate(image, shapes)
    deeper = Tokenizer(temporal_strides=(2, 2), **FIELDS | {'blocks': (1, 1, 1)})
    with pytest.raises(ValueError, match='differ in more than time'):
        inflate(image, jax.eval_shape(lambda: random_parameters(deeper, jnp.zeros((1, 5, 8, 8, 3)))))
