"""The frames of a file that a video goes on from."""

import os

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from walt.data.image_folder import read_image
from walt.data.video_file import VideoFile


def last_frames(path: str | os.PathLike, most: int, stride: int, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """The last frames of a video, or an image, scaled until they cover `size` and cropped around the middle.

    Args:
        path: an image or a video.
        most: how many frames to return at the most.
        stride: there are 1 + k `stride` of them, as many as the file has.
        size: (height, width).

    Returns:
        uint8 (1 + k stride, height, width, 3), and what was done to them, in words.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is neither an image nor a video.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f'no file {path}')
    frames_THWC = _image(path)
    if frames_THWC is None:
        try:
            frames_THWC = _video(path, most)
        except (av.FFmpegError, ValueError) as error:
            raise ValueError(f'{path} is neither an image nor a video: {error}') from None
    frames_THWC = frames_THWC[len(frames_THWC) - 1 - (len(frames_THWC) - 1) // stride * stride :]
    was = frames_THWC.shape[1:3]
    resized = frames_THWC if was == tuple(size) else np.stack([_cover(frame, size) for frame in frames_THWC])
    how = '' if was == tuple(size) else f', from {was[0]}x{was[1]} scaled and cropped to {size[0]}x{size[1]}'
    return resized, f'the last {len(resized)} frame(s) of {path}{how}'


def _image(path) -> np.ndarray | None:
    """One frame, or None where the file is no image that stands still."""
    try:
        with Image.open(path) as image:
            still = getattr(image, 'n_frames', 1) == 1
    except UnidentifiedImageError:
        return None
    return np.asarray(read_image(path))[None] if still else None


def _video(path, most: int) -> np.ndarray:
    file = VideoFile.open(path)
    return file.read(range(max(0, len(file) - most), len(file)))


def _cover(frame_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    (tall, wide), (height, width) = frame_HWC.shape[:2], size
    scale = max(height / tall, width / wide)
    # One of the two is the whole side, of which division may make a little more.
    shown_h, shown_w = min(tall, height / scale), min(wide, width / scale)
    top, left = (tall - shown_h) / 2, (wide - shown_w) / 2
    box = (left, top, min(wide, left + shown_w), min(tall, top + shown_h))
    return np.asarray(Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BICUBIC, box=box))
