"""Another picture format for a trained denoiser: its positions, interpolated (W.A.L.T, section 4.5 and appendix A).

A model trained on square latents goes on at 9:16 with windows that grew with the frame, 1x16x16 to 1x16x28 and 5x8x8 to
5x8x14. Two kinds of parameters know the extent of a frame, and only they change:

    absolute positions           (H, W, D)               resized as a picture of D channels
    bias of relative positions   ((2t-1)(2h-1)(2w-1), N)   resized as t offsets of pictures of N channels, so that an
                                 offset keeps its place relative to the window: the middle, offset 0, stays the middle

Both by linear interpolation with the ends on the ends, so that equal extents are the identity. A DiT has neither kind.
Packed rows hold clips of every format, and no parameter knows how long the rows are.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from walt.denoiser.conditions import Denoiser
from walt.denoiser.packed import PackedDenoiser
from walt.nn.conv import Triple

# What may differ: what no parameter depends on, and the frame's extents.
_FREE = {'skip_images', 'remat', 'dtype', 'parent', 'name'}
_EXTENTS = {'latent_shape', 'spatial_window', 'spatiotemporal_window'}


def change_aspect(params: Any, source: Denoiser, target: Denoiser) -> Any:
    """Parameters of `source` as parameters of `target`, a denoiser of another height and width.

    Raises:
        ValueError: if the two differ in anything else than extents and windows, naming each field with both values.
    """
    _check(source, target, _EXTENTS, {'frames': 0, 'channels': 3})
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


def change_rows(params: Any, source: Denoiser, target: PackedDenoiser) -> Any:
    """Parameters of `source` as parameters of `target`, a denoiser of rows of another length or of other windows: all
    of them serve as they are. Errors as `change_aspect`."""
    of_rows = {'length', 'most'}
    if isinstance(source, PackedDenoiser) and len(source.layers) == len(target.layers):
        of_rows |= {'layers'}
    _check(source, target, of_rows)
    return params


def _check(source: Denoiser, target: Denoiser, extents: Collection[str], axes: Mapping[str, int] = {}) -> None:
    """`extents` are fields that may differ too, but not the entries of `latent_shape` that `axes` names."""
    if type(source) is not type(target):
        raise ValueError(f'the denoiser to start from is a {type(source).__name__}, this one a {type(target).__name__}')
    fields = [name for name in source.__dataclass_fields__ if name not in _FREE | set(extents)]
    pairs = {name: (getattr(source, name), getattr(target, name)) for name in fields}
    pairs |= {f'latent {name}': (source.latent_shape[axis], target.latent_shape[axis]) for name, axis in axes.items()}
    changed = [f'{name}: {there!r} there, {here!r} here' for name, (there, here) in pairs.items() if there != here]
    if changed:
        raise ValueError('the denoiser to start from does not fit: ' + '; '.join(changed))


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
