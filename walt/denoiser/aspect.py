"""Another picture format for a trained denoiser: its positions, interpolated (W.A.L.T, section 4.5 and appendix A).

A model trained on square latents goes on at 9:16 with windows that grew with the frame, 1x16x16 to 1x16x28 and 5x8x8 to
5x8x14. Two kinds of parameters know the extent of a frame, and only they change:

    absolute positions           (H, W, D)               resized as a picture of D channels
    bias of relative positions   ((2t-1)(2h-1)(2w-1), N)   resized as t offsets of pictures of N channels, so that an
                                 offset keeps its place relative to the window: the middle, offset 0, stays the middle

Both by linear interpolation with the ends on the ends, so that equal extents are the identity. A DiT has neither kind.
"""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from walt.denoiser.conditions import Denoiser
from walt.nn.conv import Triple

# What may differ: the frame's extents, and what no parameter depends on.
_FREE = {'latent_shape', 'spatial_window', 'spatiotemporal_window', 'skip_images', 'remat', 'dtype', 'parent', 'name'}


def change_aspect(params: Any, source: Denoiser, target: Denoiser) -> Any:
    """Parameters of `source` as parameters of `target`, a denoiser of another height and width.

    Raises:
        ValueError: if the two differ in anything else than extents and windows, naming each field with both values.
    """
    changed = differences(source, target, _FREE)
    for axis, extent in {0: 'frames', 3: 'channels'}.items():
        if source.latent_shape[axis] != target.latent_shape[axis]:
            changed.append(f'latent {extent}: {source.latent_shape[axis]} there, {target.latent_shape[axis]} here')
    if changed:
        raise ValueError('the denoiser to start from does not fit: ' + '; '.join(changed))

    params = dict(params)
    if 'position' in params:
        space_HWD = params['position']['space']
        params['position'] = params['position'] | {'space': resize(space_HWD, (*target.grid[1:], space_HWD.shape[-1]))}
    blocks = dict(params['blocks'])
    for name, window in source.windows.items():
        if 'relative_position' in blocks[name]:
            table = _resize_offsets(blocks[name]['relative_position']['table'], window, target.windows[name])
            blocks[name] = blocks[name] | {'relative_position': {'table': table}}
    return params | {'blocks': blocks}


def differences(source: Denoiser, target: Denoiser, free: Collection[str]) -> list[str]:
    """The fields in which the denoiser to start from and another of its kind differ, each with both values; those in
    `free` may. Raises `ValueError` if they are of two kinds."""
    if type(source) is not type(target):
        raise ValueError(f'the denoiser to start from is a {type(source).__name__}, this one a {type(target).__name__}')
    return [
        f'{name}: {getattr(source, name)!r} there, {getattr(target, name)!r} here'
        for name in source.__dataclass_fields__
        if name not in free and getattr(source, name) != getattr(target, name)
    ]


def resize(x, shape: tuple[int, ...]):
    """`x` interpolated linearly along every axis that `shape` changes; the ends stay the ends. An axis of length 1 is
    repeated."""
    for axis, (old, new) in enumerate(zip(x.shape, shape)):
        if old == new:
            continue
        place = np.linspace(0, old - 1, new) if new > 1 else np.array([(old - 1) / 2])
        below = np.minimum(np.floor(place).astype(int), max(old - 2, 0))
        share = jnp.asarray(np.expand_dims(place - below, tuple(range(1, x.ndim - axis))), x.dtype)
        lower, upper = jnp.take(x, below, axis), jnp.take(x, np.minimum(below + 1, old - 1), axis)
        x = lower + share * (upper - lower)
    return x


def _resize_offsets(table_LON, old: Triple, new: Triple):
    """(layers, offsets, heads) for a window `old` -> for a window `new`."""
    (layers, _, heads), spans = table_LON.shape, [[2 * extent - 1 for extent in window] for window in (old, new)]
    pictures = table_LON.reshape(layers, *spans[0], heads)
    return resize(pictures, (layers, *spans[1], heads)).reshape(layers, -1, heads)
