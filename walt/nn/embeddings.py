"""Embeddings: diffusion time, class, pooled text; absolute, relative and rotary positions."""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

from walt.nn.conv import Triple
from walt.nn.einsum import Einsum
from walt.nn.shards import whole
from walt.precision import PARAM_DTYPE


def sinusoid(t_B, frequencies: int = 256, max_period: float = 10_000.0):
    """(cos, sin)(1000 t w) for `frequencies` / 2 rates w, geometric from 1 down to 1 / max_period: (B, frequencies)."""
    half = frequencies // 2
    rates = jnp.exp(-math.log(max_period) * jnp.arange(half) / half)
    angles = 1000.0 * t_B[:, None].astype(jnp.float32) * rates
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TwoLinear(nn.Module):
    """x_BE -> (B, D): two linear layers with SiLU between them."""

    width: int
    axis: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shapes = [(x.shape[-1], self.width), (self.width, self.width)]
        axes = [(self.axis, 'embed'), ('embed', None)]
        first, second = (
            Einsum('...E,ED->...D', shape, names, init=initializers.normal(0.02), dtype=self.dtype, name=name)
            for shape, names, name in zip(shapes, axes, ('first', 'second'))
        )
        return second(nn.silu(first(x)))


class TimeEmbedding(nn.Module):
    """Diffusion time t_B in [0, 1] -> (B, D): a sinusoid and two linear layers (DiT)."""

    width: int
    frequencies: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t_B):
        return TwoLinear(self.width, 'frequency', self.dtype, name='mlp')(sinusoid(t_B, self.frequencies))


class PooledText(nn.Module):
    """text_BTSE, mask_BTS -> (B, T, D): the mean of the tokens that are not masked, and two linear layers."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text_BTSE, mask_BTS):
        weight_BTS1 = mask_BTS[..., None].astype(jnp.float32)
        mean_BTE = (text_BTSE * weight_BTS1).sum(-2) / jnp.maximum(weight_BTS1.sum(-2), 1)
        return TwoLinear(self.width, 'text', self.dtype, name='mlp')(mean_BTE)


class LabelEmbedding(nn.Module):
    """label in [0, classes] -> (..., D); the last row, `classes`, is the null class of classifier-free guidance."""

    classes: int
    width: int

    @nn.compact
    def __call__(self, label):
        init = nn.with_logical_partitioning(initializers.normal(0.02), ('classes', 'embed'))
        table = self.param('table', init, (self.classes + 1, self.width), PARAM_DTYPE)
        return whole(table, ('classes', 'embed'))[label]


class SpaceTimePosition(nn.Module):
    """Adds a learned vector for the place within the frame and one for the latent frame to x_BTHWD.

    In rows of `image_B` every frame is a picture of its own, and has the vector of the first.
    """

    extent: Triple  # frames, height, width of the tables

    @nn.compact
    def __call__(self, x_BTHWD, image_B=None):
        frames, height, width = self.extent
        features = x_BTHWD.shape[-1]

        def table(name, shape, axes):
            init = nn.with_logical_partitioning(initializers.normal(0.02), (*axes, 'embed'))
            table = self.param(name, init, (*shape, features), PARAM_DTYPE).astype(x_BTHWD.dtype)
            return whole(table, (*axes, 'embed'))

        space_HWD = table('space', (height, width), ('position_h', 'position_w'))
        time_TD = table('time', (frames,), ('position_t',))
        if image_B is not None:
            time_TD = jnp.where(image_B[:, None, None], time_TD[0], time_TD)
        return x_BTHWD + space_HWD + time_TD[..., None, None, :]


class FactorisedPosition(nn.Module):
    """Adds phi_t(t) + phi_h(h) + phi_w(w) to the tokens of clips of any size (NaViT, arXiv:2307.06304, section 3.3).

    A coordinate is counted in tokens (absolute), or in shares of its clip (fractional) such that every clip is as long
    as `extent`, whatever its size.

    Attributes:
        kind: what phi is, one of `CURVES`.
        extent: of the grids, in tokens (t, h, w): the longest there may be, or that all are taken for.
        fractional: coordinates are shares of the clip.

    Raises:
        ValueError: on a `kind` that is none.
    """

    kind: str
    extent: Triple
    fractional: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in CURVES:
            raise ValueError(f'positions are of a kind among {sorted(CURVES)}, not {self.kind!r}')

    @nn.compact
    def __call__(self, x_BLD, place_BL3, size_BL3):
        """`place` of every token in its clip's grid, and the `size` of that grid, both int32 (t, h, w)."""
        at_BL3 = place_BL3.astype(jnp.float32)
        if self.fractional:
            at_BL3 = at_BL3 * jnp.array(self.extent, jnp.float32) / jnp.maximum(size_BL3, 1)
        curves = CURVES[self.kind](self.extent, x_BLD.shape[-1], name='curves')
        return x_BLD + sum(curves(at_BL3)).astype(x_BLD.dtype)


