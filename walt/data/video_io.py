"""Clips to and from files: MP4 for players, GIF for pages, PNG for pictures.

Arrays are uint8 (T, H, W, 3), RGB. The same array gives the same bytes: nothing writes the time of day, and x264 runs
in one thread, since it cuts the work, and with it the bits, by their number, and without its macroblock tree, with
which the bits change from run to run.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from walt.data.video_file import VideoFile

_SAME_BYTES = {'threads': '1', 'x264-params': 'mbtree=0'}

# Of libx264, for videos that programs read, at any frame: a key frame at every twelfth.
CLOSE_TO_LOSSLESS = {'crf': '4', 'preset': 'medium', 'g': '12'} | _SAME_BYTES


def read_video(path: str | os.PathLike) -> tuple[np.ndarray, float]:
    """Returns the whole video, uint8 (T, H, W, 3), and its mean frame rate. Raises as VideoFile.open and read do."""
    file = VideoFile.open(path)
    return file.read(range(len(file))), file.fps


def read_frames(path: str | os.PathLike, indices: Sequence[int]) -> np.ndarray:
    """Returns the frames `indices` of a video, uint8 (len(indices), H, W, 3). Raises as VideoFile.open and read do."""
    return VideoFile.open(path).read(indices)


def write_mp4(
    path: str | os.PathLike, video_THWC: np.ndarray | Iterable[np.ndarray], fps: float = 8, scale: int = 1
) -> None:
    """Writes H.264 at close to no visible loss, in the one form (yuv420p) that every browser plays.

    Args:
        path: the file to write
        video_THWC: uint8 (T, H, W, 3), whole or in pieces of any numbers of frames, which are written as they come
        fps: frames a second
        scale: whole number by which pixels are repeated; players show 32 pixels as a stamp

    Raises ValueError where the height or width is odd after scaling: yuv420p keeps colour for 2x2 pixels at a time. An
    even scale always does.
    """
    pieces = iter([video_THWC] if isinstance(video_THWC, np.ndarray) else video_THWC)
    first = _enlarged(next(pieces), fps, scale)
    _, height, width, _ = first.shape
    if height % 2 or width % 2:
        raise ValueError(
            f'MP4 needs an even height and width, got {height}x{width} at scale {scale}; an even scale does'
        )
    pieces = itertools.chain([first], (_enlarged(piece, fps, scale) for piece in pieces))
    frames = (av.VideoFrame.from_ndarray(frame, 'rgb24') for piece in pieces for frame in np.ascontiguousarray(piece))
    options = {'crf': '12', 'preset': 'slow'} | _SAME_BYTES
    _encode(path, frames, 'mp4', 'libx264', 'yuv420p', (height, width), fps, options)


def write_mp4_for_training(path: str | os.PathLike, video_THWC: np.ndarray, fps: float = 8) -> None:
    """Writes H.264 close to lossless, with colour at every pixel, which many players refuse.

    Arguments as `write_mp4`; any height and width.
    """
    video_THWC = _enlarged(video_THWC, fps, scale=1)
    frames = (av.VideoFrame.from_ndarray(frame, 'rgb24') for frame in np.ascontiguousarray(video_THWC))
    _encode(path, frames, 'mp4', 'libx264', 'yuv444p', video_THWC.shape[1:3], fps, CLOSE_TO_LOSSLESS)


def write_gif(path: str | os.PathLike, video_THWC: np.ndarray, fps: float = 8, scale: int = 1) -> None:
    """Writes a GIF that loops for ever.

    One palette serves the whole clip, so that what stands still does not flicker; up to 256 colours are kept as they
    are. Arguments as `write_mp4`; any height and width. A GIF counts hundredths of
    a second: other frame rates are right on average.
    """
    video_THWC = _enlarged(video_THWC, fps, scale)
    frames, height, width, _ = video_THWC.shape
    film = Image.fromarray(video_THWC.reshape(frames * height, width, 3))
    film = film.quantize(256, dither=Image.Dither.NONE)
    colours = np.array(film.getpalette(), np.uint8).reshape(-1, 3)
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    palette[: len(colours), 1:] = colours
    pictures = (
        av.VideoFrame.from_ndarray((picture, palette), 'pal8')
        for picture in np.array(film).reshape(frames, height, width)
    )
    _encode(path, pictures, 'gif', 'gif', 'pal8', (height, width), fps, {})


def write_png(path: str | os.PathLike, image_HWC: np.ndarray) -> None:
    """Writes one picture, uint8 (H, W, 3)."""
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[-1] != 3:
        raise ValueError(f'a picture is uint8 (H, W, 3), got {image_HWC.dtype} {image_HWC.shape}')
    Image.fromarray(image_HWC).save(path, format='png')


def _enlarged(video_THWC: np.ndarray, fps: float, scale: int) -> np.ndarray:
    """The clip, checked, each pixel repeated `scale` times along height and width."""
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or not video_THWC.size:
        raise ValueError(f'a clip is uint8 (T, H, W, 3), not empty, got {video_THWC.dtype} {video_THWC.shape}')
    if fps <= 0 or scale < 1:
        raise ValueError(f'fps must be positive and scale 1 or more, got fps {fps} and scale {scale}')
    return video_THWC.repeat(scale, axis=1).repeat(scale, axis=2)


def _encode(
    path: str | os.PathLike,
    frames: Iterable[av.VideoFrame],
    container_format: str,
    codec: str,
    pixel_format: str,
    size: tuple[int, int],
    fps: float,
    options: dict[str, str],
) -> None:
    """Writes a file with one video stream."""
    with av.open(os.fspath(path), 'w', format=container_format) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
