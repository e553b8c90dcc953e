"""The pieces of encoder and decoder: what a frame after up- or down-sampling sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from walt.nn.conv import CausalConv3d
from walt.nn.norm import FrameGroupNorm
from walt.tokenizer.blocks import Downsample, ResBlock, Upsample


def last_frame_seen(module, frames, random_parameters):
    """For every frame that comes out, the latest frame of the input that changes it."""
    x = jnp.zeros((1, frames, 4, 4, 2))
    params = random_parameters(module, x)

    @jax.jit
    def frame_sums(x):
        return module.apply({'params': params}, x).sum((0, 2, 3, 4))

    gradient_TT = np.abs(jax.jacrev(frame_sums)(x)).max((1, 3, 4, 5))
    return [int(np.flatnonzero(row_T)[-1]) for row_T in gradient_TT]


@pytest.mark.parametrize(('stride', 'seen'), [(2, [0, 1, 1, 2, 2]), (3, [0, 1, 1, 1, 2, 2, 2]), (1, [0, 1, 2])])
def test_upsampling_makes_s_frames_of_each_frame_after_the_first(stride, seen, random_parameters):
    assert last_frame_seen(Upsample((stride, 2, 2)), 3, random_parameters) == seen


@pytest.mark.parametrize('kernel', [3, 4])
def test_downsampling_ends_each_group_of_frames_at_its_last(kernel, random_parameters):
    assert last_frame_seen(Downsample((2, 2, 2), (kernel,) * 3), 5, random_parameters) == [0, 2, 4]


@pytest.mark.parametrize('features', [4, 6])
def test_a_residual_block_is_its_equation(features, rng, random_parameters):
    """x + Conv(swish(GN(Conv(swish(GN(x)))))), with a convolution in the shortcut where the width changes."""
    x = jnp.asarray(rng.normal(size=(1, 2, 3, 3, 4)), jnp.float32)
    block = ResBlock(features, groups=2)
    params = random_parameters(block, x)

    def run(layer, name, x):
        return layer.apply({'params': params[name]}, x)

    y = x
    for i in range(2):
        y = nn.swish(run(FrameGroupNorm(2), f'FrameGroupNorm_{i}', y))
        y = run(CausalConv3d(features, use_bias=False), f'CausalConv3d_{i}', y)
    shortcut = x if features == 4 else x @ params['CausalConv3d_2']['kernel'][0, 0, 0]
    np.testing.assert_allclose(block.apply({'params': params}, x), shortcut + y, atol=1e-5)
