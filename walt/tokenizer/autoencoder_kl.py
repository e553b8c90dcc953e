"""The picture autoencoder of latent diffusion (arXiv:2112.10752): the latents of Stable Diffusion, and so of DiT.

    encoder   Conv 3x3 -> [ResBlocks, Conv 3x3 stride 2] a level -> ResBlock, attention, ResBlock -> GN, swish, Conv 3x3
              -> Conv 1x1, mean and log-variance of a Gaussian at every position
    decoder   Conv 1x1 -> Conv 3x3 -> ResBlock, attention, ResBlock -> [ResBlocks, repeat, Conv 3x3] a level
              -> GN, swish, Conv 3x3

The last level neither goes down nor up. Attention is that of all positions of a picture to each other, with one head.
Convolutions have zeros around them, unlike those of `Tokenizer`, and each frame of a clip is a picture by itself. The
networks were trained on pixels in [-1, 1]; outside of this module they are in [0, 1], as everywhere.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from walt.nn.attention import Attention
from walt.nn.conv import SameConv3d, Triple, upsample_nearest
from walt.nn.norm import FrameGroupNorm, check_groups
from walt.nn.remat import check_remat, rematerialised
from walt.tokenizer.bottleneck import Bottled, Kl

KERNEL: Triple = (1, 3, 3)
POINT: Triple = (1, 1, 1)
STRIDES: Triple = (1, 2, 2)


class AutoencoderKl(nn.Module):
    """Encoder and decoder of pictures; takes the place of `Tokenizer`, clips being sequences of pictures.

    Attributes:
        channels: width of the finest level.
        multipliers: width of each level, finest first, in units of `channels`; between two levels are strides of 2.
        blocks: residual blocks of every level of the encoder; the decoder has one more.
        latent_channels: c, the channels of the latent.
        bottleneck: what makes latents of what the encoder puts out.
        groups: groups of every group norm.
        pixel_channels: 3 for RGB.
        remat: what of a residual block is kept for the backward pass: 'none' (all) or 'blocks' (its input).
        dtype: what the layers compute in; latents and pixels leave as float32.

    Raises:
        ValueError: at construction, if groups do not divide a width; when called, on a height or width that the strides
        do not divide.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 4
    bottleneck: nn.Module = Kl()
    groups: int = 32
    pixel_channels: int = 3
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_remat(self.remat, ('none', 'blocks'))
        check_groups([self.channels * multiplier for multiplier in self.multipliers], self.groups)

    def setup(self):
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        levels = dict(widths=widths, groups=self.groups, remat=self.remat, dtype=self.dtype)
        features = self.bottleneck.features(self.latent_channels)
        self.encoder = Encoder(blocks=self.blocks, features=features, **levels)
        self.decoder = Decoder(blocks=self.blocks + 1, features=self.pixel_channels, **levels)

    @property
    def spatial_strides(self) -> tuple[int, ...]:
        return (2,) * (len(self.multipliers) - 1)

    @property
    def temporal_strides(self) -> tuple[int, ...]:
        return (1,) * (len(self.multipliers) - 1)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) of a clip's latent. Raises `ValueError` on a clip that does not fit."""
        stride = math.prod(self.spatial_strides)
        if height % stride or width % stride:
            raise ValueError(f'{height}x{width} pixels are not divisible by the spatial stride {stride}')
        return (frames, height // stride, width // stride, self.latent_channels)

    def clip_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The inverse of `latent_shape`: (frames, height, width, channels) in pixels, from a latent's extents."""
        stride = math.prod(self.spatial_strides)
        return (frames, height * stride, width * stride, self.pixel_channels)

    def encode(self, video_BTHWC, key_B=None):
        """Pixels (B, T, H, W, 3) -> latents (B, T, H / s, W / s, c): the posterior's mean, or with a key for every clip
        a sample of it."""
        return self._bottled(video_BTHWC, key_B).z_BTHWC

    def decode(self, z_BTHWC):
        """Latents (B, T, h, w, c) -> pixels (B, T, h s, w s, 3), not clipped."""
        return (self.decoder(z_BTHWC) + 1) / 2

    def __call__(self, video_BTHWC, key_B=None) -> tuple[jax.Array, Bottled]:
        """Pixels -> (reconstruction, latents with the terms of the bottleneck); a key a clip for what it draws."""
        bottled = self._bottled(video_BTHWC, key_B)
        return self.decode(bottled.z_BTHWC), bottled

    def _bottled(self, video_BTHWC, key_B) -> Bottled:
        self.latent_shape(*video_BTHWC.shape[1:4])
        return self.bottleneck(self.encoder(2 * video_BTHWC - 1), key_B)


class ResBlock(nn.Module):
    """x + Conv(swish(GN(Conv(swish(GN(x)))))); a 1x1 convolution carries x over where the width changes."""

    features: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shortcut = x
        for number in (1, 2):
            x = nn.swish(FrameGroupNorm(self.groups, dtype=self.dtype, name=f'norm{number}')(x))
            x = SameConv3d(self.features, KERNEL, dtype=self.dtype, name=f'conv{number}')(x)
        if shortcut.shape[-1] != self.features:
            shortcut = SameConv3d(self.features, POINT, dtype=self.dtype, name='shortcut')(shortcut)
        return shortcut + x


class PictureAttention(nn.Module):
    """x + Attention(GN(x)): every position of a frame attends to all of its positions."""

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC):
        y = FrameGroupNorm(self.groups, dtype=self.dtype, name='norm')(x_BTHWC)
        y = rearrange(y, 'B T H W C -> B T (H W) C')
        y = Attention(heads=1, qk_norm=False, dtype=self.dtype, name='attention')(y)
        return x_BTHWC + y.reshape(x_BTHWC.shape)


