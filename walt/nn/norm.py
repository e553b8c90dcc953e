"""Norms whose statistics never cross frames.

Group norm over (T, H, W) would let every frame see the future; here each frame has statistics of its own, which keeps
the tokenizer causal. Statistics are float32.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import reduce, repeat
from flax import linen as nn
from jax import lax
from jax.nn import initializers

from walt.nn.conv import Triple, upsample_nearest
from walt.nn.einsum import Einsum
from walt.precision import PARAM_DTYPE

EPSILON = 1e-6


def check_groups(widths: Sequence[int], groups: int) -> None:
    """Raises `ValueError` if group norm cannot split the channels of a level, naming both numbers."""
    for width in widths:
        if width % groups:
            raise ValueError(f'a level of {width} channels does not divide into {groups} groups')


def group_moments(x_BTHWC, groups: int):
    """Mean and mean square of every group of channels of every frame, repeated to (B, T, 1, 1, C)."""
    channels = x_BTHWC.shape[-1]
    if channels % groups:
        raise ValueError(f'{channels} channels do not divide into {groups} groups')
    x = x_BTHWC.astype(jnp.float32)

    def over_groups(x_BT11C):
        group = reduce(x_BT11C, 'B T h w (G c) -> B T h w G', 'mean', G=groups)
        return repeat(group, 'B T h w G -> B T h w (G c)', c=channels // groups)

    return tuple(over_groups(y.mean((2, 3), keepdims=True)) for y in (x, jnp.square(x)))


class FrameGroupNorm(nn.Module):
    """Group norm of each frame by itself, with a learned scale and bias (unless `affine` is off)."""

    groups: int = 32
    affine: bool = True
    epsilon: float = EPSILON
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC):
        mean, square = self.moments(x_BTHWC)
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        scale, bias = lax.rsqrt(variance + self.epsilon), 0.0
        if self.affine:
            shape = (x_BTHWC.shape[-1],)
            ones = nn.with_logical_partitioning(initializers.ones, ('norm',))
            zeros = nn.with_logical_partitioning(initializers.zeros, ('norm',))
            scale = scale * self.param('scale', ones, shape, PARAM_DTYPE)
            bias = self.param('bias', zeros, shape, PARAM_DTYPE)
        return x_BTHWC.astype(self.dtype) * scale.astype(self.dtype) + (bias - mean * scale).astype(self.dtype)

    def moments(self, x_BTHWC):
        """A method of its own because `walt.tokenizer.tiling`, which sees a part of the frame, steps in here."""
        return group_moments(x_BTHWC, self.groups)


class AdaptiveGroupNorm(nn.Module):
    """x -> GN(x) (1 + gamma(z)) + beta(z), with gamma and beta linear in the latent at the same place of the clip.

    `strides` says by how much the grid of x is finer than that of z. A linear map commutes with nearest-neighbour
    repetition, so gamma and beta are computed on the latent's grid, not on the pixels'.
    """

    strides: tuple[Triple, ...]  # the up-samplings between z and x, in their order
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC, z_BTHWC):
        shape, axes = (z_BTHWC.shape[-1], 2, x_BTHWC.shape[-1]), ('latent', None, 'out_channels')
        gamma_beta = Einsum('...c,csC->...sC', shape, axes, dtype=self.dtype, name='modulation')(z_BTHWC)

        def to_grid_of_x(y):
            for strides in self.strides:
                y = upsample_nearest(y, strides)
            return y

        gamma, beta = to_grid_of_x(gamma_beta[..., 0, :]), to_grid_of_x(gamma_beta[..., 1, :])
        return FrameGroupNorm(self.groups, affine=False, dtype=self.dtype)(x_BTHWC) * (1 + gamma) + beta


class LayerNorm(nn.Module):
    """Layer norm over the last axis in float32; `axis` names it, `None` leaves out the learned scale and bias."""

    axis: str | None = None

    @nn.compact
    def __call__(self, x):
        affine = self.axis is not None
        return nn.LayerNorm(
            epsilon=EPSILON,
            use_scale=affine,
            use_bias=affine,
            dtype=jnp.float32,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,)),
            name='norm',
        )(x)


class NormParameters(nn.Module):
    """Scale and bias of a `LayerNorm('head')`, (K, 2), for a kernel that normalises by itself."""

    width: int

    @nn.compact
    def __call__(self):
        return _ScaleAndBias(self.width, name='norm')()


class _ScaleAndBias(nn.Module):
    width: int

    @nn.compact
    def __call__(self):
        inits = {'scale': initializers.ones, 'bias': initializers.zeros}
        boxed = {name: nn.with_logical_partitioning(init, ('head',)) for name, init in inits.items()}
        return jnp.stack([self.param(name, init, (self.width,), PARAM_DTYPE) for name, init in boxed.items()], axis=1)
