"""The discriminator: a residual 3-D network that sees the whole clip and gives one logit (MAGVIT-v2, figure 7).

    Conv 3^3, LReLU -> block for each multiplier -> Conv 3^3, LReLU -> Linear over all positions, LReLU, Linear -> logit

    block:  main   Conv 3^3, LReLU, blur-pool, Conv 3^3, LReLU
            skip   blur-pool, Conv 1^3
            (main + skip) / sqrt 2

No norm, so that the logit of one clip does not depend on the others, and the gradient penalty is what it says. The
figure draws a block as X -> Y, Y -> Y; this is X -> X, X -> Y, as in praxis and MAGVIT, which makes 61.3M parameters.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from walt.nn.conv import SameConv3d, Triple
from walt.nn.einsum import Einsum


def blur_pool(x_BTHWC, strides: Triple):
    """Halves axes of stride 2 behind a [1, 2, 1] / 4 filter, with zeros around: n -> ceil(n / 2) (arXiv:1904.11486)."""
    for axis, stride in enumerate(strides, start=1):
        if stride == 2:
            size = x_BTHWC.shape[axis]
            out = math.ceil(size / 2)
            before = (2 * out + 1 - size) // 2
            after = 2 * out + 1 - size - before
            x = jnp.pad(x_BTHWC, [(before, after) if i == axis else (0, 0) for i in range(5)])
            taps = [x[(slice(None),) * axis + (slice(tap, tap + 2 * out - 1, 2),)] for tap in range(3)]
            x_BTHWC = (taps[0] + 2 * taps[1] + taps[2]) / 4
        elif stride != 1:
            raise ValueError(f'blur_pool has strides of 1 and 2, not {strides}')
    return x_BTHWC


class Discriminator(nn.Module):
    """video_BTHWC in [0, 1] -> logit_B, float32; high for real. Its parameters belong to one size of clip.

    Attributes:
        channels: width of the first convolution.
        multipliers: width of each block, in units of `channels`; every block halves time, height and width.
        kernel_t: extent in time of the kernels; 1, for images, leaves time alone.
        dtype: what the convolutions compute in.
    """

    channels: int = 128
    multipliers: Sequence[int] = (2, 4, 4, 4, 4)
    kernel_t: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video_BTHWC):
        def conv(features, name, axes=('in_channels', 'out_channels')):
            layer = SameConv3d(features, (self.kernel_t, 3, 3), dtype=self.dtype, axes=axes, name=name)
            return lambda x: nn.leaky_relu(layer(x), 0.2)

        strides = (1 if self.kernel_t == 1 else 2, 2, 2)
        x = conv(self.channels, 'stem', ('pixel', 'out_channels'))(video_BTHWC)
        for level, multiplier in enumerate(self.multipliers):
            features, name = self.channels * multiplier, f'level{level}'
            main = conv(features, f'{name}_conv1')(blur_pool(conv(x.shape[-1], f'{name}_conv0')(x), strides))
            skip = SameConv3d(features, (1, 1, 1), use_bias=False, dtype=self.dtype, name=f'{name}_skip')
            x = (main + skip(blur_pool(x, strides))) / math.sqrt(2)
        x = conv(x.shape[-1], 'head')(x)
        width = x.shape[-1]
        x_BD = x.reshape(x.shape[0], -1)
        hidden = Einsum(
            'BD,DF->BF', (x_BD.shape[1], width), ('in_channels', 'out_channels'), dtype=self.dtype, name='hidden'
        )
        logit = Einsum('BF,FL->BL', (width, 1), ('in_channels', 'logit'), name='logit')
        return logit(nn.leaky_relu(hidden(x_BD), 0.2).astype(jnp.float32))[:, 0]
