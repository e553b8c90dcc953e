"""The W.A.L.T block: a spatial layer, then a spatiotemporal layer (figure 2). One is the other with another window;
DiT's block (`walt.denoiser.dit`) is one such layer, whose window is everything.

    x <- x + alpha_1 Attention(gamma_1, beta_1 * LN(x))        within the window, with relative position bias
    x <- x + CrossAttention(LN(x), text)                       where there is a text: keys are [window, text]
    x <- x + alpha_2 MLP(gamma_2, beta_2 * LN(x))

The gates alpha, and what leaves the cross-attention, are zero at initialisation, so a new block is the identity. The
six vectors of a layer have no place for the cross-attention, which is therefore not modulated (the paper is silent).

A row may hold a stack of pictures in place of a clip (section 4.2). In its spatiotemporal layers the attention matrix
is then the identity: each token's value passes, and nothing mixes. Projections and MLP act on it as on all tokens;
`skip_images` reads the paper's figure instead, and leaves pictures out of these layers altogether. Texts, of which
each picture has its own, are attended to within the spatial window in all layers of such a model (section 4.3).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from walt.denoiser.adaln import LowRankModulation, Modulation, modulate, over_space
from walt.denoiser.windows import merge, partition, split, window_ids
from walt.nn.attention import WHOLE, Attention, CrossAttention, Split
from walt.nn.conv import Triple
from walt.nn.einsum import Einsum
from walt.nn.embeddings import RelativePositionBias, rotary_angles
from walt.nn.norm import LayerNorm
from walt.nn.remat import of_block, rematerialised
from walt.nn.shards import shards
from walt.tokens import members


@struct.dataclass
class Text:
    """`tokens_BTSD` of width D, T being 1 or the latent frames, and `mask_BTS`, False where there is no token."""

    tokens_BTSD: jax.Array
    mask_BTS: jax.Array


@struct.dataclass
class Packed:
    """What layers are told of packed rows (`walt.tokens`), which to them are clips of L frames of one token.

    `segment_BL`, `place_BL3` and `size_BE3` are those of the rows; `angles_B1LA` is of rotary positions, or None.
    """

    segment_BL: jax.Array
    place_BL3: jax.Array
    size_BE3: jax.Array
    angles_B1LA: jax.Array | None = None

    def window_ids(self, window: Triple):
        return window_ids(self.segment_BL, self.place_BL3, self.size_BE3, window)

    def to_tokens(self, of_clips):
        """(B, E, ..) of every clip -> (B, L, ..), of each token its clip's; zeros at padding."""
        member_BLE = members(self.segment_BL, of_clips.shape[1]).astype(of_clips.dtype)
        return jnp.einsum('BLE,BE...->BL...', member_BLE, of_clips)  # a gather has a scatter for its gradient


@struct.dataclass
class Context:
    """What layers are told beside their tokens: the conditioning vector, the modulation that they share (None where
    each has its own), a text or None, which rows are stacks of pictures (None: no row is), and what there is to know of
    packed rows (None: they are not packed). In packed rows vectors are those of the E clips, not of T frames."""

    c_BTD: jax.Array
    shared_BTSD: jax.Array | None = None
    text: Text | None = None
    image_B: jax.Array | None = None
    packed: Packed | None = None


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What all layers have in common; the fields are those of `Walt`, but for `relative_bias`: whether attention has
    a learned bias for every offset. Without it and without `rope`, layers know of places what their tokens say."""

    heads: int
    hidden: int
    rank: int = 2
    qk_norm: bool = True
    relative_bias: bool = True
    rope: bool = False
    skip_images: bool = False
    dtype: jnp.dtype = jnp.float32


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis."""

    hidden: int
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        width, fields = x.shape[-1], {'use_bias': self.use_bias, 'dtype': self.dtype}
        up = Einsum('...D,DF->...F', (width, self.hidden), ('embed', 'mlp'), name='up', **fields)
        down = Einsum('...F,FD->...D', (self.hidden, width), ('mlp', 'embed'), name='down', **fields)
        return down(nn.gelu(up(x)))


