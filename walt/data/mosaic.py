"""Clips at two resolutions in one shape: every other one is four clips of half the size, side by side.

    element 0    | clip 0 |        element 1    | clip 1  clip 2 |
                 |        |                     | clip 3  clip 4 |

For tokenizers that also encode small clips, those of a cascade's stage below or of super-resolution's condition: what
has been trained on large pictures alone keeps less of small ones, whose strokes are half as wide.
"""

import dataclasses
from typing import Any

import numpy as np
from einops import rearrange, reduce


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """A random-access source over another; an element has

        video    uint8 (frames, height, width, 3)

    Attributes:
        clips: a source; element i, and where i is odd also the three after it, are in element i.

    Raises:
        ValueError: if the clips' height or width is odd.
    """

    clips: Any

    def __post_init__(self):
        shape = self.clips[0]['video'].shape
        if shape[1] % 2 or shape[2] % 2:
            raise ValueError(f'clips of {shape} cannot be halved: height and width must be even')

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if index % 2 == 0:
            return {'video': self.clips[index]['video']}
        if not 0 < index < len(self):
            raise IndexError(f'index {index} of {len(self)} clips')
        large = np.stack([self.clips[(index + i) % len(self)]['video'] for i in range(4)])
        small = reduce(np.float32(large), 'n t (h i) (w j) c -> n t h w c', 'mean', i=2, j=2)
        return {'video': rearrange(small.round().astype(np.uint8), '(y x) t h w c -> t (y h) (x w) c', y=2)}
