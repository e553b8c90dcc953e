"""Two sources of clips of any size, one behind the other: pictures and clips, or clips of two lengths or shapes.

Either may be such a pair itself. In packed rows they mix as they are shuffled, in proportion to their lengths.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class PicturesAndClips:
    """A random-access source: all elements of `pictures`, then all of `clips`, with what both have.

    Raises ValueError where a source does not say its sizes or where the two have different numbers of classes.
    """

    pictures: Any
    clips: Any

    sizes_N3: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        for source in (self.pictures, self.clips):
            if not hasattr(source, 'sizes_N3'):
                raise ValueError(f'{type(source).__name__} does not say its sizes_N3')
        if self.pictures.num_classes != self.clips.num_classes:
            raise ValueError(f'pictures have {self.pictures.num_classes} classes, clips {self.clips.num_classes}')
        sizes = [np.asarray(source.sizes_N3, np.int32) for source in (self.pictures, self.clips)]
        object.__setattr__(self, 'sizes_N3', np.concatenate(sizes))
        object.__setattr__(self, '_names', set(self.pictures[0]) & set(self.clips[0]))

    @property
    def num_classes(self) -> int:
        return self.pictures.num_classes

    @property
    def parts(self) -> list[Any]:
        """All sources in it that are no pairs themselves."""
        pairs = [getattr(source, 'parts', [source]) for source in (self.pictures, self.clips)]
        return [part for parts in pairs for part in parts]

    def __len__(self) -> int:
        return len(self.pictures) + len(self.clips)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} elements')
        behind = index - len(self.pictures)
        element = self.pictures[index] if behind < 0 else self.clips[behind]
        return {name: value for name, value in element.items() if name in self._names}
