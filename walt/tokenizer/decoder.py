"""Latents -> video: the encoder's mirror image, with an adaptive group norm at the door of every resolution.

Conv 3^3 -> middle ResBlocks -> [AdaGN(z), ResBlocks, Upsample] a level, the last one without -> GN, swish, Conv 3^3
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from walt.nn.conv import CausalConv3d, Triple
from walt.nn.norm import AdaptiveGroupNorm, FrameGroupNorm
from walt.nn.remat import rematerialised
from walt.tokenizer.blocks import ResBlock, Upsample


class Decoder(nn.Module):
    """z_BTHWC -> video_BTHWC; fields as in `Tokenizer`, levels counted from the pixels."""

    channels: int
    multipliers: Sequence[int]
    blocks: Sequence[int]
    middle_blocks: int
    strides: Sequence[Triple]
    pixel_channels: int
    kernel: Triple
    groups: int
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BTHWC):
        res_block = rematerialised(ResBlock, self.remat)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        stem = dict(dtype=self.dtype, axes=('latent', 'out_channels'), name='stem')
        x = CausalConv3d(widths[-1], self.kernel, **stem)(z_BTHWC)
        for block in range(self.middle_blocks):
            x = res_block(widths[-1], self.groups, self.kernel, self.dtype, name=f'middle_block{block}')(x)
        for level in reversed(range(len(widths))):
            finer = tuple(reversed(self.strides[level:]))  # the up-samplings that lie behind
            x = AdaptiveGroupNorm(finer, self.groups, self.dtype, name=f'level{level}_adaptive')(x, z_BTHWC)
            for block in range(self.blocks[level]):
                x = res_block(widths[level], self.groups, self.kernel, self.dtype, name=f'level{level}_block{block}')(x)
            if level > 0:
                x = Upsample(self.strides[level - 1], self.kernel, self.dtype, name=f'level{level}_up')(x)
        x = nn.swish(FrameGroupNorm(self.groups, dtype=self.dtype, name='head_norm')(x))
        head = dict(dtype=self.dtype, axes=('in_channels', 'pixel'), name='head')
        return CausalConv3d(self.pixel_channels, self.kernel, **head)(x).astype(jnp.float32)
