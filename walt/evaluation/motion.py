"""Where the bright mass of a clip is and which way it goes: what a caption of moving digits says of motion."""

import numpy as np


def centres(video_NTHWC: np.ndarray) -> np.ndarray:
    """Centre of brightness of every frame, in pixels (row, column): uint8 (N, T, H, W, C) -> float64 (N, T, 2).

    A black frame has the middle.

    Raises:
        ValueError: if the clips are not uint8.
    """
    if video_NTHWC.dtype != np.uint8:
        raise ValueError(f'expected uint8 clips, got {video_NTHWC.dtype} {video_NTHWC.shape}')
    grey_NTHW = video_NTHWC.mean(-1, dtype=np.float64) + 1e-9
    mass_NT = grey_NTHW.sum((2, 3))
    rows_H, columns_W = (np.arange(extent) for extent in grey_NTHW.shape[2:])
    row_NT, column_NT = (grey_NTHW.sum(3) @ rows_H) / mass_NT, (grey_NTHW.sum(2) @ columns_W) / mass_NT
    return np.stack([row_NT, column_NT], axis=-1)


def headings(video_NTHWC: np.ndarray, frames: int, directions_K2: np.ndarray) -> np.ndarray:
    """Which of the directions (row, column) is nearest to the way from frame 0 to frame `frames`: int (N,).

    Raises:
        ValueError: if the clips are shorter than that, or not uint8.
    """
    if video_NTHWC.shape[1] <= frames:
        raise ValueError(f'the way to frame {frames} of clips of {video_NTHWC.shape[1]} frames')
    centre_N22 = centres(video_NTHWC[:, [0, frames]])
    way_N2 = centre_N22[:, 1] - centre_N22[:, 0]
    unit_K2 = directions_K2 / np.linalg.norm(directions_K2, axis=1, keepdims=True)
    return (way_N2 @ unit_K2.T).argmax(1)
