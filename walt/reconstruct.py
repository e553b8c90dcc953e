"""Passes a video of any length through a trained tokenizer: pixels -> latents -> pixels, in constant memory.

python -m walt.reconstruct --workdir=runs/tokenizer --video=VIDEO.mp4 --out=OUT.mp4

Encodes and decodes chunk by chunk (`tokenizer/streaming.py`), with the values of the whole clip. The original is on the
left of what is written; prints the PSNR. What the strides do not divide is cropped, at the right, below and at the end,
and said.
"""

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
from absl import app, flags, logging

from walt import restore
from walt.data.video_file import VideoFile
from walt.data.video_io import write_mp4
from walt.evaluation.quality import psnr
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer
from walt.tokenizer.pixels import from_uint8, to_uint8
from walt.tokenizer.streaming import decode_stream, encode_stream

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a tokenizer run.', required=True)
VIDEO = flags.DEFINE_string('video', None, 'The video to reconstruct.', required=True)
OUT = flags.DEFINE_string('out', None, 'The mp4 to write.', required=True)
SHORT_SIDE = flags.DEFINE_integer('short_side', None, 'Scales the video first; by default it keeps its size.', 1)
CHUNK = flags.DEFINE_integer('chunk', 4, 'Latent frames at a time.', lower_bound=1)


def reconstruct(
    frozen: FrozenTokenizer, file: VideoFile, size: tuple[int, int], frames: int, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of uint8 pieces (T, H, W, 3), original and reconstruction, of the first `frames` frames.

    Args:
        size: height and width that the video is scaled to before its borders are cropped.
        chunk: latent frames at a time.
    """
    stride = math.prod(frozen.module.spatial_strides)
    height, width = (side // stride * stride for side in size)

    def read(first: int, count: int) -> np.ndarray:
        return file.read(range(first, min(first + count, frames)), size)[:, :height, :width]

    count = chunk * math.prod(frozen.module.temporal_strides)
    clip = (np.asarray(from_uint8(read(first, count)))[None] for first in range(0, frames, count))
    z = encode_stream(frozen.module, frozen.params, clip, chunk)
    first = 0
    for fake_BTHWC in decode_stream(frozen.module, frozen.params, z, chunk):
        fake_THWC = np.asarray(to_uint8(fake_BTHWC[0]))
        yield read(first, len(fake_THWC)), fake_THWC
        first += len(fake_THWC)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    frozen, _, _ = restore.tokenizer(WORKDIR.value, make_mesh())
    file = VideoFile.open(VIDEO.value)
    scale = 1 if SHORT_SIDE.value is None else SHORT_SIDE.value / min(file.height, file.width)
    size = round(file.height * scale), round(file.width * scale)
    stride_t = math.prod(frozen.module.temporal_strides)
    frames = 1 + (len(file) - 1) // stride_t * stride_t
    errors = []

    def side_by_side():
        for real, fake in reconstruct(frozen, file, size, frames, CHUNK.value):
            errors.extend(psnr(fake[:, None], real[:, None]))
            yield np.concatenate([real, fake], axis=2)

    start = time.perf_counter()
    pieces = side_by_side()
    first = next(pieces)
    write_mp4(OUT.value, itertools.chain([first], pieces), file.fps)
    shape = f'{frames} frames of {first.shape[1]}x{first.shape[2] // 2}'
    print(f'{OUT.value}: {shape} (the video has {len(file)} of {size[0]}x{size[1]}), {np.mean(errors):.2f} dB PSNR')
    print(f'{time.perf_counter() - start:.1f} s, with compilation')


if __name__ == '__main__':
    app.run(main)
