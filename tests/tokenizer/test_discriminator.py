"""The discriminator: size of the paper, anti-aliased halving, every clip by itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.tokenizer.discriminator import Discriminator, blur_pool


def test_parameter_count_of_the_paper():
    clip = jax.ShapeDtypeStruct((1, 17, 128, 128, 3), jnp.float32)
    params = jax.eval_shape(Discriminator().init, jax.random.key(0), clip)['params']
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(params)))
    np.testing.assert_allclose(count / 1e6, 61.3, rtol=0.003)
    hidden = nn.unbox(params)['hidden']['kernel']
    assert hidden.shape == (1 * 4 * 4 * 512, 512)  # time 17 -> 9 -> 5 -> 3 -> 2 -> 1, space 128 -> 4


def test_each_clip_has_a_logit_of_its_own(rng, random_parameters):
    module = Discriminator(channels=4, multipliers=(1, 2))
    video = jnp.asarray(rng.uniform(size=(3, 5, 8, 8, 3)), jnp.float32)
    params = random_parameters(module, video)
    logits = jax.jit(module.apply)({'params': params}, video)
    assert logits.shape == (3,) and logits.dtype == jnp.float32
    assert np.ptp(logits) > 1e-2
    np.testing.assert_allclose(jax.jit(module.apply)({'params': params}, video[1:2]), logits[1:2], rtol=1e-4)
    half = module.clone(dtype=jnp.bfloat16)
    assert jax.eval_shape(half.apply, {'params': params}, video).dtype == jnp.float32


def test_it_is_the_drawing(rng, random_parameters):
    """Line by line, with XLA's own convolution and a blur that is a convolution too."""
    module = Discriminator(channels=4, multipliers=(2,))
    video = jnp.asarray(rng.uniform(size=(2, 5, 8, 8, 3)), jnp.float32)
    params = random_parameters(module, video)

    def convolve(x, kernel, strides=(1, 1, 1), padding=(1, 1, 1), groups=1):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            [(n, n) for n in padding],
            dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
            feature_group_count=groups,
        )

    def leaky(x):
        return jnp.where(x > 0, x, 0.2 * x)

    def conv(x, name):
        return leaky(convolve(x, params[name]['kernel']) + params[name]['bias'])

    def blur(x):
        """An odd number of frames has a zero on both sides; of an even number of pixels, one behind."""
        taps = jnp.array([0.25, 0.5, 0.25])
        kernel = jnp.einsum('t,h,w->thw', taps, taps, taps)[..., None, None]
        x = jnp.pad(x, [(0, 0), (1, 1), (0, 1), (0, 1), (0, 0)])
        return convolve(x, kernel.repeat(x.shape[-1], -1), (2, 2, 2), (0, 0, 0), groups=x.shape[-1])

    @jax.jit
    def drawing(video):
        x = conv(video, 'stem')
        main = conv(blur(conv(x, 'level0_conv0')), 'level0_conv1')
        skip = convolve(blur(x), params['level0_skip']['kernel'], padding=(0, 0, 0))
        x = conv((main + skip) / np.sqrt(2), 'head').reshape(2, -1)
        x = leaky(x @ params['hidden']['kernel'] + params['hidden']['bias'])
        return (x @ params['logit']['kernel'] + params['logit']['bias'])[:, 0]

    assert set(params['level0_skip']) == {'kernel'}
    np.testing.assert_allclose(jax.jit(module.apply)({'params': params}, video), drawing(video), rtol=1e-4)


def test_it_sees_every_pixel_of_every_frame(rng, random_parameters):
    module = Discriminator(channels=4, multipliers=(1, 2))
    video = jnp.asarray(rng.uniform(size=(1, 5, 8, 8, 3)), jnp.float32)
    params = random_parameters(module, video)
    gradient = jax.jit(jax.grad(lambda video: module.apply({'params': params}, video).sum()))(video)
    assert (np.abs(gradient) > 0).all()


def test_an_image_discriminator_has_flat_kernels_and_keeps_every_frame(random_parameters):
    module = Discriminator(channels=4, multipliers=(1, 2), kernel_t=1)
    params = random_parameters(module, jnp.zeros((1, 3, 8, 8, 3)))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params) if leaf.ndim == 5} == {1}
    assert params['hidden']['kernel'].shape == (3 * 2 * 2 * 8, 8)


@pytest.mark.parametrize('size', [1, 2, 5, 8])
def test_blur_pool_halves_and_blurs(size, rng):
    x = np.float32(rng.normal(size=(1, size, size, size, 2)))
    out = math.ceil(size / 2)
    y = np.asarray(blur_pool(x, (2, 2, 2)))
    assert y.shape == (1, out, out, out, 2)
    padded = np.pad(x, [(0, 0), *[((2 * out + 1 - size) // 2, (2 * out + 2 - size) // 2)] * 3, (0, 0)])
    taps = np.array([1, 2, 1]) / 4
    i = out - 1
    window = padded[0, 2 * i : 2 * i + 3, 2 * i : 2 * i + 3, 2 * i : 2 * i + 3]
    np.testing.assert_allclose(y[0, i, i, i], np.einsum('thwc,t,h,w->c', window, taps, taps, taps), atol=1e-6)


def test_blur_pool_keeps_a_constant_inside_and_removes_the_highest_frequency():
    ones = jnp.ones((1, 9, 9, 9, 1))
    np.testing.assert_allclose(blur_pool(ones, (2, 2, 2))[:, 1:-1, 1:-1, 1:-1], 1, atol=1e-6)
    checks = ones * (-1.0) ** jnp.arange(9)[:, None, None]  # along the height
    np.testing.assert_allclose(blur_pool(checks, (1, 2, 1))[:, :, 1:-1], 0, atol=1e-6)
    assert blur_pool(ones, (1, 2, 2)).shape == (1, 9, 5, 5, 1)
    with pytest.raises(ValueError, match=r'\(3, 2, 2\)'):
        blur_pool(ones, (3, 2, 2))
