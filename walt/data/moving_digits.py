"""Handwritten digits that move at constant speed and bounce off the edges of a dark canvas.

The digits are real: the 1,797 scans (8x8, 17 grey levels) that scikit-learn ships; every fifth scan of a class is kept
for validation. A scan is enlarged once, smooth or with hard edges; a clip places it, frame by frame, at a sub-pixel
position. Along each axis the position runs at constant velocity v and is folded at the walls by a triangle wave of the
free room r:

    position(n) = r - |(start + v n) mod 2r - r|                               0 <= position <= r = size - digit_size

Bilinear placement is a matrix product on each side of the scan, with a hat function for its weights:

    canvas[i, j] = sum_kl hat(i - k - y) scan[k, l] hat(j - l - x)             hat(u) = max(0, 1 - |u|)

Positions are whole multiples of 1/256 pixel, so every product and sum above is an integer below 2^24 and exact in
float32: a clip has the same bytes on every machine.
"""

import dataclasses

import einops
import numpy as np
from PIL import Image

from walt.data.draws import check_stream, element_draws

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')

# What a caption says of the motion, and the signs of its (y, x) steps; y points down, as rows do.
DIRECTIONS = (
    ('right', 0, 1),
    ('right and down', 1, 1),
    ('down', 1, 0),
    ('left and down', 1, -1),
    ('left', 0, -1),
    ('left and up', -1, -1),
    ('up', -1, 0),
    ('right and up', -1, 1),
)

# Positions in a pixel.
_SUB = 256

# Hard edges: the grey level from which on there is ink, and the grid on which a pixel is cut into ink and ground.
_INK, _GRID = 112, 8


@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """Clips of moving digits: a random-access source; an index gives the same clip on every machine.

    Element `i` has
        video    uint8 (frames, size, size, 3), grey digits on black
        label    int32 scalar 0..9, the class of the first digit
        caption  str, 'the digit three moving left and up', what each digit does before it first meets a wall; a clip of
                 one frame is 'the digit three'

    Fields:
        split: 'train' or 'validation'; the two draw from disjoint scans
        frames: frames in a clip
        size: height and width of the canvas, in pixels
        digit_size: height and width to which a scan is enlarged, in pixels
        digits: digits in a clip; where they overlap the brighter one shows
        speed: least and greatest speed, in pixels a frame along the direction of motion
        clips: length of the data set
        seed: another seed is another set of clips from the same scans
        crisp: whether ink has hard edges; a scan that is merely enlarged is smooth
        lead: frame steps before the first bounce, where the room allows, so that a caption comes true

    Raises ValueError where a field is out of its range, or where the fastest digit would cross its whole room in less
    than a frame.
    """

    split: str
    frames: int = 17
    size: int = 32
    digit_size: int = 20
    digits: int = 1
    speed: tuple[float, float] = (0.5, 1.5)
    clips: int = 20_000
    seed: int = 0
    crisp: bool = False
    lead: int = 4

    scans_NHW: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)
    labels_N: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        check_stream(self.seed, self.split)
        for field in ('frames', 'digit_size', 'digits', 'clips'):
            if getattr(self, field) < 1:
                raise ValueError(f'{field} must be 1 or more, got {getattr(self, field)}')
        if self.lead < 0:
            raise ValueError(f'lead must be 0 or more, got {self.lead}')
        if self.digit_size >= self.size:
            raise ValueError(f'digit_size {self.digit_size} must be less than the canvas size {self.size}')
        slow, fast = self._speeds
        if not 1 <= slow <= fast <= self._room:
            raise ValueError(
                f'speed {tuple(self.speed)} must rise from at least 1/{_SUB} to at most '
                f'size - digit_size = {self.size - self.digit_size} pixels a frame'
            )
        scans_NHW, labels_N = digit_scans(self.split)
        object.__setattr__(self, 'scans_NHW', _enlarged(scans_NHW, self.digit_size, self.crisp))
        object.__setattr__(self, 'labels_N', labels_N)

    @property
    def num_classes(self) -> int:
        return len(NAMES)

    @property
    def class_names(self) -> tuple[str, ...]:
        return NAMES

    @property
    def sizes_N3(self) -> np.ndarray:
        """int (clips, 3): frames, height and width of every clip."""
        return np.broadcast_to((self.frames, self.size, self.size), (self.clips, 3))

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < self.clips:
            raise IndexError(f'index {index} of {self.clips} clips')
        draw = element_draws(self.seed, self.split, index)
        video_THW = np.zeros((self.frames, self.size, self.size), np.uint8)
        labels, phrases = [], []
        for _ in range(self.digits):
            scan = draw(len(self.scans_NHW))
            words, sign_y, sign_x = DIRECTIONS[draw(len(DIRECTIONS))]
            slow, fast = self._speeds
            step = slow + draw(fast - slow + 1)
            if sign_y and sign_x:  # 181 / 256 = 1 / sqrt 2: a diagonal step is as long as a straight one
                step = (step * 181 + 128) >> 8
            y_T, x_T = self._path(sign_y * step, draw), self._path(sign_x * step, draw)
            video_THW = np.maximum(video_THW, _place(self.scans_NHW[scan], y_T, x_T, self.size))
            labels.append(self.labels_N[scan])
            phrases.append(f'the digit {NAMES[labels[-1]]}' + (f' moving {words}' if self.frames > 1 else ''))
        *others, last = phrases
        return {
            'video': np.repeat(video_THW[..., None], 3, axis=-1),
            'label': np.int32(labels[0]),
            'caption': ' and '.join([', '.join(others), last] if others else [last]),
        }

    @property
    def _room(self) -> int:
        """How far a digit can move along an axis, in sub-pixels."""
        return (self.size - self.digit_size) * _SUB

    @property
    def _speeds(self) -> tuple[int, int]:
        """Least and greatest speed, in sub-pixels a frame."""
        slow, fast = self.speed
        return round(slow * _SUB), round(fast * _SUB)

    def _path(self, step: int, draw) -> np.ndarray:
        """Positions along one axis, int64 (frames,), in sub-pixels: constant steps, folded at the walls."""
        room = self._room
        run = min(room, self.lead * abs(step))  # the way ahead that is kept free
        start = draw(room - run + 1) + (run if step < 0 else 0)
        return room - np.abs((start + step * np.arange(self.frames)) % (2 * room) - room)


