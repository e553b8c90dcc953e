"""Diffusion over packed rows: W.A.L.T and DiT for clips of any length and aspect ratio, several in a row.

    tokens of a row  [ clip 1 . . . . . | clip 2 . . | clip 3 . . . . | padding ]       (`walt.tokens`)
    time and label       t_1, y_1          t_2, y_2     t_3, y_3                        one of each for every clip

    [z_t, estimate of z_0] -> tokens + positions -> (layer, layer, ..) x blocks -> prediction
                     c = time embedding + label embedding, a vector for every clip -> AdaLN in every layer

The layers are those of `walt.denoiser.blocks`, for which a row is a clip of L frames of one token: a frame has its own
modulation, which here is its clip's. What a token sees are the tokens of its own clip in its own window (`window_ids`):

    W.A.L.T   ((1, 0, 0), (0, 8, 8))      a frame; then a tile of 8 x 8 through all frames          0: all of the clip
    DiT       ((0, 0, 0),)                the whole clip

A clip is noised, and its prediction made, as if nothing else was in the row. The parameters are those of the dense
networks: a row that one clip fills is `Walt` with `rope`, or `Dit`, if what is said of positions at the input is the
same. There is no bias by offset, since windows have no size of their own: attention
sees places by rotation (`rope`), or not at all.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from walt.denoiser.adaln import Modulation
from walt.denoiser.blocks import Context, LayerSpec, Packed, blocks
from walt.denoiser.conditions import check_inputs
from walt.denoiser.walt import Head
from walt.nn.conv import Triple
from walt.nn.einsum import Einsum
from walt.nn.embeddings import FactorisedPosition, LabelEmbedding, TimeEmbedding, angles_at
from walt.nn.remat import check_remat
from walt.tokens import members

_NAMES = {1: ('global',), 2: ('spatial', 'spatiotemporal')}


class PackedDenoiser(nn.Module):
    """Called as `Denoise`: (z_BLC, t, cond) -> prediction_BLC, float32, or twice as many numbers with variances. Tokens
    are patches (1, patch, patch) of latents; `t` is (B, L), that of a token's clip, or (B,) where a row has one.

    `cond` has exactly the entries of `conditions`: `segment`, `place` and `size` of `walt.tokens`, and by clip the
    `label`, (B, E), if there are classes. What comes out at padding has no meaning.

    Attributes:
        length: L, tokens of a row.
        most: E, clips of a row at most.
        channels: of the latents.
        classes: number of classes, without the null class; 0 for a model without labels.
        learn_variance: the prediction of a token has as many numbers again, which say where its variance lies
            (`walt.diffusion.variance`).
        self_condition: whether it is given its own `estimate`, beside z_t.
        layers: the windows of the layers of a block, in tokens (t, h, w), 0 being all of the clip; one or two.
        width: D.
        depth: layers, counted one by one.
        heads: N.
        hidden: width of the MLP's hidden layer; 0 for four times `width`.
        patch: side of the square of latents that makes a token.
        rank: of the AdaLN-LoRA pairs; 0 leaves them out.
        separate_adaln: each layer has a modulation of its own; without pairs.
        qk_norm: layer norm on queries and keys.
        rope: 3-D rotary positions in attention.
        position, extent, fractional: positions at the input, the fields of `FactorisedPosition`.
        first_time: is subtracted from t: the published DiT counts its steps from 0, so its first time is 1 / 1000.
        remat: what of a block is kept for the backward pass, one of `walt.nn.remat`.
        dtype: what the layers compute in.

    Raises:
        ValueError: at construction, on sizes that do not divide and fields that exclude each other; when called, on
            tokens or conditions of other names and shapes.
    """

    length: int
    most: int
    channels: int
    extent: Triple
    classes: int = 0
    learn_variance: bool = False
    self_condition: bool = True
    layers: tuple[Triple, ...] = ((1, 0, 0), (0, 8, 8))
    width: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 0
    patch: int = 1
    rank: int = 2
    separate_adaln: bool = False
    qk_norm: bool = True
    rope: bool = True
    position: str = 'learned'
    fractional: bool = False
    first_time: float = 0.0
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if min(self.length, self.most, self.channels, self.patch) < 1:
            raise ValueError(
                f'length, most, channels and patch are 1 or more, not {self.length}, {self.most}, {self.channels}, '
                f'{self.patch}'
            )
        if self.width % self.heads:
            raise ValueError(f'width {self.width} is not divisible by heads {self.heads}')
        if len(self.layers) not in _NAMES or any(len(window) != 3 or min(window) < 0 for window in self.layers):
            raise ValueError(f'a block has one or two layers, each with a window (t, h, w) of 0 or more: {self.layers}')
        if self.depth % len(self.layers):
            raise ValueError(f'depth {self.depth} is not divisible by the {len(self.layers)} layers of a block')
        if self.separate_adaln and self.rank:
            raise ValueError(
                f'separate_adaln goes with rank 0, not {self.rank}: pairs are added to a shared modulation'
            )
        if self.rope:
            angles_at(jnp.zeros(3), self.width // self.heads)
        FactorisedPosition(self.position, self.extent, self.fractional, parent=None)
        check_remat(self.remat)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(L, C) of a row of tokens."""
        return self.length, self.patch**2 * self.channels

    @property
    def tile(self) -> Triple:
        """(pt, ph, pw), the patch of `walt.tokens`."""
        return 1, self.patch, self.patch

    @property
    def windows(self) -> dict[str, Triple]:
        """The windows by kind of layer, in tokens; 0 is all of the clip."""
        return dict(zip(_NAMES[len(self.layers)], self.layers))

    @property
    def conditions(self) -> dict[str, tuple[int, ...]]:
        """The shape of a row of every entry of `cond`."""
        entries = {'segment': (self.length,), 'place': (self.length, 3), 'size': (self.most, 3)}
        if self.classes:
            entries['label'] = (self.most,)
        return entries | ({'estimate': self.latent_shape} if self.self_condition else {})

    def check_shards(self, shards: int) -> None:
        """Raises `ValueError` if several devices are to share a row: they share heads and hidden widths, not tokens."""
        if shards > 1:
            raise ValueError(f'{shards} devices cannot share the tokens of a packed row; set mesh.context to 1')

    def check_sizes(self, sizes_N3) -> None:
        """Raises `ValueError` if a clip of one of these sizes, in tokens, does not fit a row or its positions."""
        for size in {tuple(map(int, size)) for size in sizes_N3}:
            tokens = size[0] * size[1] * size[2]
            if min(size) < 1 or tokens > self.length:
                raise ValueError(f'a clip of {size}, {tokens} tokens, does not fit a row of 1 to {self.length} tokens')
            self.check_extent(size)

    def check_extent(self, size: Triple) -> None:
        """Raises `ValueError` if there are no positions for so many tokens (t, h, w), naming both."""
        learned = self.position == 'learned' and not self.fractional
        if learned and any(count > most for count, most in zip(size, self.extent)):
            raise ValueError(f'clips of up to {tuple(size)} tokens, but positions are learned as far as {self.extent}')

    @nn.compact
    def __call__(self, z_BLC, t, cond: Mapping[str, jax.Array]):
        check_inputs(self, z_BLC, cond)
        angles_B1LA = None
        if self.rope:
            angles_B1LA = angles_at(cond['place'].astype(jnp.float32), self.width // self.heads)[:, None]
        packed = Packed(cond['segment'], cond['place'], cond['size'], angles_B1LA)
        t_BE = time_of_clips(t, cond['segment'], self.most)
        c_BED = TimeEmbedding(self.width, dtype=self.dtype, name='time')(t_BE.reshape(-1) - self.first_time)
        c_BED = c_BED.reshape(*t_BE.shape, self.width)
        if self.classes:
            label_BED = LabelEmbedding(self.classes, self.width, name='label')(cond['label'])
            c_BED = c_BED + label_BED.astype(self.dtype)

        x_BLD = self._embedded(z_BLC, cond)
        size_BL3 = packed.to_tokens(cond['size'])
        x_BLD = FactorisedPosition(self.position, self.extent, self.fractional, name='position')(
            x_BLD, cond['place'], size_BL3
        )
        x_BL11D = nn.with_logical_constraint(x_BLD, ('batch', 'tokens', 'act_embed'))[:, :, None, None]

        shared = None if self.separate_adaln else Modulation(dtype=self.dtype, name='modulation')(c_BED)
        x_BL11D, _ = self._blocks()(x_BL11D, Context(c_BED, shared, packed=packed))
        parts = 2 if self.learn_variance else 1
        z_BLhwC = Head(parts * self.channels, self.patch, self.dtype, name='head')(x_BL11D, c_BED, packed)
        parts_BLhwC = jnp.split(z_BLhwC, parts, axis=-1)
        return jnp.concatenate([part.reshape(z_BLC.shape) for part in parts_BLhwC], axis=-1)

    def _embedded(self, z_BLC, cond):
        """Tokens with the estimate beside z_t in every latent of the patch, as the dense network has them."""
        beside = [z_BLC, *([cond['estimate']] if self.self_condition else [])]
        of_latents = [x.reshape(*x.shape[:-1], -1, self.channels) for x in beside]
        x_BLC = jnp.concatenate(of_latents, axis=-1).reshape(*z_BLC.shape[:-1], -1)
        shape, axes = (x_BLC.shape[-1], self.width), ('patch', 'embed')
        return Einsum('...C,CD->...D', shape, axes, dtype=self.dtype, name='patch')(x_BLC)

    def _blocks(self):
        spec = LayerSpec(
            heads=self.heads,
            hidden=self.hidden or 4 * self.width,
            rank=self.rank,
            qk_norm=self.qk_norm,
            relative_bias=False,
            rope=self.rope,
            dtype=self.dtype,
        )
        layers = tuple((name, window, window) for name, window in self.windows.items())
        return blocks(layers, spec, self.depth // len(layers), self.remat)


def time_of_clips(t, segment_BL, most: int):
    """(B, L) of the tokens, or (B,) of the rows, -> t_BE of the clips; 0 where there is none."""
    t_BL = jnp.broadcast_to(t.reshape(len(t), -1), segment_BL.shape)
    return jnp.where(members(segment_BL, most), t_BL[..., None], 0).max(1)
