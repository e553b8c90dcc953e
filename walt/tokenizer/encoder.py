"""Video -> latents.

    Conv 3^3 -> [ResBlocks, Downsample] a level, the last one without -> middle ResBlocks -> GN, swish, Conv 1^3

With the paper's settings (128 channels, multipliers 1, 2, 2, 4, four blocks): 17x128x128x3 -> 5x16x16xc.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from walt.nn.conv import CausalConv3d, Triple
from walt.nn.norm import FrameGroupNorm
from walt.nn.remat import rematerialised
from walt.tokenizer.blocks import Downsample, ResBlock


class Encoder(nn.Module):
    """video_BTHWC -> h_BTHWC, what the bottleneck makes latents of; fields as in `Tokenizer`."""

    channels: int
    multipliers: Sequence[int]
    blocks: Sequence[int]
    middle_blocks: int
    strides: Sequence[Triple]
    features: int  # what the bottleneck takes in
    kernel: Triple
    down_kernel: Triple
    groups: int
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video_BTHWC):
        res_block = rematerialised(ResBlock, self.remat)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        stem = dict(use_bias=False, dtype=self.dtype, axes=('pixel', 'out_channels'), name='stem')
        x = CausalConv3d(widths[0], self.kernel, **stem)(video_BTHWC)
        for level, width in enumerate(widths):
            for block in range(self.blocks[level]):
                x = res_block(width, self.groups, self.kernel, self.dtype, name=f'level{level}_block{block}')(x)
            if level < len(self.strides):
                x = Downsample(self.strides[level], self.down_kernel, self.dtype, name=f'level{level}_down')(x)
        for block in range(self.middle_blocks):
            x = res_block(widths[-1], self.groups, self.kernel, self.dtype, name=f'middle_block{block}')(x)
        x = nn.swish(FrameGroupNorm(self.groups, dtype=self.dtype, name='head_norm')(x))
        head = CausalConv3d(self.features, (1, 1, 1), dtype=self.dtype, axes=('in_channels', 'latent'), name='head')
        return head(x).astype(jnp.float32)
