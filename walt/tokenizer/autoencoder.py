"""The tokenizer: encoder and decoder as one module.

A clip has 1 + k s_t frames, where s_t is the product of the temporal strides; its first frame is encoded by itself, so
an image is a clip of one frame. By default there is no quantiser and no KL term: the latent is real-valued and
deterministic (W.A.L.T, section 4.1); other bottlenecks are in `tokenizer/bottleneck.py`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from walt.nn.norm import check_groups
from walt.nn.remat import check_remat
from walt.tokenizer.bottleneck import Bottled, Continuous
from walt.tokenizer.decoder import Decoder
from walt.tokenizer.encoder import Encoder


class Tokenizer(nn.Module):
    """Causal 3-D convolutional autoencoder.

    Attributes:
        channels: width of the finest level.
        multipliers: width of each level, finest first, in units of `channels`.
        blocks: residual blocks of each level.
        middle_blocks: residual blocks at the coarsest resolution, before the latent and after it.
        spatial_strides: down-sampling in space between neighbouring levels, finest first; one less than levels.
        temporal_strides: the same in time.
        latent_channels: c, the channels of the latent.
        kernel_t: extent in time of every kernel; 1 makes a tokenizer of images, which `inflation` makes one of video.
        down_kernel: extent of the down-sampling kernels (3 in the paper's figure, 4 in praxis).
        bottleneck: what makes latents of what the encoder puts out.
        groups: groups of every group norm.
        pixel_channels: 3 for RGB.
        remat: what of a residual block is kept for the backward pass: 'none' (all) or 'blocks' (its input).
        dtype: what the convolutions compute in; latents and pixels leave as float32.

    Raises:
        ValueError: at construction, if lengths of the level fields do not fit or groups do not divide a width; when
        called, on a number of frames that is not 1 + k s_t or a height or width that the strides do not divide.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 4)
    blocks: Sequence[int] = (4, 4, 4, 4)
    middle_blocks: int = 4
    spatial_strides: Sequence[int] = (2, 2, 2)
    temporal_strides: Sequence[int] = (1, 2, 2)
    latent_channels: int = 8
    kernel_t: int = 3
    down_kernel: int = 3
    bottleneck: nn.Module = Continuous()
    groups: int = 32
    pixel_channels: int = 3
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        levels = len(self.multipliers)
        if len(self.blocks) != levels:
            raise ValueError(f'blocks {tuple(self.blocks)} and multipliers {tuple(self.multipliers)} differ in length')
        for name in ('spatial_strides', 'temporal_strides'):
            strides = tuple(getattr(self, name))
            if len(strides) != levels - 1:
                raise ValueError(
                    f'{name} {strides} must have one entry less than multipliers {tuple(self.multipliers)}'
                )
        if self.kernel_t == 1 and max(self.temporal_strides, default=1) > 1:
            raise ValueError(f'kernels of kernel_t 1 see one frame: temporal_strides {tuple(self.temporal_strides)}')
        check_remat(self.remat, ('none', 'blocks'))
        self.bottleneck.features(self.latent_channels)  # refuses channels that do not fit it
        check_groups([self.channels * multiplier for multiplier in self.multipliers], self.groups)

    def setup(self):
        strides = [(t, s, s) for t, s in zip(self.temporal_strides, self.spatial_strides)]
        levels = dict(
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks,
            middle_blocks=self.middle_blocks,
            strides=strides,
            kernel=(self.kernel_t, 3, 3),
            groups=self.groups,
            remat=self.remat,
            dtype=self.dtype,
        )
        down_kernel = (1 if self.kernel_t == 1 else self.down_kernel, self.down_kernel, self.down_kernel)
        features = self.bottleneck.features(self.latent_channels)
        self.encoder = Encoder(features=features, down_kernel=down_kernel, **levels)
        self.decoder = Decoder(pixel_channels=self.pixel_channels, **levels)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) of a clip's latent. Raises `ValueError` on a clip that does not fit."""
        stride_t, stride_s = math.prod(self.temporal_strides), math.prod(self.spatial_strides)
        if frames < 1 or (frames - 1) % stride_t:
            raise ValueError(f'{frames} frames are not 1 + k * {stride_t}')
        if height % stride_s or width % stride_s:
            raise ValueError(f'{height}x{width} pixels are not divisible by the spatial stride {stride_s}')
        return (1 + (frames - 1) // stride_t, height // stride_s, width // stride_s, self.latent_channels)

    def clip_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The inverse of `latent_shape`: (frames, height, width, channels) in pixels, from a latent's extents."""
        stride_t, stride_s = math.prod(self.temporal_strides), math.prod(self.spatial_strides)
        return (1 + (frames - 1) * stride_t, height * stride_s, width * stride_s, self.pixel_channels)

    def encode(self, video_BTHWC):
        """Pixels (B, 1 + k s_t, H, W, 3) -> latents (B, 1 + k, H / s, W / s, c); nothing is drawn."""
        self.latent_shape(*video_BTHWC.shape[1:4])
        return self.bottleneck(self.encoder(video_BTHWC)).z_BTHWC

    def decode(self, z_BTHWC):
        """Latents (B, 1 + k, h, w, c) -> pixels (B, 1 + k s_t, h s, w s, 3), not clipped."""
        return self.decoder(z_BTHWC)

    def __call__(self, video_BTHWC, key_B=None) -> tuple[jax.Array, Bottled]:
        """Pixels -> (reconstruction, latents with the terms of the bottleneck); a key a clip for what it draws."""
        self.latent_shape(*video_BTHWC.shape[1:4])
        bottled = self.bottleneck(self.encoder(video_BTHWC), key_B)
        return self.decode(bottled.z_BTHWC), bottled
