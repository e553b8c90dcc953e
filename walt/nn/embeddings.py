"""Embeddings: diffusion time, class, absolute position, relative position."""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

from walt.nn.conv import Triple
from walt.nn.einsum import Einsum
from walt.precision import PARAM_DTYPE


def sinusoid(t_B, frequencies: int = 256, max_period: float = 10_000.0):
    """(cos, sin)(1000 t w) for `frequencies` / 2 rates w, geometric from 1 down to 1 / max_period: (B, frequencies)."""
    half = frequencies // 2
    rates = jnp.exp(-math.log(max_period) * jnp.arange(half) / half)
    angles = 1000.0 * t_B[:, None].astype(jnp.float32) * rates
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Diffusion time t_B in [0, 1] -> (B, D): a sinusoid and two linear layers with SiLU between them (DiT)."""

    width: int
    frequencies: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t_B):
        init = initializers.normal(0.02)
        shapes = [(self.frequencies, self.width), (self.width, self.width)]
        axes = [('frequency', 'embed'), ('embed', None)]
        first, second = (
            Einsum('BE,ED->BD', shape, names, init=init, dtype=self.dtype, name=name)
            for shape, names, name in zip(shapes, axes, ('first', 'second'))
        )
        return second(nn.silu(first(sinusoid(t_B, self.frequencies))))


class LabelEmbedding(nn.Module):
    """label_B in [0, classes] -> (B, D); the last row, `classes`, is the null class of classifier-free guidance."""

    classes: int
    width: int

    @nn.compact
    def __call__(self, label_B):
        init = nn.with_logical_partitioning(initializers.normal(0.02), ('classes', 'embed'))
        table = self.param('table', init, (self.classes + 1, self.width), PARAM_DTYPE)
        return table[label_B]


class SpaceTimePosition(nn.Module):
    """Adds a learned vector for the place within the frame and one for the latent frame to x_BTHWD."""

    extent: Triple  # frames, height, width of the tables

    @nn.compact
    def __call__(self, x_BTHWD):
        frames, height, width = self.extent
        features = x_BTHWD.shape[-1]

        def table(name, shape, axes):
            init = nn.with_logical_partitioning(initializers.normal(0.02), (*axes, 'embed'))
            return self.param(name, init, (*shape, features), PARAM_DTYPE).astype(x_BTHWD.dtype)

        space_HWD = table('space', (height, width), ('position_h', 'position_w'))
        time_TD = table('time', (frames,), ('position_t',))
        return x_BTHWD + space_HWD + time_TD[:, None, None]


class RelativePositionBias(nn.Module):
    """A learned bias for every head and every offset (dt, dh, dw) within a window (Swin): () -> bias_NPP."""

    window: Triple
    heads: int

    @nn.compact
    def __call__(self):
        offsets = math.prod(2 * extent - 1 for extent in self.window)
        init = nn.with_logical_partitioning(initializers.normal(0.02), ('offset', 'heads'))
        table = self.param('table', init, (offsets, self.heads), PARAM_DTYPE)
        return jnp.moveaxis(table[relative_index(self.window)], -1, 0)


def relative_index(window: Triple) -> np.ndarray:
    """(P, P): which row of the table holds the offset from token to token, tokens in (t, h, w) order."""
    spans = [2 * extent - 1 for extent in window]
    places_P3 = np.stack(np.meshgrid(*map(np.arange, window), indexing='ij'), axis=-1).reshape(-1, 3)
    offsets_PP3 = places_P3[:, None] - places_P3[None] + (np.array(window) - 1)
    return np.ravel_multi_index(tuple(np.moveaxis(offsets_PP3, -1, 0)), spans)