class LearnedCurves(nn.Module):
    """A learned vector for every whole coordinate of an axis; between two of them, the line that joins theirs.

    Absolute coordinates beyond `extent`, of which nothing was learnt, give NaN.
    """

    extent: Triple
    features: int

    @nn.compact
    def __call__(self, at_BL3):
        def along(axis: int, letter: str):
            axes, shape = (f'position_{letter}', 'embed'), (self.extent[axis], self.features)
            init = nn.with_logical_partitioning(initializers.normal(0.02), axes)
            table_ED = whole(self.param(letter, init, shape, PARAM_DTYPE), axes)
            at_BL = at_BL3[..., axis]
            below_BL = jnp.floor(at_BL).astype(jnp.int32)
            share_BL1 = (at_BL - below_BL)[..., None]
            above_BL = jnp.where(share_BL1[..., 0] > 0, jnp.minimum(below_BL + 1, shape[0] - 1), below_BL)
            lower, upper = (jnp.take(table_ED, i_BL, axis=0, mode='fill') for i_BL in (below_BL, above_BL))
            return lower + share_BL1 * (upper - lower)

        return [along(axis, letter) for axis, letter in enumerate('thw')]


class SineCurves(nn.Module):
    """Sines and cosines at rates that fall geometrically from 1 to 1 / 10000; nothing is learned.

    Columns, rows and frames, in this order, have channels of their own, as many each; but none where the extent is 1.
    Those of pictures are DiT's.
    """

    extent: Triple
    features: int

    def __call__(self, at_BL3):
        told = [axis for axis in (2, 1, 0) if self.extent[axis] > 1]
        half = self.features // (2 * max(len(told), 1))
        rates = jnp.asarray(10_000.0 ** -(np.arange(half) / half), jnp.float32)

        def along(axis: int):
            angles = at_BL3[..., axis, None] * rates
            before = 2 * half * told.index(axis)
            waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
            return jnp.pad(waves, ((0, 0),) * (waves.ndim - 1) + ((before, self.features - before - 2 * half),))

        return [along(axis) for axis in told]


class FourierCurves(nn.Module):
    """Sines and cosines at learned rates, and a linear layer for every axis (arXiv:2106.02795)."""

    extent: Triple
    features: int
    frequencies: int = 64

    @nn.compact
    def __call__(self, at_BL3):
        def along(axis: int, letter: str):
            init = nn.with_logical_partitioning(initializers.normal(1.0), ('frequency',))
            rates = self.param(f'{letter}_rates', init, (self.frequencies // 2,), PARAM_DTYPE)
            angles = 2 * math.pi * (at_BL3[..., axis, None] / self.extent[axis]) * rates
            waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
            shape, axes = (self.frequencies, self.features), ('frequency', 'embed')
            return Einsum('...F,FD->...D', shape, axes, init=initializers.normal(0.02), name=letter)(waves)

        return [along(axis, letter) for axis, letter in enumerate('thw')]


CURVES = {'learned': LearnedCurves, 'sinusoidal': SineCurves, 'fourier': FourierCurves}
"""Kinds of phi: coordinates (..., 3) in tokens -> a vector for each axis."""


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
    places_P3 = places(window)
    offsets_PP3 = places_P3[:, None] - places_P3[None] + (np.array(window) - 1)
    return np.ravel_multi_index(tuple(np.moveaxis(offsets_PP3, -1, 0)), spans)


def places(window: Triple) -> np.ndarray:
    """(P, 3): frame, row and column of every token of a window, in (t, h, w) order."""
    return np.stack(np.meshgrid(*map(np.arange, window), indexing='ij'), axis=-1).reshape(-1, 3)


def rotary_angles(window: Triple, head: int, max_period: float = 10_000.0) -> np.ndarray:
    """`angles_at` of every token of a window, (P, head / 2), tokens in (t, h, w) order."""
    return angles_at(places(window), head, max_period)


def angles_at(place, head: int, max_period: float = 10_000.0):
    """Angles of 3-D rotary positions (arXiv:2104.09864, by axis): places (..., 3) -> float32 (..., head / 2).

    Three eighths of the pairs turn with the row, as many with the column, the rest with the frame, at rates that fall
    geometrically from 1 to 1 / max_period within each.

    Args:
        place: frame, row and column of each token, an array of NumPy or of JAX, and so is the result.

    Raises:
        ValueError: if a head of `head` channels has less than a pair for each axis, or an odd number of channels.
    """
    pairs = head // 2
    of_row = 3 * pairs // 8
    if head % 2 or not of_row:
        raise ValueError(f'rotary positions in time and space take an even head width of 6 or more, not {head}')
    counts = (pairs - 2 * of_row, of_row, of_row)
    # Each pair has its rate on one of the three axes and none on the others.
    rates_3A = np.zeros((3, pairs))
    for axis, (count, end) in enumerate(zip(counts, np.cumsum(counts))):
        rates_3A[axis, end - count : end] = max_period ** -(np.arange(count) / count)
    return (place[..., None] * rates_3A.astype(np.float32)).sum(-2).astype(np.float32)


def rotate(x_BLNK, angles_LA):
    """Turns every pair (x_i, x_{i + K/2}) of a token's channels by its angle, so products see differences of places."""
    first, second = jnp.split(x_BLNK.astype(jnp.float32), 2, axis=-1)
    cos, sin = (f(angles_LA)[..., None, :] for f in (jnp.cos, jnp.sin))
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x_BLNK.dtype)