class WindowLayer(nn.Module):
    """(x_BTHWD, context) -> x_BTHWD: attention within windows, to the text within `text_window`, then the MLP."""

    window: Triple
    text_window: Triple
    spec: LayerSpec

    @nn.compact
    def __call__(self, x_BTHWD, context: Context):
        spec, dtype = self.spec, self.spec.dtype
        of_images = None if self.window[0] == 1 else context.image_B
        gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2 = jnp.moveaxis(self._modulation(context), 2, 0)

        y = modulate(LayerNorm(name='attention_norm')(x_BTHWD).astype(dtype), gamma_1, beta_1)
        if context.packed is None:
            y = self._within(self.window, y, lambda y, shared: self._attend(y, shared, of_images))
        else:
            y = self._attend_packed(y, context.packed)
        after = x_BTHWD + over_space(alpha_1) * y

        if context.text is not None:
            y = LayerNorm('embed', name='text_norm')(after).astype(dtype)
            after = after + self._within(
                self.text_window,
                y,
                lambda y, shared: CrossAttention(spec.heads, spec.qk_norm, dtype, shared, name='text')(
                    y, context.text.tokens_BTSD, context.text.mask_BTS
                ),
            )

        y = modulate(LayerNorm(name='mlp_norm')(after).astype(dtype), gamma_2, beta_2)
        after = after + over_space(alpha_2) * Mlp(spec.hidden, dtype, name='mlp')(y)
        if spec.skip_images and of_images is not None:
            after = jnp.where(of_images[:, None, None, None, None], x_BTHWD, after)
        return after

    def _modulation(self, context: Context):
        """The six vectors, (B, T, 6, D). Those of a clip in a packed row are computed once, and then given to its
        tokens."""
        if context.shared_BTSD is None:
            vectors = Modulation(dtype=self.spec.dtype, name='modulation')(context.c_BTD)
        elif not self.spec.rank:
            vectors = context.shared_BTSD
        else:
            pair = LowRankModulation(self.spec.rank, self.spec.dtype, name='lora')
            vectors = context.shared_BTSD + pair(context.c_BTD)
        return vectors if context.packed is None else context.packed.to_tokens(vectors)

    def _within(self, window: Triple, y_BTHWD, attend: Callable[[jax.Array, Split], jax.Array]):
        """`attend` within windows, which lie as devices share their attention, and back."""
        grid = y_BTHWD.shape[1:4]
        shared = split(window, grid, shards('height'))
        axes = ('batch', *shared, 'act_embed')
        y_BGPD = attend(nn.with_logical_constraint(partition(y_BTHWD, window), axes), shared)
        return merge(nn.with_logical_constraint(y_BGPD, axes), window, grid)

    def _attend(self, y_BGPD, shared: Split, alone_B):
        spec = self.spec
        bias_NPP = angles_PA = None
        if spec.rope:
            angles_PA = jnp.asarray(rotary_angles(self.window, y_BGPD.shape[-1] // spec.heads))
        if spec.relative_bias:
            bias_NPP = RelativePositionBias(self.window, spec.heads, name='relative_position')()
        return self._attention(shared)(y_BGPD, bias_NPP, angles_PA, alone_B)

    def _attend_packed(self, y_BL11D, packed: Packed):
        """All of a row is one window, in which tokens see those of their own window and no others."""
        y_B1LD = y_BL11D.squeeze((2, 3))[:, None]
        y_B1LD = self._attention(WHOLE)(y_B1LD, angles_PA=packed.angles_B1LA, ids_BL=packed.window_ids(self.window))
        return y_B1LD.reshape(y_BL11D.shape)

    def _attention(self, shared: Split):
        return Attention(self.spec.heads, self.spec.qk_norm, self.spec.dtype, shared, name='attention')


class Block(nn.Module):
    """Layers one after another, in the form that `nn.scan` takes: (name, window, text window) of each."""

    layers: tuple[tuple[str, Triple, Triple], ...]
    spec: LayerSpec

    @nn.compact
    def __call__(self, x_BTHWD, context: Context):
        x_BTHWD = of_block(x_BTHWD)
        for name, window, text_window in self.layers:
            x_BTHWD = WindowLayer(window, text_window, self.spec, name=name)(x_BTHWD, context)
        x_BTHWD = nn.with_logical_constraint(x_BTHWD, ('batch', 'frames', 'height', 'width', 'act_embed'))
        return x_BTHWD, None


def blocks(layers: tuple[tuple[str, Triple, Triple], ...], spec: LayerSpec, length: int, remat: str) -> nn.Module:
    """`length` blocks, called as one of them is; a part of the caller's named `blocks`, with stacked parameters."""
    return nn.scan(
        rematerialised(Block, remat),
        length=length,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=nn.broadcast,
        metadata_params={nn.PARTITION_NAME: 'layers'},
        check_constancy_invariants=False,  # which would trace the layers once more
    )(layers, spec, name='blocks')
