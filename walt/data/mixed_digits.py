"""Real handwritten digits at mixed aspect ratios: one to a few of a class, side by side or one above the other.

    +-----+   +----------------+   +-----+
    |  2  |   |  2    2    2   |   |  2  |      label 2
    +-----+   +----------------+   |  2  |
                                   +-----+

The scans are those of `moving_digits` (scikit-learn, 8x8, every fifth of a class kept for validation). Each is cut to
its ink, so the single ones have the aspect ratios that people's digits have, from upright ones to square eights, and
enlarged; the box that it stands in may be stretched a little. Aspect ratios of whole pictures go from tall columns to
wide lines.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image

from walt.data.draws import check_stream, element_draws
from walt.data.moving_digits import NAMES, digit_scans

# Random stretches are whole multiples of this part of their range.
_STEPS = 2**16


@dataclasses.dataclass(frozen=True)
class MixedDigits:
    """Pictures of any size: a random-access source; an index gives the same picture on every machine.

    Element `i` has
        video    uint8 (1, height, width, 3), grey digits on black
        label    int32 scalar 0..9

    Fields:
        split: 'train' or 'validation'; the two draw from disjoint scans
        digits: least and most digits of a picture, all of one class
        scale: pixels for each of the scan's, before stretching
        stretch: widths of boxes are multiplied by a number between 1 / stretch and stretch, heights divided by it
        pictures: length of the data set
        seed: another seed is another set of pictures from the same scans

    After construction:
        sizes_N3: int32 (pictures, 3), 1 and height and width of every picture

    Raises ValueError where a field is out of its range.
    """

    split: str
    digits: tuple[int, int] = (1, 3)
    scale: int = 4
    stretch: float = 1.25
    pictures: int = 20_000
    seed: int = 0

    sizes_N3: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        check_stream(self.seed, self.split)
        least, most = self.digits
        if not 1 <= least <= most:
            raise ValueError(f'digits rise from 1, but are {tuple(self.digits)}')
        if self.scale < 1 or self.stretch < 1 or self.pictures < 1:
            raise ValueError(
                f'scale, stretch and pictures are 1 or more, not {self.scale}, {self.stretch}, {self.pictures}'
            )
        scans, members = _tight_scans(self.split)
        object.__setattr__(self, '_scans', scans)
        object.__setattr__(self, '_members', members)
        sizes = [(1, *_extent(boxes, upright)) for _, _, boxes, upright in map(self._layout, range(self.pictures))]
        object.__setattr__(self, 'sizes_N3', np.array(sizes, np.int32))

    @property
    def num_classes(self) -> int:
        return len(NAMES)

    @property
    def class_names(self) -> tuple[str, ...]:
        return NAMES

    def __len__(self) -> int:
        return self.pictures

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < self.pictures:
            raise IndexError(f'index {index} of {self.pictures} pictures')
        label, chosen, boxes, upright = self._layout(index)
        height, width = _extent(boxes, upright)
        canvas_HW, along = np.zeros((height, width), np.uint8), 0
        for scan, (tall, wide) in zip(chosen, boxes):
            top, left = (along, (width - wide) // 2) if upright else ((height - tall) // 2, along)
            ink = Image.fromarray(self._scans[scan]).resize((wide, tall), Image.Resampling.BICUBIC)
            canvas_HW[top : top + tall, left : left + wide] = ink
            along += tall if upright else wide
        return {'video': np.repeat(canvas_HW[None, :, :, None], 3, axis=-1), 'label': np.int32(label)}

    def _layout(self, index: int) -> tuple[int, list[int], list[tuple[int, int]], bool]:
        """Of a picture: its class, its scans, the (height, width) of the box of each, and whether they are a column."""
        draw, (least, most) = element_draws(self.seed, self.split, index), self.digits
        label, count, upright = draw(len(NAMES)), least + draw(most - least + 1), bool(draw(2))
        stretch = self.stretch ** (2 * draw(_STEPS + 1) / _STEPS - 1)
        members = self._members[label]
        chosen = [members[draw(len(members))] for _ in range(count)]
        boxes = []
        for scan in chosen:
            tall, wide = self._scans[scan].shape
            boxes.append((max(1, round(tall * self.scale / stretch)), max(1, round(wide * self.scale * stretch))))
        return label, chosen, boxes, upright


@functools.cache
def _tight_scans(split: str) -> tuple[list[np.ndarray], list[list[int]]]:
    """The split's scans, each cut to its ink and with a pixel of ground around it, and which are of each class."""
    scans_NHW, labels_N = digit_scans(split)
    tight = []
    for scan_HW in scans_NHW:
        (rows, columns) = (np.flatnonzero(scan_HW.any(axis)) for axis in (1, 0))
        tight.append(np.pad(scan_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1))
    return tight, [np.flatnonzero(labels_N == label).tolist() for label in range(len(NAMES))]


def _extent(boxes: list[tuple[int, int]], upright: bool) -> tuple[int, int]:
    tall, wide = zip(*boxes)
    return (sum(tall), max(wide)) if upright else (max(tall), sum(wide))
