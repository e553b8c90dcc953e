"""Encoding and decoding large frames in overlapping tiles: the whole frame's values in the memory of one tile.

All lengths are in latents, each of which stands for s x s pixels. Along one side of 16, with tiles of 8 that overlap
by 4 (# is a tile's core, + is computed for the core's sake and dropped):

    0 1 2 3 4 5 6 7 8 9 . . . . . 15
    # # # # # # + +
            + + # # # # + +
                    + + # # # # # #

Cores share nothing and cover everything; the last tile moves inwards where the sizes do not work out, so that all have
one shape, and one function is compiled. At the frame's edge a tile has the frame's padding. At its other edges it has a
wrong one, and each convolution carries that further in; where the overlap covers how far (`receptive_field`), cores are
exact but for the norms, whose statistics are of the whole frame.

So every norm is given the frame's moments, and reports its core's part in them; the reports, summed over the tiles, are
given in the next pass over all tiles. The first norm of the network reports the truth in the first pass, the second,
which sees the first, in the second, ...: with N norms pass N + 1 is exact, and passes end before that once the moments
stand still. That is the price of little memory: passes times the time of the whole frame, and the overlap on top.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from walt.nn.norm import FrameGroupNorm
from walt.tokenizer.autoencoder import Tokenizer
from walt.tokenizer.pixels import check_unit


def receptive_field(module: Tokenizer, method: str) -> tuple[int, int]:
    """How many latents before and after its own place the output at a latent's place depends on, along a side.

    With `method` 'encode' these are patches of s pixels, with 'decode' latents. Statistics of norms do not count.
    """
    conv = [(3, 1, 1)]  # kernel, down-sampling, up-sampling
    levels = [conv * 2 * blocks for blocks in module.blocks]
    middle = conv * 2 * module.middle_blocks
    if method == 'encode':
        size = math.prod(module.spatial_strides)  # positions of a latent
        downs = ([(module.down_kernel, stride, 1)] for stride in module.spatial_strides)
        layers = [conv, levels[0], *itertools.chain(*zip(downs, levels[1:])), middle]
    else:
        size = 1
        ups = ([(3, 1, stride)] for stride in reversed(module.spatial_strides))
        layers = [conv, middle, levels[-1], *itertools.chain(*zip(ups, reversed(levels[:-1]))), conv]

    wrong, reach = (0, 0), (0, 0)  # at the first edge and at the last: positions that know it, and latents
    for kernel, down, up in itertools.chain(*layers):
        first, last = wrong[0] + (kernel - 1) // 2, wrong[1] + kernel // 2
        wrong = math.ceil(first / down) * up, last // down * up
        size = size * up // down
        reach = tuple(max(r, math.ceil(w / size)) for r, w in zip(reach, wrong))  # of all layers, for their norms
    return reach


def encode_tiled(
    module: Tokenizer,
    params,
    video_BTHWC,
    tile: Sequence[int],
    overlap: int | None = None,
    inexact: bool = False,
    tolerance: float = 1e-6,
) -> np.ndarray:
    """`module.encode` of float32 pixels (B, T, H, W, 3), as a host array.

    Args:
        tile: height and width of a tile in latents; more than the frame has means all of it.
        overlap: of neighbouring tiles, in latents; by default what the receptive field asks for.
        inexact: allows an overlap below the receptive field, for values that differ near the borders of cores.
        tolerance: passes end when no moment changes by more, relative to the root of its mean square.

    Raises:
        ValueError: if pixels are outside [0, 1], the strides do not divide the frame, the overlap is less than the
            receptive field and `inexact` is not set, or the tile is not larger than the overlap.
    """
    module.latent_shape(*video_BTHWC.shape[1:4])
    check_unit(video_BTHWC)
    return _tiled(module, params, video_BTHWC, tile, overlap, inexact, tolerance, 'encode')


def decode_tiled(
    module: Tokenizer,
    params,
    z_BTHWC,
    tile: Sequence[int],
    overlap: int | None = None,
    inexact: bool = False,
    tolerance: float = 1e-6,
) -> np.ndarray:
    """`module.decode` of latents, as a host array; arguments and errors as of `encode_tiled`."""
    return _tiled(module, params, z_BTHWC, tile, overlap, inexact, tolerance, 'decode')


@dataclass(frozen=True)
class _Span:
    """A tile along one side: `length` latents from `start`, of which the core is [`core_start`, `core_stop`)."""

    start: int
    length: int
    core_start: int
    core_stop: int

    def tile(self, scale: int) -> slice:
        """The tile in a frame that has `scale` positions a latent."""
        return slice(self.start * scale, (self.start + self.length) * scale)

    def core(self, scale: int) -> slice:
        """The core in such a frame."""
        return slice(self.core_start * scale, self.core_stop * scale)

    def core_in_tile(self, scale: int) -> slice:
        """The core in the tile."""
        return slice((self.core_start - self.start) * scale, (self.core_stop - self.start) * scale)

    def mask(self) -> np.ndarray:
        """1 for latents in the core, 0 for others."""
        mask = np.zeros(self.length, np.float32)
        mask[self.core_in_tile(1)] = 1
        return mask


def _spans(side: int, length: int, overlap: int, reach: tuple[int, int]) -> list[_Span]:
    """All tiles along a side. Of what two of them share, their cores leave over equally much beyond the reach."""
    starts = [*range(0, side - length, length - overlap), side - length]
    meet = [(first + length + second + reach[0] - reach[1]) // 2 for first, second in itertools.pairwise(starts)]
    return [_Span(start, length, *core) for start, core in zip(starts, itertools.pairwise([0, *meet, side]))]


def _tiled(module, params, x_BTHWC, tile, overlap, inexact, tolerance, method):
    stride = math.prod(module.spatial_strides)
    scales = (stride, 1) if method == 'encode' else (1, stride)  # positions of a latent, in what comes in and goes out
    sides = [length // scales[0] for length in x_BTHWC.shape[2:4]]
    tile = [min(lengths) for lengths in zip(tile, sides)]
    reach = receptive_field(module, method)
    if overlap is None:
        overlap = sum(reach)
    if tile != sides and overlap < sum(reach) and not inexact:
        raise ValueError(f'an overlap of {overlap} latents is less than the receptive field {reach} before and after')
    if min(tile) < 1 or any(not 0 <= overlap < length for length, side in zip(tile, sides) if length < side):
        raise ValueError(f'tiles of {tile[0]}x{tile[1]} latents are too small for an overlap of {overlap}')
    tiles = list(itertools.product(*(_spans(*lengths, overlap, reach) for lengths in zip(sides, tile))))
    run = functools.partial(_one_pass, module, params, np.asarray(x_BTHWC), tiles, scales, method)

    y_BTHWC, moments = run(None)
    for _ in jax.tree.leaves(moments) if len(tiles) > 1 else ():
        given = moments
        y_BTHWC, moments = run(given)
        if all(_stand_still(*pair, tolerance) for pair in zip(*map(jax.tree.leaves, (given, moments)))):
            break
    return y_BTHWC


def _one_pass(module, params, x_BTHWC, tiles, scales, method, given):
    """All tiles once, with the moments `given`, or their own if that is None: (output, the frame's moments)."""
    known, y_BTHWC, parts = np.array(given is not None), None, []
    for rows, columns in tiles:
        x = x_BTHWC[:, :, rows.tile(scales[0]), columns.tile(scales[0])]
        masks = rows.mask(), columns.mask()
        if given is None:
            _, shapes = jax.eval_shape(lambda *arrays: _run_tile(module, params, {}, *arrays, method), known, x, *masks)
            given = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        y, part = jax.device_get(_compiled_run_tile(module, params, given, known, x, *masks, method=method))
        if y_BTHWC is None:
            frame = (length // scales[0] * scales[1] for length in x_BTHWC.shape[2:4])
            y_BTHWC = np.empty((*y.shape[:2], *frame, y.shape[-1]), y.dtype)
        core = y[:, :, rows.core_in_tile(scales[1]), columns.core_in_tile(scales[1])]
        y_BTHWC[:, :, rows.core(scales[1]), columns.core(scales[1])] = core
        parts.append(part)
    share = np.float32(x[0, 0, ..., 0].size / x_BTHWC[0, 0, ..., 0].size)  # tiles report means over themselves
    return y_BTHWC, jax.tree.map(lambda *parts: share * sum(parts), *parts)


def _run_tile(module, params, moments, known, x_BTHWC, core_H, core_W, method):
    """One tile: (output, by norm the core's part (2, B, T, 1, 1, C) in the tile's mean and mean square).

    Norms use `moments`, the frame's, if `known`, else those of the tile. The masks say which latents are in the core.
    """

    def step_in(next_method, args, kwargs, context):
        norm = context.module
        if not (isinstance(norm, FrameGroupNorm) and context.method_name == 'moments'):
            return next_method(*args, **kwargs)
        (x,) = args
        rows, columns = (jnp.repeat(core, n // core.size) for core, n in zip((core_H, core_W), x.shape[2:4]))
        own = jnp.stack(next_method(x))
        frame = jnp.where(known, norm.get_variable('moments', 'frame', own), own)
        norm.put_variable('moments', 'frame', jnp.stack(next_method(x * jnp.outer(rows, columns)[..., None])))
        return frame

    with nn.intercept_methods(step_in):
        variables = {'params': params, 'moments': moments}
        y_BTHWC, variables = module.apply(variables, x_BTHWC, method=method, mutable=['moments'])
    return y_BTHWC, variables['moments']


_compiled_run_tile = jax.jit(_run_tile, static_argnames=('module', 'method'))


def _stand_still(before, after, tolerance):
    """Whether means and mean squares, stacked, moved by no more than the tolerance."""
    mean, square = np.abs(after - before)
    scale = np.maximum(after[1], np.finfo(np.float32).tiny)
    return (mean <= tolerance * np.sqrt(scale)).all() and (square <= tolerance * scale).all()