class Encoder(nn.Module):
    """video_BTHWC in [-1, 1] -> h_BTHWC, what the bottleneck makes latents of; `widths` of the levels, finest first."""

    widths: Sequence[int]
    blocks: int
    features: int  # what the bottleneck takes in
    groups: int
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video_BTHWC):
        res_block = rematerialised(ResBlock, self.remat)
        stem = dict(dtype=self.dtype, axes=('pixel', 'out_channels'), name='stem')
        x = SameConv3d(self.widths[0], KERNEL, **stem)(video_BTHWC)
        for level, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = res_block(width, self.groups, self.dtype, name=f'level{level}_block{block}')(x)
            if level < len(self.widths) - 1:
                x = SameConv3d(width, KERNEL, STRIDES, dtype=self.dtype, name=f'level{level}_down')(x)
        x = _middle(x, res_block, self.groups, self.dtype)
        x = nn.swish(FrameGroupNorm(self.groups, dtype=self.dtype, name='head_norm')(x))
        x = SameConv3d(self.features, KERNEL, dtype=self.dtype, axes=('in_channels', 'latent'), name='head')(x)
        x = SameConv3d(self.features, POINT, dtype=self.dtype, axes=(None, 'latent'), name='moments')(x)
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """z_BTHWC -> video_BTHWC in [-1, 1]; fields as in `Encoder`, levels counted from the pixels."""

    widths: Sequence[int]
    blocks: int
    features: int  # of a pixel
    groups: int
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BTHWC):
        res_block = rematerialised(ResBlock, self.remat)
        x = SameConv3d(z_BTHWC.shape[-1], POINT, dtype=self.dtype, axes=(None, 'latent'), name='from_latent')(z_BTHWC)
        stem = dict(dtype=self.dtype, axes=('latent', 'out_channels'), name='stem')
        x = SameConv3d(self.widths[-1], KERNEL, **stem)(x)
        x = _middle(x, res_block, self.groups, self.dtype)
        for level in reversed(range(len(self.widths))):
            for block in range(self.blocks):
                x = res_block(self.widths[level], self.groups, self.dtype, name=f'level{level}_block{block}')(x)
            if level > 0:
                x = upsample_nearest(x, STRIDES)
                x = SameConv3d(x.shape[-1], KERNEL, dtype=self.dtype, name=f'level{level}_up')(x)
        x = nn.swish(FrameGroupNorm(self.groups, dtype=self.dtype, name='head_norm')(x))
        head = dict(dtype=self.dtype, axes=('in_channels', 'pixel'), name='head')
        return SameConv3d(self.features, KERNEL, **head)(x).astype(jnp.float32)


def _middle(x, res_block: type[nn.Module], groups: int, dtype):
    """Called in a compact method, whose module these become parts of."""
    x = res_block(x.shape[-1], groups, dtype, name='middle_block0')(x)
    x = PictureAttention(groups, dtype, name='middle_attention')(x)
    return res_block(x.shape[-1], groups, dtype, name='middle_block1')(x)
