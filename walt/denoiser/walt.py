"""W.A.L.T: a transformer over latent frames that alternates spatial and spatiotemporal windows (arXiv:2312.06662).

    [z_t, estimate of z_0] -> patches + positions -> (spatial layer, spatiotemporal layer) x depth / 2 -> prediction
                 c = time embedding + label embedding -> AdaLN-LoRA in every layer

The network sees the noisy latent and, on more channels, its own previous estimate of the clean one (self-conditioning,
section 4.3); zeros where there is none.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from walt.denoiser.adaln import SharedModulation, modulate
from walt.denoiser.blocks import Block
from walt.denoiser.windows import check_window
from walt.nn.conv import Triple
from walt.nn.einsum import Einsum, zeros
from walt.nn.embeddings import LabelEmbedding, SpaceTimePosition, TimeEmbedding
from walt.nn.norm import LayerNorm


class Walt(nn.Module):
    """Class-conditional W.A.L.T denoiser; called as `Denoise`: (z_BTHWC, t_B, cond) -> prediction_BTHWC, float32.

    `cond` holds `label` (B,), int32 in [0, classes], `classes` being the null class, and `estimate` (B, T, H, W, C).

    Attributes:
        latent_shape: (frames, height, width, channels) of the latents.
        classes: number of classes, without the null class.
        width: D.
        depth: layers, counted one by one: half are spatial, half spatiotemporal.
        heads: N.
        mlp_ratio: hidden width of the MLP in units of `width`.
        patch: side of the square of latents that makes a token.
        spatiotemporal_window: (height, width) of the spatiotemporal windows, in tokens.
        rank: of the AdaLN-LoRA pairs; 0 leaves them out.
        qk_norm: layer norm on queries and keys.
        remat: recompute each block in the backward pass instead of keeping its activations.
        dtype: what the layers compute in.

    Raises:
        ValueError: at construction, on sizes that do not divide; when called, on latents of another shape.
    """

    latent_shape: tuple[int, int, int, int]
    classes: int
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    patch: int = 1
    spatiotemporal_window: tuple[int, int] = (8, 8)
    rank: int = 2
    qk_norm: bool = True
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f'width {self.width} is not divisible by heads {self.heads}')
        if self.depth % 2:
            raise ValueError(f'depth {self.depth} must be even: layers come as spatial, spatiotemporal')
        if any(size % self.patch for size in self.latent_shape[1:3]):
            raise ValueError(f'latents of {self.latent_shape} are not divisible by patch {self.patch}')
        check_window(self.windows[1], self.grid)

    @property
    def grid(self) -> Triple:
        """(T, H, W) in tokens."""
        frames, height, width, _ = self.latent_shape
        return frames, height // self.patch, width // self.patch

    @property
    def windows(self) -> tuple[Triple, Triple]:
        """The spatial and the spatiotemporal window, in tokens."""
        frames, height, width = self.grid
        return (1, height, width), (frames, *self.spatiotemporal_window)

    @nn.compact
    def __call__(self, z_BTHWC, t_B, cond: Mapping[str, jax.Array]):
        if z_BTHWC.shape[1:] != tuple(self.latent_shape):
            raise ValueError(
                f'latents of shape {z_BTHWC.shape[1:]}, but the denoiser was built for {self.latent_shape}'
            )
        c_BD = TimeEmbedding(self.width, dtype=self.dtype, name='time')(t_B)
        c_BD = c_BD + LabelEmbedding(self.classes, self.width, name='label')(cond['label']).astype(self.dtype)

        x_BTHWD = jnp.concatenate([z_BTHWC, cond['estimate']], axis=-1)
        x_BTHWD = rearrange(x_BTHWD, 'B T (H ph) (W pw) C -> B T H W (ph pw C)', ph=self.patch, pw=self.patch)
        embed = Einsum(
            '...C,CD->...D', (x_BTHWD.shape[-1], self.width), ('patch', 'embed'), dtype=self.dtype, name='patch'
        )
        x_BTHWD = SpaceTimePosition(self.grid, name='position')(embed(x_BTHWD))
        x_BTHWD = nn.with_logical_constraint(x_BTHWD, ('batch', 'frames', 'height', 'width', 'act_embed'))

        shared = SharedModulation(dtype=self.dtype, name='modulation')(c_BD)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        blocks = nn.scan(
            block,
            length=self.depth // 2,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=(nn.broadcast, nn.broadcast),
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )(*self.windows, self.heads, self.width * self.mlp_ratio, self.rank, self.qk_norm, self.dtype, name='blocks')
        x_BTHWD, _ = blocks(x_BTHWD, shared, c_BD)
        return Head(self.latent_shape[-1], self.patch, self.dtype, name='head')(x_BTHWD, c_BD)


class Head(nn.Module):
    """x_BTHWD -> latents: adaptive layer norm and a linear map to patches, zero at initialisation (DiT)."""

    channels: int
    patch: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWD, c_BD):
        scale_BD, shift_BD = jnp.moveaxis(SharedModulation(2, self.dtype, name='modulation')(c_BD), 1, 0)
        x_BTHWD = modulate(LayerNorm(name='norm')(x_BTHWD).astype(self.dtype), scale_BD, shift_BD)
        shape = (x_BTHWD.shape[-1], self.patch**2 * self.channels)
        patches = Einsum('...D,DC->...C', shape, ('embed', 'patch'), init=zeros, dtype=self.dtype, name='linear')(
            x_BTHWD
        )
        z = rearrange(patches, 'B T H W (ph pw C) -> B T (H ph) (W pw) C', ph=self.patch, pw=self.patch)
        return z.astype(jnp.float32)
