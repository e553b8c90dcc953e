"""Makes the videos of a folder small, once, so that training does not decode large frames for small windows.

python -m walt.shrink --source=VIDEOS --target=SMALL --short_side=80

Every video below `--source` becomes one below `--target`, at the same place: scaled until its shorter side has
`--short_side` pixels (smaller ones keep their size), with the same frames at the same times, as H.264 close to lossless
(4:4:4, a key frame at every twelfth). NAME.mp4 keeps its name, NAME.avi becomes NAME.avi.mp4. One frame is in memory at
a time. Files that were made before are left as they are; files that cannot be read are named with the reason, and the
exit status is then 1. The source `video_folder` takes the result in place of the original.
"""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from absl import app, flags
from tqdm import tqdm

from walt.data.class_folders import find_files
from walt.data.video_file import VideoFile
from walt.data.video_folder import SUFFIXES
from walt.data.video_io import CLOSE_TO_LOSSLESS

SOURCE = flags.DEFINE_string('source', None, 'Folder of videos, searched to any depth.', required=True)
TARGET = flags.DEFINE_string('target', None, 'Folder to write to, outside of the source.', required=True)
SHORT_SIDE = flags.DEFINE_integer('short_side', 80, 'Pixels of the shorter side.', lower_bound=2)

# Ticks a second of the files written: a multiple of the usual frame rates, and fine enough for all others.
_CLOCK = 90_000


def main(_) -> int:
    source, target = Path(SOURCE.value).resolve(), Path(TARGET.value).resolve()
    if target.is_relative_to(source):
        raise app.UsageError(f'--target {target} is inside of --source {source}, and would be found there next time')
    paths = find_files(source, SUFFIXES, 'videos')
    if not paths:
        raise app.UsageError(f'no video in --source {source}')
    written, before, skipped = 0, 0, {}
    for path in tqdm(paths, 'shrink', unit='file'):
        small = target / path if path.lower().endswith('.mp4') else target / f'{path}.mp4'
        try:
            if shrink(source / path, small, SHORT_SIDE.value):
                written += 1
            else:
                before += 1
        except (av.FFmpegError, ValueError) as error:
            skipped[path] = str(error)
    print(f'{len(paths)} videos: {written} written, {before} there already, {len(skipped)} skipped; {target}')
    for path, reason in skipped.items():
        print(f'skipped {path}: {reason}')
    return 1 if skipped else 0


def shrink(path: Path, small: Path, short_side: int) -> bool:
    """Writes the video `path` to `small`, scaled; returns whether it had to: not where such a file is there.

    The file appears under its name when it is complete. Raises ValueError or av.FFmpegError, with the reason, where
    `path` is no video that can be read to its end.
    """
    file = VideoFile.open(path)
    scale = min(1, short_side / min(file.height, file.width))
    height, width = round(file.height * scale), round(file.width * scale)
    if _shape(small) == (len(file), height, width):
        return False
    small.parent.mkdir(parents=True, exist_ok=True)
    unfinished = small.with_name(f'.{small.name}.{os.getpid()}')
    try:
        with av.open(str(unfinished), 'w', format='mp4') as container:
            stream = container.add_stream(
                'libx264', rate=Fraction(file.fps).limit_denominator(1001), options=CLOSE_TO_LOSSLESS
            )
            stream.height, stream.width, stream.pix_fmt = height, width, 'yuv444p'
            stream.codec_context.time_base = Fraction(1, _CLOCK)
            count = 0
            for count, frame_HWC in enumerate(file.frames((height, width)), start=1):
                if count > len(file):
                    raise ValueError(f'more frames decode than the {len(file)} that the file lists')
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), 'rgb24')
                frame.pts, frame.time_base = round(file.seconds[count - 1] * _CLOCK), Fraction(1, _CLOCK)
                container.mux(stream.encode(frame))
            if count < len(file):
                raise ValueError(f'damaged: {count} of {len(file)} frames decode')
            container.mux(stream.encode())
        unfinished.replace(small)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _shape(path: Path) -> tuple[int, int, int] | None:
    """Frames, height and width of a video, or None where there is none that can be opened."""
    try:
        file = VideoFile.open(path)
    except (av.FFmpegError, ValueError):
        return None
    return len(file), file.height, file.width


if __name__ == '__main__':
    app.run(main)
