"""Pictures and clips of any size in packed rows (see `walt.tokens`): a random-access source of rows.

    source with sizes --order of an epoch--> side lengths, token dropping --first fit--> plan of rows
                                                                                            |
    row r: its clips are read, resized, cut into patches, thinned out, and put beside each other

What the plan needs, sizes and draws, takes no reading of clips, so every process makes the same one ahead of need
(`walt.data.row_plan`), and a row is what an element is to the other sources: there is no state to save, and row r is
the same after every resume, on any number of processes. Grain has packing iterators; theirs is state of the process
that packs, must be saved by it, and cannot be taken up by another number of processes.

A source of clips of any size has, besides elements with `video` or with latents `z`,

    sizes_N3    int (len(source), 3): frames, height and width of every element's clip as it is
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from walt import tokens
from walt.data.draws import check_stream, stream_bits, stream_uniform
from walt.data.dropping import KEEP, Dropping, kept
from walt.data.resolution import NATIVE, Resolution, grids
from walt.data.row_plan import RowPlan


class _Epoch(NamedTuple):
    """One pass over the source: the order of its clips, the grid of each in tokens, and how many of those stay."""

    order_N: np.ndarray
    grid_N3: np.ndarray
    kept_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class Packed:
    """A random-access source: element r is a packed row of `tokens` (uint8 of pixels, float32 of latents), `segment`,
    `place`, `size`, `keys`, and `index`, the number of every clip in the stream, int32 (E,): no two clips have one.

    Fields:
        source: of clips of any size.
        patch: (pt, ph, pw), what makes a token.
        length: tokens of a row, L.
        most: clips of a row at most, E.
        resolution: side lengths.
        dropping: of tokens, in training; for validation all of them stay.
        keys: what of an element a row has besides.
        seed, split: of all draws.
        shuffle: whether every epoch has an order of its own.
        repeat: whether to go on for ever; otherwise every clip comes once, and the last rows are less full.
        open_rows: see `RowPlan`.

    Raises:
        ValueError: on a source without elements, sizes or one of `keys`, and on fields out of their range.
    """

    source: Any
    patch: Sequence[int]
    length: int
    most: int
    resolution: Resolution = NATIVE
    dropping: Dropping = KEEP
    keys: Sequence[str] = ('label',)
    seed: int = 0
    split: str = 'train'
    shuffle: bool = True
    repeat: bool = True
    open_rows: int = 16

    plan: RowPlan = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        check_stream(self.seed, self.split)
        if not len(self.source):
            raise ValueError('the source has no elements')
        if not hasattr(self.source, 'sizes_N3'):
            raise ValueError(f'{type(self.source).__name__} cannot be packed: it does not say its sizes_N3')
        present = set(self.source[0])
        if not set(self.keys) <= present or not present & {'video', 'z'}:
            raise ValueError(f"keys {tuple(self.keys)} and 'video' or 'z' must be among {sorted(present)}")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ValueError(f'patch has three extents of 1 or more, not {tuple(self.patch)}')
        object.__setattr__(self, '_epoch', functools.lru_cache(maxsize=4)(self._new_epoch))
        plan = RowPlan(
            self.kept_tokens, len(self.source), self.length, self.most, self.open_rows, None if self.repeat else 1
        )
        object.__setattr__(self, 'plan', plan)

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def largest(self) -> tuple[int, int, int]:
        """(t, h, w) that no clip's grid exceeds, whatever is drawn."""
        sizes_N3 = np.float64(self.source.sizes_N3)
        top_N = self.resolution(np.full(len(sizes_N3), 1 - 2.0**-53), np.sqrt(sizes_N3[:, 1] * sizes_N3[:, 2]))
        aspect_N, (pt, ph, pw) = np.sqrt(sizes_N3[:, 1] / sizes_N3[:, 2]), self.patch
        t_N = sizes_N3[:, 0] // pt
        most_N = np.rint([t_N, top_N * aspect_N / ph, top_N / aspect_N / pw]).clip(1, self.length // t_N)
        return tuple(int(extents.max()) for extents in (t_N, *most_N[1:]))

    def kept_tokens(self, epoch: int) -> np.ndarray:
        """int (len(source),): how many tokens of every clip of an epoch are packed, in the order of the stream."""
        return self._epoch(epoch).kept_N

    def __len__(self) -> int:
        return sys.maxsize if self.repeat else len(self.plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns row `index`; raises IndexError where there is none."""
        if index < 0:
            raise IndexError(f'row {index}: rows count from 0')
        return tokens.pack([self._clip(number) for number in self.plan.row(index)], self.length, self.most)

    def _grids(self, u_N: np.ndarray, sizes_N3: np.ndarray) -> np.ndarray:
        native_N = np.sqrt(np.prod(np.float64(sizes_N3[:, 1:]), axis=1))
        return grids(self.resolution(u_N, native_N), sizes_N3, self.patch, self.length)

    def _new_epoch(self, number: int) -> _Epoch:
        count, stream = len(self.source), (self.seed, self.split)
        order_N = (
            np.argsort(stream_bits(*stream, 'order', number, count), kind='stable')
            if self.shuffle
            else np.arange(count)
        )
        side_u_N, drop_u_N = stream_uniform(*stream, 'packing', number, 2 * count).reshape(2, count)
        grid_N3 = self._grids(side_u_N, self.source.sizes_N3[order_N])
        tokens_N = grid_N3.prod(1)
        dropping = self.dropping if self.split == 'train' else KEEP
        share_N = dropping(drop_u_N, tokens_N / self.length, number * count + np.arange(count))
        return _Epoch(order_N, grid_N3, kept(share_N, tokens_N))

    def _clip(self, number: int) -> dict[str, Any]:
        """Clip `number` of the stream, as `tokens.pack` takes it."""
        epoch, place = divmod(number, len(self.source))
        order_N, grid_N3, kept_N = self._epoch(epoch)
        element, grid = self.source[int(order_N[place])], grid_N3[place]
        clip = tokens.from_clip(fitted(element, grid * np.array(self.patch)), self.patch)
        if kept_N[place] < len(clip['tokens']):
            bits = stream_bits(self.seed, self.split, 'kept', number, len(clip['tokens']))
            stay = np.sort(np.argsort(bits, kind='stable')[: kept_N[place]])
            clip |= {name: clip[name][stay] for name in ('tokens', 'place')}
        return clip | {key: element[key] for key in self.keys} | {'index': np.int32(number)}


def fitted(element: dict[str, Any], size: np.ndarray) -> np.ndarray:
    """The clip of an element with `size`: (frames, height, width), of which there may be more frames."""
    frames, height, width = map(int, size)
    clip_THWC = element['z' if 'z' in element else 'video'][:frames]
    if clip_THWC.shape[1:3] == (height, width):
        return clip_THWC
    if 'z' in element:
        raise ValueError(f'latents of {clip_THWC.shape[:3]} cannot be resized to {(frames, height, width)}')
    return np.stack([resized(frame_HWC, height, width) for frame_HWC in clip_THWC])


def resized(frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3), bicubic; a pixel of a smaller picture is a mean of all it covers."""
    return np.asarray(Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BICUBIC))
