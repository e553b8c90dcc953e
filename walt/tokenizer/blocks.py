"""The pieces that encoder and decoder share: residual block, down-sampling, up-sampling (MAGVIT-v2, figure 7)."""

import math

import jax.numpy as jnp
from flax import linen as nn

from walt.nn.conv import CausalConv3d, Triple, depth_to_space, drop_first_frames
from walt.nn.norm import FrameGroupNorm


class ResBlock(nn.Module):
    """x + Conv(swish(GN(Conv(swish(GN(x)))))); a 1^3 convolution carries x over where the width changes."""

    features: int
    groups: int
    kernel: Triple = (3, 3, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shortcut = x
        for _ in range(2):
            x = nn.swish(FrameGroupNorm(self.groups, dtype=self.dtype)(x))
            x = CausalConv3d(self.features, self.kernel, use_bias=False, dtype=self.dtype)(x)
        if shortcut.shape[-1] != self.features:
            shortcut = CausalConv3d(self.features, (1, 1, 1), use_bias=False, dtype=self.dtype)(shortcut)
        return shortcut + x


class Downsample(nn.Module):
    """A strided convolution that keeps the channels: 1 + s n frames -> 1 + n."""

    strides: Triple
    kernel: Triple = (3, 3, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return CausalConv3d(x.shape[-1], self.kernel, self.strides, dtype=self.dtype)(x)


class Upsample(nn.Module):
    """A convolution to s_t s_h s_w times the channels, depth-to-space, and the first s_t - 1 frames dropped."""

    strides: Triple
    kernel: Triple = (3, 3, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = CausalConv3d(x.shape[-1] * math.prod(self.strides), self.kernel, dtype=self.dtype)(x)
        return drop_first_frames(depth_to_space(x, self.strides), self.strides[0])
