"""Causal 3-D convolution: two forms of one operation, causality, and the grids of up- and down-sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from walt.nn.conv import (
    CausalConv3d,
    SameConv3d,
    conv3d,
    conv3d_decomposed,
    conv3d_native,
    depth_to_space,
    drop_first_frames,
    pad_causal,
    space_to_depth,
    upsample_nearest,
)

# (channels in, channels out): one for each way in which `conv3d_decomposed` sums over time and takes gradients.
CHANNELS = {'few in': (3, 8), 'few out': (8, 3), 'few': (8, 8), 'more': (8, 9), 'less': (10, 9)}


@pytest.mark.parametrize('channels', CHANNELS.values(), ids=CHANNELS.keys())
@pytest.mark.parametrize('strides', [(1, 1, 1), (1, 2, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize('extent', [3, 4])
def test_decomposed_convolution_is_the_native_one_in_values_and_gradients(extent, strides, channels, rng):
    x = jnp.asarray(rng.normal(size=(2, extent + 4, extent + 3, extent + 2, channels[0])), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(extent, extent, extent, *channels)) / extent**1.5, jnp.float32)

    @jax.jit
    def both(x, kernel):
        y, pull_back = jax.vjp(lambda x, kernel: conv3d_native(x, kernel, strides), x, kernel)
        y_too, pull_back_too = jax.vjp(lambda x, kernel: conv3d_decomposed(x, kernel, strides), x, kernel)
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return (y, *pull_back(weights)), (y_too, *pull_back_too(weights))

    for native, decomposed in zip(*both(x, kernel)):
        assert native.shape == decomposed.shape
        np.testing.assert_allclose(decomposed, native, atol=1e-5 * float(jnp.abs(native).max()))


def test_gradients_of_gradients_are_the_native_ones(rng):
    """As R1 needs them."""
    x, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1, 4, 5, 5, 8), (3, 3, 3, 8, 9)))

    def penalty(form, kernel):
        gradient = jax.grad(lambda x: jnp.square(form(x, kernel, (1, 1, 1))).sum())(x)
        return jnp.square(gradient).mean()

    native, decomposed = (
        jax.jit(jax.grad(lambda k, f=f: penalty(f, k)))(kernel) for f in (conv3d_native, conv3d_decomposed)
    )
    np.testing.assert_allclose(decomposed, native, atol=1e-5 * float(jnp.abs(native).max()))


@pytest.mark.parametrize(('platform', 'operations'), [('cpu', 3), ('tpu', 1), ('cuda', 1)])
def test_only_a_cpu_runs_the_decomposed_form(platform, operations):
    arguments = jnp.zeros((1, 5, 6, 6, 9)), jnp.zeros((3, 3, 3, 9, 9))
    program = jax.jit(conv3d).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert program.count('stablehlo.convolution') == operations


@pytest.mark.parametrize('extent', [3, 4])
@pytest.mark.parametrize('stride', [1, 2])
def test_output_frame_sees_input_frames_up_to_its_own_place_only(extent, stride):
    layer = CausalConv3d(2, (extent,) * 3, (stride, 2, 2), use_bias=False)
    params = {'kernel': jnp.ones((extent, extent, extent, 2, 2))}

    @jax.jit
    def frame_sums(x):
        return layer.apply({'params': params}, x).sum((0, 2, 3, 4))

    frames = 1 + 3 * stride
    gradient_TT = jax.jacrev(frame_sums)(jnp.zeros((1, frames, 4, 4, 2))).sum((1, 3, 4, 5))
    i, j = np.ogrid[: 1 + 3, :frames]
    sees_TT = (j <= i * stride) & (j > i * stride - extent)
    np.testing.assert_array_equal(gradient_TT > 0, sees_TT)


@pytest.mark.parametrize('strides', [(1, 1, 1), (2, 2, 2)], ids=str)
def test_on_one_frame_it_is_the_2d_convolution_with_the_kernel_summed_over_time(strides, rng):
    frame_BHWC = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), jnp.float32)
    params = {'kernel': jnp.asarray(rng.normal(size=(3, 3, 3, 3, 4)), jnp.float32), 'bias': jnp.arange(4.0)}
    layer = CausalConv3d(4, strides=strides)
    padded = jnp.pad(frame_BHWC, [(0, 0), (1, 1), (1, 1), (0, 0)], mode='edge')
    expected = lax.conv_general_dilated(
        padded, params['kernel'].sum(0), strides[1:], 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    y = layer.apply({'params': params}, frame_BHWC[:, None])
    assert y.shape[1] == 1
    np.testing.assert_allclose(y[:, 0], expected + params['bias'], atol=1e-5)


@pytest.mark.parametrize('extent', [3, 4])
def test_strides_take_1_plus_s_n_frames_to_1_plus_n_and_sides_to_their_quotient(extent):
    layer = CausalConv3d(5, (extent,) * 3, (2, 2, 2))
    for n in range(3):
        x = jax.ShapeDtypeStruct((1, 1 + 2 * n, 6, 8, 3), jnp.float32)
        y, _ = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x), x)
        assert y.shape == (1, 1 + n, 3, 4, 5)


def test_padding_repeats_the_edge():
    x = jnp.arange(2.0 * 2 * 2).reshape(1, 2, 2, 2, 1) + 1
    padded = pad_causal(x, (3, 3, 4))
    assert padded.shape == (1, 4, 4, 5, 1)
    np.testing.assert_array_equal(padded[0, :, 1, 1, 0], [1, 1, 1, 5])
    np.testing.assert_array_equal(padded[0, 3, :, 1, 0], [5, 5, 7, 7])
    np.testing.assert_array_equal(padded[0, 3, 1, :, 0], [5, 5, 6, 6, 6])


@pytest.mark.parametrize('strides', [(1, 2, 2), (2, 2, 2), (3, 1, 2)], ids=str)
def test_depth_to_space_and_space_to_depth_undo_each_other(strides, rng):
    x = rng.normal(size=(2, 2, 3, 2, 2 * int(np.prod(strides))))
    y = depth_to_space(x, strides)
    assert y.shape == (2, 2 * strides[0], 3 * strides[1], 2 * strides[2], 2)
    np.testing.assert_array_equal(space_to_depth(y, strides), x)


def test_depth_to_space_reads_the_channels_in_time_height_width_channel_order(rng):
    x = rng.normal(size=(1, 2, 3, 2, 2 * 2 * 2 * 3))
    y = depth_to_space(x, (2, 2, 2))
    np.testing.assert_array_equal(y[:, 1::2, 0::2, 1::2], x[..., 5 * 3 : 6 * 3])  # (1, 0, 1) is the 5th of 8


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_frames_are_dropped_from_the_front_until_1_plus_s_n_are_left(stride):
    for n in range(4):
        up = np.arange((1 + n) * stride)[None]
        np.testing.assert_array_equal(drop_first_frames(up, stride), up[:, -(1 + stride * n) :])


@pytest.mark.parametrize('strides', [(1, 2, 2), (2, 2, 2)], ids=str)
def test_nearest_neighbours_and_depth_to_space_share_one_grid(strides, rng):
    x = np.float32(rng.normal(size=(1, 3, 2, 4, 2)))
    same_values = np.tile(x, int(np.prod(strides)))  # every output position of a token carries the token's own value
    expected = drop_first_frames(depth_to_space(same_values, strides), strides[0])
    np.testing.assert_array_equal(upsample_nearest(x, strides), expected)


def test_with_strides_the_odd_zero_is_behind(rng):
    """As `SAME` has it, and PyTorch's convolutions of pictures that are padded at the right and below."""
    x = jnp.asarray(rng.normal(size=(1, 1, 6, 8, 2)), jnp.float32)
    layer = SameConv3d(3, (1, 3, 3), (1, 2, 2))
    variables = nn.unbox(layer.init(jax.random.key(0), x))
    y = layer.apply(variables, x)
    expected = lax.conv_general_dilated(
        jnp.pad(x[:, 0], ((0, 0), (0, 1), (0, 1), (0, 0))),
        variables['params']['kernel'][0],
        (2, 2),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    assert y.shape == (1, 1, 3, 4, 3)
    np.testing.assert_allclose(y[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize(('channels_in', 'channels_out'), [(9, 12), (12, 9)], ids=['widens', 'narrows'])
def test_zeros_of_the_convolution_itself_are_those_of_padding_and_so_are_the_gradients(channels_in, channels_out, rng):
    x_BTHWC = jnp.asarray(rng.normal(size=(2, 3, 5, 4, channels_in)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(2, 3, 3, channels_in, channels_out)), jnp.float32)
    zeros_hw = ((1, 2), (0, 1))

    def loss(convolved):
        return lambda x, kernel: jnp.sum(jnp.sin(convolved(x, kernel)))

    ours = loss(lambda x, kernel: conv3d_decomposed(x, kernel, (1, 1, 1), zeros_hw))
    padded = loss(lambda x, kernel: conv3d_native(jnp.pad(x, ((0, 0), (0, 0), *zeros_hw, (0, 0))), kernel, (1, 1, 1)))
    for one, other in zip(*(jax.jit(jax.grad(form, argnums=(0, 1)))(x_BTHWC, kernel) for form in (ours, padded))):
        np.testing.assert_allclose(one, other, atol=1e-4)
