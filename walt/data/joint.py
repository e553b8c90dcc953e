"""Clips beside stacks of independent pictures, for training on both at once (W.A.L.T, section 4.1).

A clip has 1 + t latent frames, and a stack as many pictures, each of which is encoded alone: so both are latents of one
shape. How many of each the paper mixes is not said; `stacks` for each clip is a whole number here.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Joint:
    """A random-access source over two others.

    Element `i` has all that element `i` of `clips` has, and, of `stacks` x `frames` pictures,
        images          uint8 (stacks, frames, height, width, 3)
        images_label    int32 (stacks, frames), where `pictures` has labels
        images_caption  array of text (stacks, frames), where `pictures` has captions

    Attributes:
        clips: a source of clips.
        pictures: a source of clips of one frame; begun anew where it is shorter.
        frames: pictures in a stack, as many as a clip has latent frames.
        stacks: for each clip.

    Raises:
        ValueError: if `pictures` are clips, or of another size than the clips, or if a number is less than 1.
    """

    clips: Any
    pictures: Any
    frames: int = 5
    stacks: int = 1

    def __post_init__(self):
        if min(self.frames, self.stacks) < 1:
            raise ValueError(f'frames and stacks are 1 or more, not {self.frames} and {self.stacks}')
        clip, picture = (source[0]['video'].shape for source in (self.clips, self.pictures))
        if picture[0] != 1 or picture[1:] != clip[1:]:
            raise ValueError(f'pictures of {picture} beside clips of {clip}: they have one frame of the same size')

    @property
    def num_classes(self) -> int:
        """Of both. Raises `ValueError` if they differ; where nobody asks for labels they may."""
        of_clips, of_pictures = self.clips.num_classes, self.pictures.num_classes
        if of_clips != of_pictures:
            raise ValueError(f'clips have {of_clips} classes, pictures {of_pictures}')
        return of_clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        element, count = dict(self.clips[index]), self.stacks * self.frames
        chosen = [self.pictures[(index * count + i) % len(self.pictures)] for i in range(count)]
        element['images'] = np.stack([picture['video'][0] for picture in chosen])
        for name in ('label', 'caption'):
            if name in chosen[0]:
                element[f'images_{name}'] = np.array([picture[name] for picture in chosen])
        for name in [name for name in element if name.startswith('images')]:
            element[name] = element[name].reshape(self.stacks, self.frames, *element[name].shape[1:])
        return element
