"""NaViT: one transformer for pictures and clips of any size, several of them in a row (arXiv:2307.06304).

    tokens -> linear, + positions (+ time) -> (attention within a clip, MLP) x depth -> a vector for each clip -> logits
    B L C     B L D                           B L D                                     B E D                     B E C

    x <- x + Attention(LN(x))         a token sees the tokens of its own clip and no others: QK-norm, no biases
    x <- x + MLP(LN(x))
    y  = pool(LN(x)) for every clip   what a learned query finds among the clip's tokens (masked attention pooling)
    y <- y + MLP(LN(y))
    logits = W LN(y) + b

So what a clip is read as depends on its own tokens alone, whatever shares its row and wherever in the row it is.

Positions are factorised: a vector for the frame, one for the row and one for the column, added up, so sizes and shapes
that were never seen together are no gaps. A classifier of noised inputs is told the diffusion time of every clip, as a
vector that is added to all of its tokens (guided-diffusion's classifier is told it too; how is left to us here).
"""

import jax.numpy as jnp
from flax import linen as nn

from walt.denoiser.blocks import Mlp, Packed
from walt.nn.attention import Attention, SegmentPool
from walt.nn.conv import Triple
from walt.nn.einsum import Einsum, zeros
from walt.nn.embeddings import FactorisedPosition, TimeEmbedding
from walt.nn.norm import LayerNorm
from walt.nn.remat import check_remat, of_block, rematerialised


class Navit(nn.Module):
    """Packed rows (`walt.tokens`) -> logits_BEC, float32, of C classes for every clip; of clips that are not there, of
    nothing.

    Attributes:
        classes: that there are.
        patch: (pt, ph, pw), pixels or latents in a token.
        channels: of the clips: 3 of pixels.
        extent: (t, h, w) of grids in tokens, which positions are made for; see `FactorisedPosition`.
        positions: one of `walt.nn.embeddings.CURVES`.
        fractional: places are shares of the clip, not counts of tokens.
        width: D.
        depth: layers.
        heads: N.
        hidden: width of the MLP's hidden layer; 0 for four times `width`.
        qk_norm: layer norm on queries and keys.
        timed: each clip has a diffusion time.
        remat: what of a layer is kept for the backward pass, one of `walt.nn.remat`.
        dtype: what the layers compute in.

    Raises:
        ValueError: at construction, on a width that heads do not divide; when called, on tokens of another width and on
            times that are missing or not asked for.
    """

    classes: int
    patch: Triple
    channels: int = 3
    extent: Triple = (1, 16, 16)
    positions: str = 'sinusoidal'
    fractional: bool = False
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 0
    qk_norm: bool = True
    timed: bool = False
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f'width {self.width} is not divisible by heads {self.heads}')
        check_remat(self.remat)

    @property
    def token_width(self) -> int:
        """C of `tokens`."""
        pt, ph, pw = self.patch
        return pt * ph * pw * self.channels

    @nn.compact
    def __call__(self, tokens_BLC, segment_BL, place_BL3, size_BE3, t_BE=None):
        if tokens_BLC.shape[-1] != self.token_width:
            raise ValueError(f'tokens of {tokens_BLC.shape[-1]} numbers, but patches have {self.token_width}')
        if (t_BE is not None) != self.timed:
            raise ValueError(f'timed is {self.timed}, but times are {"missing" if t_BE is None else "given"}')
        row = Packed(segment_BL, place_BL3, size_BE3)
        shape, hidden = (self.token_width, self.width), self.hidden or 4 * self.width
        x_BLD = Einsum('...C,CD->...D', shape, ('patch', 'embed'), dtype=self.dtype, name='patch')(tokens_BLC)
        position = FactorisedPosition(self.positions, self.extent, self.fractional, name='position')
        x_BLD = position(x_BLD, place_BL3, row.to_tokens(size_BE3))
        if self.timed:
            time_XD = TimeEmbedding(self.width, dtype=self.dtype, name='time')(t_BE.reshape(-1))
            x_BLD = x_BLD + row.to_tokens(time_XD.reshape(*t_BE.shape, -1))
        x_BLD = nn.with_logical_constraint(x_BLD, ('batch', 'tokens', 'act_embed'))

        layers = nn.scan(
            rematerialised(Layer, self.remat),
            length=self.depth,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            metadata_params={nn.PARTITION_NAME: 'layers'},
            check_constancy_invariants=False,  # which would trace the layers once more
        )
        x_BLD, _ = layers(self.heads, hidden, self.qk_norm, self.dtype, name='blocks')(x_BLD, segment_BL)

        x_BLD = LayerNorm(name='pool_norm')(x_BLD).astype(self.dtype)
        pool = SegmentPool(size_BE3.shape[1], self.heads, self.qk_norm, self.dtype, name='pool')
        y_BED = pool(x_BLD, segment_BL)
        y_BED = y_BED + Mlp(hidden, self.dtype, False, name='pool_mlp')(LayerNorm(name='mlp_norm')(y_BED))
        y_BED = LayerNorm(name='head_norm')(y_BED)
        shape, axes = (self.width, self.classes), ('embed', 'classes')
        return Einsum('...D,DC->...C', shape, axes, init=zeros, name='head')(y_BED)


class Layer(nn.Module):
    """(x_BLD, segment_BL) -> (x_BLD, None), in the form that `nn.scan` takes."""

    heads: int
    hidden: int
    qk_norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD, segment_BL):
        x_BLD = of_block(x_BLD)
        attention = Attention(self.heads, self.qk_norm, self.dtype, use_bias=False, name='attention')
        y_B1LD = LayerNorm(name='attention_norm')(x_BLD).astype(self.dtype)[:, None]
        x_BLD = x_BLD + attention(y_B1LD, ids_BL=segment_BL)[:, 0]
        y_BLD = LayerNorm(name='mlp_norm')(x_BLD).astype(self.dtype)
        x_BLD = x_BLD + Mlp(self.hidden, self.dtype, False, name='mlp')(y_BLD)
        return nn.with_logical_constraint(x_BLD, ('batch', 'tokens', 'act_embed')), None
