"""Many clips in one picture: frames in rows for paper, clips side by side for the screen.

contact_sheet(clips, frames=4)       tile(clips, columns=2), at every frame

clip 0   t=0  t=5  t=11  t=16        clip 0   clip 1
clip 1   t=0  t=5  t=11  t=16        clip 2
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# Grey of margins and of empty cells: neither the black of a canvas nor the white of a page.
_GREY = 96
# Pixels that a line of text takes.
_LINE = 14


def contact_sheet(
    clips_NTHWC: np.ndarray, frames: int = 8, columns: int = 1, margin: int = 2, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Evenly spaced frames of every clip, first and last among them, one clip after another.

    Args:
        clips_NTHWC: uint8 (N, T, H, W, 3)
        frames: frames shown of a clip (one: the first)
        columns: clips in a row of the sheet
        margin: pixels around every frame
        captions: a line of text above each clip, cut off where the clip ends

    Returns uint8 (height, width, 3). Raises ValueError where a clip has fewer than `frames` frames, or where there are
    not as many captions as clips.
    """
    _check(clips_NTHWC, columns)
    length = clips_NTHWC.shape[1]
    if not 1 <= frames <= length:
        raise ValueError(f'frames must be between 1 and the {length} of a clip, got {frames}')
    shown = np.linspace(0, length - 1, frames).round().astype(int)
    pictures_NTHWC = clips_NTHWC[:, shown]
    if captions is None:
        return tile(np.concatenate(pictures_NTHWC)[:, None], columns * frames, margin)[0]
    if len(captions) != len(clips_NTHWC):
        raise ValueError(f'{len(captions)} captions for {len(clips_NTHWC)} clips')
    rows = [tile(pictures_THWC[:, None], frames, margin)[0] for pictures_THWC in pictures_NTHWC]
    texts = [_line(caption, row_HWC.shape[1]) for caption, row_HWC in zip(captions, rows)]
    cells = np.stack([np.concatenate(cell) for cell in zip(texts, rows)])
    return tile(cells[:, None], columns, margin=0)[0]


def _line(text: str, width: int) -> np.ndarray:
    """White on grey, uint8 (_LINE, width, 3)."""
    image = Image.new('RGB', (width, _LINE), (_GREY,) * 3)
    ImageDraw.Draw(image).text((3, 1), text, fill=(255, 255, 255))
    return np.asarray(image)


def tile(clips_NTHWC: np.ndarray, columns: int, margin: int = 2) -> np.ndarray:
    """The clips side by side, row by row, as one clip; cells without a clip are grey.

    Args:
        clips_NTHWC: uint8 (N, T, H, W, 3)
        columns: clips in a row
        margin: pixels around every clip

    Returns uint8 (T, rows * (H + margin) + margin, columns * (W + margin) + margin, 3).
    """
    _check(clips_NTHWC, columns)
    count, length, height, width, _ = clips_NTHWC.shape
    rows = -(-count // columns)
    shape = length, rows * (height + margin) + margin, columns * (width + margin) + margin, 3
    video_THWC = np.full(shape, _GREY, np.uint8)
    for cell, clip_THWC in enumerate(clips_NTHWC):
        top = margin + cell // columns * (height + margin)
        left = margin + cell % columns * (width + margin)
        video_THWC[:, top : top + height, left : left + width] = clip_THWC
    return video_THWC


def _check(clips_NTHWC: np.ndarray, columns: int) -> None:
    if clips_NTHWC.dtype != np.uint8 or clips_NTHWC.ndim != 5 or clips_NTHWC.shape[-1] != 3 or not clips_NTHWC.size:
        raise ValueError(f'clips are uint8 (N, T, H, W, 3), not empty, got {clips_NTHWC.dtype} {clips_NTHWC.shape}')
    if columns < 1:
        raise ValueError(f'columns must be 1 or more, got {columns}')
