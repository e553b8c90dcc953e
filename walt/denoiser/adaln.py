"""AdaLN-LoRA: how the conditioning vector c reaches every layer (W.A.L.T, section 4.3, equation 3).

Each layer i needs six vectors of width D, A^i = (gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2): scale and shift
of what enters attention and MLP, gate of what leaves them. A linear map D -> 6D in each layer is a quarter of a large
model's parameters; AdaLN-LoRA shares one and adds a low-rank term by layer:

    A   = W silu(c) + b              shared by all layers, zero at initialisation
    A^i = A + W_b^i W_a^i c          W_a: D -> R, W_b: R -> 6D, zero at initialisation

The alternative that the paper compares with, and takes for ImageNet, is a map D -> 6D of its own in every layer:
A^i = W^i silu(c) + b^i.

c is one vector for a clip, or one for each latent frame where frames are pictures of their own: c_BTD with T of 1 or
as many as there are latent frames.

Every layer has a pair, the first one too, so that all layers are alike and can be scanned (the parameter counts of the
paper's table 3d agree with 24 pairs for 24 layers rather than with equation 3's 23).
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from walt.nn.einsum import Einsum, zeros

VECTORS = 6


class Modulation(nn.Module):
    """c_BTD -> A (B, T, vectors, D), zero at initialisation."""

    vectors: int = VECTORS
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, c_BTD):
        width = c_BTD.shape[-1]
        shape, axes = (width, self.vectors, width), ('embed', None, 'adaln')
        a_BTSD = Einsum('...D,DSE->...SE', shape, axes, init=zeros, dtype=self.dtype, name='linear')(nn.silu(c_BTD))
        return nn.with_logical_constraint(a_BTSD, ('batch', None, None, 'act_embed'))


class LowRankModulation(nn.Module):
    """c_BTD -> W_b W_a c (B, T, 6, D), zero at initialisation."""

    rank: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, c_BTD):
        width = c_BTD.shape[-1]
        init = initializers.normal(0.02)
        down = Einsum('...D,DR->...R', (width, self.rank), ('embed', 'lora'), False, init, self.dtype, name='down')
        up = Einsum(
            '...R,RSD->...SD', (self.rank, VECTORS, width), ('lora', None, 'embed'), False, zeros, self.dtype, name='up'
        )
        return up(down(c_BTD))


def modulate(x_BTHWD, scale_BTD, shift_BTD):
    """x (1 + scale) + shift, the same for all tokens of a frame."""
    return x_BTHWD * (1 + over_space(scale_BTD)) + over_space(shift_BTD)


def over_space(vector_BTD):
    """(B, T, D) -> (B, T, 1, 1, D)."""
    return vector_BTD[:, :, None, None]
