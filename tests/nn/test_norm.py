"""Norms: statistics of one frame at a time, and modulation by the latent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.nn.conv import upsample_nearest
from walt.nn.norm import AdaptiveGroupNorm, FrameGroupNorm, LayerNorm


@pytest.fixture
def x_BTHWC(rng):
    return jnp.asarray(1 + 2 * rng.normal(size=(2, 5, 4, 4, 8)), jnp.float32)


@pytest.fixture
def affine(rng):
    return {name: jnp.asarray(rng.normal(size=8), jnp.float32) for name in ('scale', 'bias')}


def test_each_frame_is_normalised_as_flax_normalises_a_picture(x_BTHWC, affine):
    y = FrameGroupNorm(groups=4).apply({'params': affine}, x_BTHWC)
    reference = nn.GroupNorm(num_groups=4, epsilon=1e-6)
    for frame in range(x_BTHWC.shape[1]):
        np.testing.assert_allclose(y[:, frame], reference.apply({'params': affine}, x_BTHWC[:, frame]), atol=1e-5)


@pytest.mark.parametrize('changed', [0, 2, 4])
def test_a_changed_frame_leaves_the_others_bit_identical(changed, x_BTHWC, affine):
    norm = jax.jit(lambda x: FrameGroupNorm(groups=2).apply({'params': affine}, x))
    before, after = norm(x_BTHWC), norm(x_BTHWC.at[:, changed].mul(-3.0))
    others = [frame for frame in range(5) if frame != changed]
    np.testing.assert_array_equal(after[:, others], before[:, others])
    assert np.abs(after[:, changed] - before[:, changed]).max() > 0.1


def test_groups_that_do_not_divide_the_channels_are_named(x_BTHWC):
    with pytest.raises(ValueError, match='8 channels do not divide into 3 groups'):
        FrameGroupNorm(groups=3).init(jax.random.key(0), x_BTHWC)


def test_statistics_are_float32_in_a_bfloat16_network(rng):
    """Squares of numbers around 8 differ by less than bfloat16 can tell."""
    x = jnp.asarray(8 + 0.5 * rng.normal(size=(1, 2, 8, 8, 4)), jnp.bfloat16)
    y = FrameGroupNorm(groups=2, affine=False, dtype=jnp.bfloat16).apply({}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32).std((2, 3, 4)), 1, atol=0.03)


def test_adaptive_norm_is_the_definition_on_the_resized_latent(rng, random_parameters):
    """GN(x) (1 + gamma(z)) + beta(z), with z brought to the grid of x first."""
    strides = ((2, 2, 2), (1, 2, 2))
    z = jnp.asarray(rng.normal(size=(2, 3, 1, 2, 3)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 8, 4)), jnp.float32)
    norm = AdaptiveGroupNorm(strides, groups=2)
    params = random_parameters(norm, x, z)
    kernel, bias = params['modulation']['kernel'], params['modulation']['bias']

    resized = upsample_nearest(upsample_nearest(z, strides[0]), strides[1])
    gamma, beta = (resized @ kernel[:, i] + bias[i] for i in range(2))
    expected = FrameGroupNorm(groups=2, affine=False).apply({}, x) * (1 + gamma) + beta
    np.testing.assert_allclose(norm.apply({'params': params}, x, z), expected, atol=1e-5)


def test_layer_norm_has_parameters_only_where_its_axis_has_a_name(x_BTHWC):
    named = nn.unbox(jax.eval_shape(LayerNorm('head').init, jax.random.key(0), x_BTHWC))
    assert {name: leaf.shape for name, leaf in named['params']['norm'].items()} == {'scale': (8,), 'bias': (8,)}
    assert not jax.eval_shape(LayerNorm().init, jax.random.key(0), x_BTHWC)
    y = LayerNorm().apply({}, x_BTHWC.astype(jnp.bfloat16))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose([y.mean(-1), y.std(-1)], [jnp.zeros((2, 5, 4, 4)), jnp.ones((2, 5, 4, 4))], atol=1e-3)
