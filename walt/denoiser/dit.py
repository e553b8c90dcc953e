"""DiT: a transformer over the patches of one picture's latents (arXiv:2212.09748), as published.

    z_t -> patches + fixed positions -> layer x depth -> prediction, and where its variance lies
                       c = time embedding + label embedding -> adaLN-zero in every layer

It is W.A.L.T's layer (`walt.denoiser.blocks`) with the whole grid for a window, a modulation of its own in every layer,
no norm on queries and keys, and no bias by offset. Where a patch lies is said once, at the input, by the sines and
cosines of its column x and row y at D / 4 rates w_i = 10000^(-i / (D / 4)),

    [sin(x w), cos(x w), sin(y w), cos(y w)]                                                                        (1)

The network is told the published index of the step: k - 1 = 0 .. 999 at the time t = k / 1000.

Parameters, with L layers stacked along the first axis, and their names in the published code's state dict:

    patch/kernel (p p C, D)                                x_embedder.proj
    time/mlp/{first,second}/kernel                         t_embedder.mlp.{0,2}
    label/table (classes + 1, D)                           y_embedder.embedding_table
    blocks/global/modulation/linear/kernel (L, D, 6, D)    blocks.*.adaLN_modulation.1
    blocks/global/attention/qkv/kernel (L, D, 3, N, K)     blocks.*.attn.qkv
    blocks/global/attention/out/kernel (L, N, K, D)        blocks.*.attn.proj
    blocks/global/mlp/{up,down}/kernel                     blocks.*.mlp.fc{1,2}
    head/modulation/linear/kernel (D, 2, D)                final_layer.adaLN_modulation.1
    head/linear/kernel (D, p p 2 C)                        final_layer.linear

Kernels are (in, out) and have a bias each; there they are (out, in). Numbers of a patch come in the order (row, column,
channel). A layer's six vectors are gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2 (scale, shift, gate; of attention
and MLP), there shift, scale, gate of attention and then of the MLP: beta_1, gamma_1, alpha_1, beta_2, gamma_2, alpha_2.
The head's two are gamma, beta, there beta, gamma. The published `pos_embed` is (1), which is no parameter here.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from walt.denoiser.blocks import Context, LayerSpec, blocks
from walt.denoiser.conditions import check_inputs
from walt.denoiser.walt import Head
from walt.denoiser.windows import split
from walt.nn.conv import Triple
from walt.nn.einsum import Einsum
from walt.nn.embeddings import LabelEmbedding, TimeEmbedding
from walt.nn.remat import check_remat

STEPS = 1000


class Dit(nn.Module):
    """DiT; called as `Denoise`: (z_BTHWC, t_B, cond) -> prediction, float32: (B, T, H, W, C), or 2 C with variances.

    `cond` has exactly the entries of `conditions`: the `label`, if there are classes.

    Attributes:
        latent_shape: (1, height, width, channels) of the latents.
        classes: number of classes, without the null class; 0 for a model without labels.
        learn_variance: the prediction has C more channels, which say where its variance lies
            (`walt.diffusion.variance`).
        width: D.
        depth: layers.
        heads: N.
        hidden: width of the MLP's hidden layer; 0 for four times `width`.
        patch: side of the square of latents that makes a token.
        remat: what of a layer is kept for the backward pass, one of `walt.nn.remat`.
        dtype: what the layers compute in.

    The published sizes, by (width, depth, heads): S (384, 12, 6), B (768, 12, 12), L (1024, 24, 16), XL (1152, 28, 16),
    each with patch 2, 4 or 8; DiT-XL/2 is XL with patch 2.

    Raises:
        ValueError: at construction, on sizes that do not divide and clips of more than a frame; when called, on latents
            or conditions of other names and shapes.
    """

    latent_shape: tuple[int, int, int, int]
    classes: int = 1000
    learn_variance: bool = True
    width: int = 1152
    depth: int = 28
    heads: int = 16
    hidden: int = 0
    patch: int = 2
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.latent_shape[0] != 1:
            raise ValueError(f'latents of {self.latent_shape} have {self.latent_shape[0]} frames, a DiT takes 1')
        if self.width % self.heads:
            raise ValueError(f'width {self.width} is not divisible by heads {self.heads}')
        if self.width % 4:
            raise ValueError(f'width {self.width} is not divisible by 4: sines and cosines of rows and columns')
        if any(size % self.patch for size in self.latent_shape[1:3]):
            raise ValueError(f'latents of {self.latent_shape} are not divisible by patch {self.patch}')
        check_remat(self.remat)

    @property
    def grid(self) -> Triple:
        """(1, H, W) in tokens."""
        _, height, width, _ = self.latent_shape
        return 1, height // self.patch, width // self.patch

    @property
    def windows(self) -> dict[str, Triple]:
        """The only window, in tokens."""
        return {'global': self.grid}

    @property
    def conditions(self) -> dict[str, tuple[int, ...]]:
        """The shape of a row of every entry of `cond`."""
        return {'label': ()} if self.classes else {}

    def check_shards(self, shards: int) -> None:
        """Raises `ValueError` if this many devices cannot share the height of a picture, naming the counts."""
        split(self.grid, self.grid, shards)

    @nn.compact
    def __call__(self, z_BTHWC, t_B, cond: Mapping[str, jax.Array]):
        check_inputs(self, z_BTHWC, cond)
        c_BTD = TimeEmbedding(self.width, dtype=self.dtype, name='time')(t_B - 1 / STEPS)[:, None]
        if self.classes:
            label_BTD = LabelEmbedding(self.classes, self.width, name='label')(cond['label'][:, None])
            c_BTD = c_BTD + label_BTD.astype(self.dtype)

        patches = rearrange(z_BTHWC, 'B T (H ph) (W pw) C -> B T H W (ph pw C)', ph=self.patch, pw=self.patch)
        shape = (patches.shape[-1], self.width)
        x_BTHWD = Einsum('...C,CD->...D', shape, ('patch', 'embed'), dtype=self.dtype, name='patch')(patches)
        _, height, width = self.grid
        x_BTHWD = x_BTHWD + jnp.asarray(sine_positions(height, width, self.width), self.dtype)
        x_BTHWD = nn.with_logical_constraint(x_BTHWD, ('batch', 'frames', 'height', 'width', 'act_embed'))

        spec = LayerSpec(
            self.heads, self.hidden or 4 * self.width, rank=0, qk_norm=False, relative_bias=False, dtype=self.dtype
        )
        layers = tuple((name, window, window) for name, window in self.windows.items())
        x_BTHWD, _ = blocks(layers, spec, self.depth, self.remat)(x_BTHWD, Context(c_BTD))
        channels = self.latent_shape[-1] * (2 if self.learn_variance else 1)
        return Head(channels, self.patch, self.dtype, name='head')(x_BTHWD, c_BTD)


def sine_positions(height: int, width: int, features: int) -> np.ndarray:
    """Equation (1) for all places of a grid: float32 (height, width, features), `features` a multiple of 4."""
    rates = 10_000.0 ** -(np.arange(features // 4) / (features // 4))

    def of_axis(count: int) -> np.ndarray:
        angles = np.arange(count)[:, None] * rates
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    rows, columns = of_axis(height)[:, None], of_axis(width)[None]
    shape = (height, width, features // 2)
    table = np.concatenate([np.broadcast_to(columns, shape), np.broadcast_to(rows, shape)], axis=-1)
    return table.astype(np.float32)
