"""W.A.L.T: a transformer over latent frames that alternates spatial and spatiotemporal windows (arXiv:2312.06662).

    [z_t, estimate of z_0, ..] -> patches + positions -> (spatial layer, spatiotemporal layer) x depth / 2 -> prediction
                  c = time embedding + label embedding + .. -> AdaLN-LoRA in every layer

What the network is given enters in one of three ways.

    channels beside z_t   its own estimate of the clean latent (self-conditioning, section 4.3); the given frames and
                          their mask (frame prediction, section 4.4); the low-resolution clip, brought to z_t's grid by
                          a depth-to-space convolution (section 4.5)
    c                     diffusion time; label; time of the noise on the low-resolution clip; the text's mean
    keys and values       the text, token by token (section 4.3)
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from walt.denoiser.adaln import Modulation, modulate
from walt.denoiser.blocks import Context, LayerSpec, Text, blocks
from walt.denoiser.conditions import check_inputs
from walt.denoiser.windows import check_window, split
from walt.nn.conv import SameConv3d, Triple, depth_to_space
from walt.nn.einsum import Einsum, zeros
from walt.nn.embeddings import LabelEmbedding, PooledText, SpaceTimePosition, TimeEmbedding, rotary_angles
from walt.nn.norm import LayerNorm
from walt.nn.remat import check_remat


class Walt(nn.Module):
    """W.A.L.T denoiser; called as `Denoise`: (z_BTHWC, t_B, cond) -> prediction_BTHWC, float32.

    `cond` has exactly the entries of `conditions`, in the shapes that `walt.denoiser.conditions` says.

    Attributes:
        latent_shape: (frames, height, width, channels) of the latents.
        classes: number of classes, without the null class; 0 for a model without labels.
        text_shape: (tokens S, width E) of text embeddings; () for a model without text.
        pooled_text: the mean of a text's tokens goes into c as well.
        frame_prediction: the first latent frames may be given.
        upsample: how many times finer than the given low-resolution latents these are; 1: none are given.
        images: rows may be stacks of pictures, each its own latent frame.
        skip_images: pictures pass spatiotemporal layers untouched; see `walt.denoiser.blocks`.
        width: D.
        depth: layers, counted one by one: half are spatial, half spatiotemporal.
        heads: N.
        hidden: width of the MLP's hidden layer; 0 for four times `width`.
        patch: side of the square of latents that makes a token.
        spatial_window: (height, width) of the spatial windows, in tokens; () for the whole frame.
        spatiotemporal_window: (height, width) of the spatiotemporal windows, in tokens.
        full_attention: every layer attends to all tokens of the clip: what the paper compares windows with (table 3b).
        rank: of the AdaLN-LoRA pairs; 0 leaves them out.
        separate_adaln: each layer has a modulation of its own; without pairs.
        qk_norm: layer norm on queries and keys.
        rope: 3-D rotary positions in place of the learned bias for every offset.
        remat: what of a block is kept for the backward pass, one of `walt.nn.remat`.
        dtype: what the layers compute in.

    Raises:
        ValueError: at construction, on sizes that do not divide and fields that exclude each other; when called, on
            latents or conditions of other names and shapes.
    """

    latent_shape: tuple[int, int, int, int]
    classes: int = 0
    text_shape: tuple[int, int] | tuple[()] = ()
    pooled_text: bool = False
    frame_prediction: bool = False
    upsample: int = 1
    images: bool = False
    skip_images: bool = False
    width: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 0
    patch: int = 1
    spatial_window: tuple[int, int] | tuple[()] = ()
    spatiotemporal_window: tuple[int, int] = (8, 8)
    full_attention: bool = False
    rank: int = 2
    separate_adaln: bool = False
    qk_norm: bool = True
    rope: bool = False
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f'width {self.width} is not divisible by heads {self.heads}')
        if self.depth % 2:
            raise ValueError(f'depth {self.depth} must be even: layers come as spatial, spatiotemporal')
        if any(size % self.patch for size in self.latent_shape[1:3]):
            raise ValueError(f'latents of {self.latent_shape} are not divisible by patch {self.patch}')
        if self.upsample < 1 or any(size % self.upsample for size in self.latent_shape[1:3]):
            raise ValueError(f'latents of {self.latent_shape} are not divisible by upsample {self.upsample}')
        if self.separate_adaln and self.rank:
            raise ValueError(
                f'separate_adaln goes with rank 0, not {self.rank}: pairs are added to a shared modulation'
            )
        if self.pooled_text and not self.text_shape:
            raise ValueError('pooled_text is on, but text_shape is (): there is no text to take the mean of')
        if self.skip_images and not self.images:
            raise ValueError('skip_images is on, but images is off: there is nothing to skip')
        if self.rope:
            rotary_angles((1, 1, 1), self.width // self.heads)
        check_remat(self.remat)
        for window in self.windows.values():
            check_window(window, self.grid)

    @property
    def grid(self) -> Triple:
        """(T, H, W) in tokens."""
        frames, height, width, _ = self.latent_shape
        return frames, height // self.patch, width // self.patch

    @property
    def windows(self) -> dict[str, Triple]:
        """The spatial and the spatiotemporal window, in tokens."""
        frames, height, width = self.grid
        if self.full_attention:
            return {'spatial': self.grid, 'spatiotemporal': self.grid}
        spatial = (1, *(self.spatial_window or (height, width)))
        return {'spatial': spatial, 'spatiotemporal': (frames, *self.spatiotemporal_window)}

    def check_shards(self, shards: int) -> None:
        """Raises `ValueError` if this many devices cannot share the height of a clip, naming the counts."""
        for window in {*self.windows.values(), *self._text_windows}:
            split(window, self.grid, shards)

    @property
    def _text_windows(self) -> tuple[Triple, Triple]:
        frame = (1, *self.windows['spatial'][1:])
        return (frame, frame) if self.images else tuple(self.windows.values())

    @property
    def conditions(self) -> dict[str, tuple[int, ...]]:
        """The shape of a row of every entry of `cond`."""
        frames, height, width, channels = self.latent_shape
        stack = (frames,) if self.images else ()
        entries = {'estimate': self.latent_shape}
        if self.classes:
            entries['label'] = stack
        if self.text_shape:
            entries |= {'text': (*stack, *self.text_shape), 'text_mask': (*stack, self.text_shape[0])}
        if self.frame_prediction:
            entries |= {'frames': self.latent_shape, 'frames_mask': (frames,)}
        if self.upsample > 1:
            entries |= {'low': (frames, height // self.upsample, width // self.upsample, channels), 'low_t': ()}
        if self.images:
            entries['image'] = ()
        return {name: tuple(shape) for name, shape in entries.items()}

    @nn.compact
    def __call__(self, z_BTHWC, t_B, cond: Mapping[str, jax.Array]):
        check_inputs(self, z_BTHWC, cond)
        image_B, stacked = cond.get('image'), (lambda x: x if self.images else x[:, None])
        c_BTD = TimeEmbedding(self.width, dtype=self.dtype, name='time')(t_B)[:, None]
        text = None
        if self.classes:
            label = LabelEmbedding(self.classes, self.width, name='label')(stacked(cond['label']))
            c_BTD = c_BTD + label.astype(self.dtype)
        if self.upsample > 1:
            c_BTD = c_BTD + TimeEmbedding(self.width, dtype=self.dtype, name='low_time')(cond['low_t'])[:, None]
        if self.text_shape:
            text_BTSE, mask_BTS = stacked(cond['text']), stacked(cond['text_mask'])
            shape = (self.text_shape[1], self.width)
            project = Einsum('...E,ED->...D', shape, ('text', 'embed'), dtype=self.dtype, name='text')
            tokens_BTSD = nn.with_logical_constraint(project(text_BTSE), ('batch', 'frames', 'tokens', 'act_embed'))
            text = Text(tokens_BTSD, mask_BTS)
            if self.pooled_text:
                c_BTD = c_BTD + PooledText(self.width, self.dtype, name='pooled_text')(text_BTSE, mask_BTS)

        x_BTHWD = jnp.concatenate([z_BTHWC, *self._beside(cond)], axis=-1)
        x_BTHWD = rearrange(x_BTHWD, 'B T (H ph) (W pw) C -> B T H W (ph pw C)', ph=self.patch, pw=self.patch)
        embed = Einsum(
            '...C,CD->...D', (x_BTHWD.shape[-1], self.width), ('patch', 'embed'), dtype=self.dtype, name='patch'
        )
        x_BTHWD = SpaceTimePosition(self.grid, name='position')(embed(x_BTHWD), image_B)
        x_BTHWD = nn.with_logical_constraint(x_BTHWD, ('batch', 'frames', 'height', 'width', 'act_embed'))

        shared = None if self.separate_adaln else Modulation(dtype=self.dtype, name='modulation')(c_BTD)
        x_BTHWD, _ = self._blocks()(x_BTHWD, Context(c_BTD, shared, text, image_B))
        return Head(self.latent_shape[-1], self.patch, self.dtype, name='head')(x_BTHWD, c_BTD)

    def _beside(self, cond) -> list[jax.Array]:
        """The channels beside z_t."""
        beside = [cond['estimate']]
        if self.frame_prediction:
            mask_BTHW1 = jnp.broadcast_to(cond['frames_mask'][:, :, None, None, None], (*cond['frames'].shape[:-1], 1))
            beside += [cond['frames'], mask_BTHW1.astype(cond['frames'].dtype)]
        if self.upsample > 1:
            up = (1, self.upsample, self.upsample)
            features = self.upsample**2 * self.latent_shape[-1]
            conv = SameConv3d(features, (1, 3, 3), dtype=self.dtype, axes=('latent', 'patch'), name='low')
            beside.append(depth_to_space(conv(cond['low']), up))
        return beside

    def _blocks(self):
        """All layers, two by two, with stacked parameters."""
        spec = LayerSpec(
            heads=self.heads,
            hidden=self.hidden or 4 * self.width,
            rank=self.rank,
            qk_norm=self.qk_norm,
            relative_bias=not self.rope,
            rope=self.rope,
            skip_images=self.skip_images,
            dtype=self.dtype,
        )
        layers = tuple(zip(self.windows, self.windows.values(), self._text_windows))
        return blocks(layers, spec, self.depth // 2, self.remat)


class Head(nn.Module):
    """x_BTHWD -> (B, T, H, W, channels): adaptive layer norm, and a linear map that is zero at first (DiT)."""

    channels: int
    patch: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWD, c_BTD):
        scale_BTD, shift_BTD = jnp.moveaxis(Modulation(2, self.dtype, name='modulation')(c_BTD), 2, 0)
        x_BTHWD = modulate(LayerNorm(name='norm')(x_BTHWD).astype(self.dtype), scale_BTD, shift_BTD)
        shape = (x_BTHWD.shape[-1], self.patch**2 * self.channels)
        patches = Einsum('...D,DC->...C', shape, ('embed', 'patch'), init=zeros, dtype=self.dtype, name='linear')(
            x_BTHWD
        )
        z = rearrange(patches, 'B T H W (ph pw C) -> B T (H ph) (W pw) C', ph=self.patch, pw=self.patch)
        return z.astype(jnp.float32)
