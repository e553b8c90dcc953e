"""A data set twice: as it is, and mirrored.

Half of the pictures of a batch are to be mirrored, as in DiT's training. Pixels could be mirrored as they are read; but
latents, which are encoded once, cannot: an encoder that saw words and hands the right way round is not symmetric. So
both are encoded. Training draws from all elements alike, and sees each picture as often one way as the other.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Flipped:
    """A random-access source of twice as many elements as another: first those, then each with its pixels mirrored.

    Captions stay as they are, also where they say left and right.

    Attributes:
        clips: a source.
    """

    clips: Any

    @property
    def num_classes(self) -> int:
        return self.clips.num_classes

    @property
    def fps(self) -> float | None:
        return getattr(self.clips, 'fps', None)

    def __len__(self) -> int:
        return 2 * len(self.clips)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} clips')
        mirrored, number = divmod(index, len(self.clips))
        element = dict(self.clips[number])
        return element | {'video': element['video'][:, :, ::-1]} if mirrored else element
