"""Clips of any size, each resized once to whole patches at a side length drawn for it (see `resolution`).

Pixels can be resized anew whenever they are packed (`packing`). Latents cannot: what is encoded has the size that it is
encoded at. So this stands between a source and `walt.encode`, with patches as large as what becomes a token: the
tokenizer's strides times the denoiser's patch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from walt.data.draws import check_stream, stream_uniform
from walt.data.packing import fitted
from walt.data.resolution import NATIVE, Resolution, grids


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A random-access source of the elements of another, with `video` of a size that patches tile.

    Fields:
        source: of clips of any size.
        patch: (ph, pw), in pixels.
        most: patches of a clip at most, over all of its frames; a larger one is made smaller.
        resolution: side lengths.
        seed, split: of what is drawn.

    Raises ValueError on a source that does not say its sizes, and on a patch without two extents.
    """

    source: Any
    patch: Sequence[int]
    most: int
    resolution: Resolution = NATIVE
    seed: int = 0
    split: str = 'train'

    sizes_N3: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        check_stream(self.seed, self.split)
        if not hasattr(self.source, 'sizes_N3'):
            raise ValueError(f'{type(self.source).__name__} does not say its sizes_N3')
        if len(self.patch) != 2 or min(self.patch) < 1:
            raise ValueError(f'patch has two extents of 1 or more, not {tuple(self.patch)}')
        sizes_N3, patch = np.asarray(self.source.sizes_N3), np.array([1, *self.patch])
        u_N = stream_uniform(self.seed, self.split, 'fitting', 0, len(sizes_N3))
        side_N = self.resolution(u_N, np.sqrt(np.prod(np.float64(sizes_N3[:, 1:]), axis=1)))
        object.__setattr__(self, 'sizes_N3', grids(side_N, sizes_N3, patch, self.most) * patch)

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def fps(self) -> float | None:
        return getattr(self.source, 'fps', None)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} clips')
        element = dict(self.source[index])
        return element | {'video': fitted(element, self.sizes_N3[index])}