def digit_scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The split's scans as they are, uint8 (N, 8, 8), and their classes, int (N,)."""
    from sklearn.datasets import load_digits  # a third of the start of every program, which most data do not need

    scans_NHW, labels_N = load_digits(return_X_y=True)
    scans_NHW = (scans_NHW.reshape(-1, 8, 8).astype(np.int64) * 255 // 16).astype(np.uint8)
    rank_N = np.zeros_like(labels_N)  # a scan's place among those of its class
    for label in range(len(NAMES)):
        members = np.flatnonzero(labels_N == label)
        rank_N[members] = np.arange(len(members))
    chosen = np.flatnonzero((rank_N % 5 == 4) == (split == 'validation'))
    return scans_NHW[chosen], labels_N[chosen]


def _enlarged(scans_NHW: np.ndarray, digit_size: int, crisp: bool) -> np.ndarray:
    """uint8 (N, digit_size, digit_size)."""
    side = digit_size * (_GRID if crisp else 1)
    large = [Image.fromarray(scan_HW).resize((side, side), Image.Resampling.BICUBIC) for scan_HW in scans_NHW]
    large_NHW = np.stack([np.asarray(image) for image in large])
    if crisp:
        ink_NHW = einops.reduce(large_NHW >= _INK, 'n (h i) (w j) -> n h w', 'sum', i=_GRID, j=_GRID)
        large_NHW = (ink_NHW * 255 // _GRID**2).astype(np.uint8)
    return large_NHW


def _place(scan_HW: np.ndarray, y_T: np.ndarray, x_T: np.ndarray, size: int) -> np.ndarray:
    """The scan with its upper left corner at (y, x) sub-pixels of every frame: uint8 (T, size, size)."""

    def hat(position_T):  # (T, size, digit_size), in units of 1 / _SUB
        offset = np.arange(size)[:, None] - np.arange(len(scan_HW))
        return np.maximum(0, _SUB - np.abs(offset * _SUB - position_T[:, None, None])).astype(np.float32)

    canvas_THW = hat(y_T) @ scan_HW.astype(np.float32) @ hat(x_T).swapaxes(1, 2)
    return ((canvas_THW.astype(np.int32) + _SUB**2 // 2) // _SUB**2).astype(np.uint8)
