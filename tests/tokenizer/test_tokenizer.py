"""The tokenizer: causal in both directions, images are clips of one frame, sizes of the paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.tokenizer.autoencoder import Tokenizer


@pytest.fixture(scope='module')
def video_BTHWC():
    return jnp.asarray(np.random.default_rng(1).uniform(size=(1, 9, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope='module')
def dependence(small_tokenizer, video_BTHWC):
    """(latent frames, frames) and (decoded frames, latent frames): largest gradient of a frame by a frame."""

    def largest_gradients(run, x, frames_out):
        @jax.jit
        def gradient(x, chosen_T):
            def weighed(x):
                y = run(small_tokenizer.params, x)
                weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
                return jnp.einsum('bthwc,bthwc,t->', y, weights, chosen_T)

            return jax.grad(weighed)(x)

        return np.stack([np.abs(gradient(x, chosen)).max((0, 2, 3, 4)) for chosen in jnp.eye(frames_out)])

    z = small_tokenizer.encode(small_tokenizer.params, video_BTHWC)
    return largest_gradients(small_tokenizer.encode, video_BTHWC, 3), largest_gradients(small_tokenizer.decode, z, 9)


def test_latent_frame_ignores_future_pixels(dependence):
    """Latent frame i stands for frames up to 4 i."""
    encoder_tT, _ = dependence
    np.testing.assert_array_equal(encoder_tT > 0, np.arange(9) <= 4 * np.arange(3)[:, None])


def test_decoded_frame_ignores_future_latents(dependence):
    """Frame 0 comes of latent frame 0, frames 1 to 4 of latent frames 0 and 1, and so on."""
    _, decoder_Tt = dependence
    np.testing.assert_array_equal(decoder_Tt > 0, np.arange(3) <= np.ceil(np.arange(9) / 4)[:, None])


def test_an_image_is_the_first_latent_frame_of_a_clip(small_tokenizer, video_BTHWC):
    encode = small_tokenizer.encode
    z, first = (encode(small_tokenizer.params, x) for x in (video_BTHWC, video_BTHWC[:, :1]))
    np.testing.assert_allclose(first, z[:, :1], atol=1e-5)
    assert np.abs(z[:, 1:] - first).max() > 0.1


def test_the_first_latent_frame_alone_decodes_to_the_first_frame(small_tokenizer, video_BTHWC):
    z = small_tokenizer.encode(small_tokenizer.params, video_BTHWC)
    whole, first = (small_tokenizer.decode(small_tokenizer.params, x) for x in (z, z[:, :1]))
    np.testing.assert_allclose(first, whole[:, :1], atol=1e-5)


def shapes(module, *video_shape):
    """Shapes of (reconstruction, latents) of a clip, without computing anything."""
    video = jax.ShapeDtypeStruct((1, *video_shape), jnp.float32)
    (reconstruction, bottled), _ = jax.eval_shape(
        lambda video: module.init_with_output(jax.random.key(0), video), video
    )
    outputs = reconstruction, bottled.z_BTHWC
    assert {output.dtype for output in outputs} == {jnp.dtype('float32')}
    return tuple(output.shape[1:] for output in outputs)


def test_paper_sizes():
    """17x128x128 -> 5x16x16x8; 9 frames make 3 latent frames, the last 5 of 17 make 2, an image makes 1."""
    module = Tokenizer()
    for frames, latent_frames in [(17, 5), (9, 3), (5, 2), (1, 1)]:
        pixels, latents = shapes(module, frames, 128, 128, 3)
        assert pixels == (frames, 128, 128, 3) and latents == (latent_frames, 16, 16, 8)
        assert module.latent_shape(frames, 128, 128) == latents


def test_other_sides_and_kernels_of_4_keep_the_grid():
    assert shapes(Tokenizer(channels=32, down_kernel=4), 17, 128, 224, 3) == ((17, 128, 224, 3), (5, 16, 28, 8))


def test_1_plus_4k_frames_come_out_as_they_went_in(small_tokenizer):
    for k in range(5):
        assert shapes(small_tokenizer.module, 1 + 4 * k, 8, 12, 3) == ((1 + 4 * k, 8, 12, 3), (1 + k, 2, 3, 3))


def test_a_bfloat16_tokenizer_keeps_float32_parameters_and_outputs():
    module = Tokenizer(channels=32, blocks=(1, 1, 1, 1), middle_blocks=1, dtype=jnp.bfloat16)
    shapes(module, 5, 16, 16, 3)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def millions(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(tree))) / 1e6


@pytest.mark.parametrize(('channels', 'expected'), [(128, 370.4), (64, 92.6), (32, 23.2)])
def test_parameter_counts_of_the_paper(channels, expected):
    params = jax.eval_shape(Tokenizer(channels=channels).init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))['params']
    np.testing.assert_allclose(millions(params), expected, rtol=0.003)
    if channels == 128:
        np.testing.assert_allclose(millions(params['encoder']), 144.9, rtol=0.003)
        np.testing.assert_allclose(millions(params['decoder']), 225.5, rtol=0.003)


def test_biases_are_where_the_paper_has_them(small_tokenizer):
    """None in residual blocks and the encoder's first convolution; in all other convolutions one."""
    layers = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(small_tokenizer.params):
        *layer, leaf = (entry.key for entry in path)
        layers.setdefault('/'.join(layer), set()).add(leaf)
    without = {name for name, leaves in layers.items() if leaves == {'kernel'}}
    assert without == {name for name in layers if '_block' in name and 'Conv' in name} | {'encoder/stem'}


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((8, 8, 8), r'8 frames are not 1 \+ k \* 4'),
        ((0, 8, 8), r'0 frames are not 1 \+ k \* 4'),
        ((5, 10, 8), '10x8 pixels .* stride 4'),
        ((5, 8, 10), '8x10 pixels .* stride 4'),
    ],
)
def test_clips_that_do_not_fit_are_refused_with_both_values(shape, message, small_tokenizer):
    video = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small_tokenizer.encode, small_tokenizer.params, video)
    with pytest.raises(ValueError, match=message):
        small_tokenizer.module.latent_shape(*shape)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'blocks': (4, 4)}, r'blocks \(4, 4\) and multipliers \(1, 2, 2, 4\)'),
        ({'spatial_strides': (2, 2)}, r'spatial_strides \(2, 2\) .* multipliers \(1, 2, 2, 4\)'),
        ({'temporal_strides': (1, 2, 2, 1)}, r'temporal_strides \(1, 2, 2, 1\) .* multipliers \(1, 2, 2, 4\)'),
        ({'channels': 48}, '48 channels .* 32 groups'),
        ({'groups': 48}, '128 channels .* 48 groups'),
    ],
)
def test_fields_that_do_not_fit_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(**fields)
