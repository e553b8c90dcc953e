"""The W.A.L.T block: a spatial layer, then a spatiotemporal layer (figure 2). One is the other with another window.

    x <- x + alpha_1 Attention(gamma_1, beta_1 * LN(x))        within the window, with relative position bias
    x <- x + alpha_2 MLP(gamma_2, beta_2 * LN(x))

The gates alpha are zero at initialisation, so a new block is the identity.
"""

import jax.numpy as jnp
from flax import linen as nn

from walt.denoiser.adaln import LowRankModulation, modulate
from walt.denoiser.windows import merge, partition
from walt.nn.attention import Attention
from walt.nn.conv import Triple
from walt.nn.einsum import Einsum
from walt.nn.embeddings import RelativePositionBias
from walt.nn.norm import LayerNorm


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        up = Einsum('...D,DF->...F', (width, self.hidden), ('embed', 'mlp'), dtype=self.dtype, name='up')
        down = Einsum('...F,FD->...D', (self.hidden, width), ('mlp', 'embed'), dtype=self.dtype, name='down')
        return down(nn.gelu(up(x)))


class WindowLayer(nn.Module):
    """(x_BTHWD, shared modulation (B, 6, D), c_BD) -> x_BTHWD: attention within windows, then the MLP."""

    window: Triple
    heads: int
    hidden: int
    rank: int
    qk_norm: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWD, shared, c_BD):
        grid = x_BTHWD.shape[1:4]
        if self.rank:
            shared = shared + LowRankModulation(self.rank, self.dtype, name='lora')(c_BD)
        gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2 = jnp.moveaxis(shared, 1, 0)

        y = modulate(LayerNorm(name='attention_norm')(x_BTHWD).astype(self.dtype), gamma_1, beta_1)
        bias_NPP = RelativePositionBias(self.window, self.heads, name='relative_position')()
        y = Attention(self.heads, self.qk_norm, self.dtype, name='attention')(partition(y, self.window), bias_NPP)
        x_BTHWD = x_BTHWD + alpha_1[:, None, None, None] * merge(y, self.window, grid)

        y = modulate(LayerNorm(name='mlp_norm')(x_BTHWD).astype(self.dtype), gamma_2, beta_2)
        y = Mlp(self.hidden, self.dtype, name='mlp')(y)
        return x_BTHWD + alpha_2[:, None, None, None] * y


class Block(nn.Module):
    """A spatial and a spatiotemporal layer, in the form that `nn.scan` takes."""

    spatial_window: Triple
    spatiotemporal_window: Triple
    heads: int
    hidden: int
    rank: int
    qk_norm: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWD, shared, c_BD):
        rest = (self.heads, self.hidden, self.rank, self.qk_norm, self.dtype)
        x_BTHWD = WindowLayer(self.spatial_window, *rest, name='spatial')(x_BTHWD, shared, c_BD)
        x_BTHWD = WindowLayer(self.spatiotemporal_window, *rest, name='spatiotemporal')(x_BTHWD, shared, c_BD)
        x_BTHWD = nn.with_logical_constraint(x_BTHWD, ('batch', 'frames', 'height', 'width', 'act_embed'))
        return x_BTHWD, None
