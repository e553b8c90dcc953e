"""A folder of video files: random windows of frames, the sub-folder's name for a class (see `class_folders`).

Windows are split by time, not at random: neighbouring frames are nearly the same picture, so a window that shares a
scene with a training window tells nothing. The first part of every file is for training, the last for validation:

    |<----------- train ----------->|<- validation ->|       validation_fraction = 1/3 here
     [window]   [window]                [window]             no window crosses the cut

Whoever has separate folders for the two names the other one in `validation_root`; then nothing is cut.
"""

import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Mapping

import av
import numpy as np

from walt.data.captions import read_captions
from walt.data.class_folders import class_of, find_files, height_width
from walt.data.draws import check_stream, element_draws
from walt.data.video_file import VideoFile
from walt.data.windows import Windows, split_windows

# Animated WebP is missing because FFmpeg does not decode it.
SUFFIXES = ('.avi', '.flv', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.ts', '.webm', '.wmv')


@dataclasses.dataclass(frozen=True)
class VideoFolder:
    """Random windows of real videos: a random-access source; an index gives the same window every time.

    Element `i` comes from file `i` modulo the number of files, and has
        video    uint8 (frames, height, width, 3)
        label    int32 scalar, the file's class
        caption  str, where the folder holds `captions.json` (see `captions`)

    Fields:
        root: the folder, searched to any depth for files with one of SUFFIXES; names with a leading dot are passed over
        split: 'train' (windows and crops at random) or 'validation' (windows at random, crops from the centre)
        frames: frames in a window
        size: (height, width) of a frame in pixels, or one number for both; a frame is scaled until it covers this, and
            what sticks out is cropped
        stride: steps from one frame of a window to the next, in frames of the file or of the rate `fps`
        fps: frame rate to which files are resampled, by taking the frame nearest in time; None keeps each file's own
        flip: whether half of the training windows are mirrored; their captions stay as they are, 'left' and 'right' too
        validation_fraction: part of every file, at its end, that is for validation; 0 with a `validation_root`
        validation_root: the folder of validation's own files, all of them; '' where they are the ends of root's
        clips_per_file: windows drawn from each file; the data set has this many times the number of readable files
        seed: another seed draws other windows

    After construction:
        files: the readable files, as VideoFile, in order of path
        windows: the windows of each that belong to the split
        labels: the class of each; classes are those of both folders
        captions: the caption of each, or None where there are none
        unreadable: why each of the others was left out, by path; each is logged as a warning

    Raises FileNotFoundError where `root` is no folder, ValueError where it holds no file that can be used (with all
    the reasons), where some files have captions and others none, or where a field is out of its range.
    """

    root: str | os.PathLike
    split: str
    frames: int = 17
    size: int | tuple[int, int] = 64
    stride: int = 1
    fps: float | None = None
    flip: bool = False
    validation_fraction: float = 0.2
    validation_root: str | os.PathLike = ''
    clips_per_file: int = 100
    seed: int = 0

    class_names: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    files: tuple[VideoFile, ...] = dataclasses.field(init=False, repr=False, compare=False)
    windows: tuple[Windows, ...] = dataclasses.field(init=False, repr=False, compare=False)
    labels: tuple[int, ...] = dataclasses.field(init=False, repr=False, compare=False)
    captions: tuple[str, ...] | None = dataclasses.field(init=False, repr=False, compare=False)
    unreadable: Mapping[str, str] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        check_stream(self.seed, self.split)
        for field in ('frames', 'stride', 'clips_per_file'):
            if getattr(self, field) < 1:
                raise ValueError(f'{field} must be 1 or more, got {getattr(self, field)}')
        height_width(self.size)
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f'fps must be positive or None, got {self.fps}')
        if not 0 <= self.validation_fraction <= 1:
            raise ValueError(f'validation_fraction must be between 0 and 1, got {self.validation_fraction}')
        if self.validation_root and self.validation_fraction:
            raise ValueError(
                f'with a validation_root, {self.validation_root}, validation_fraction must be 0, '
                f'got {self.validation_fraction}'
            )
        folders = {self.root, self.validation_root or self.root}
        found = {folder: find_files(folder, SUFFIXES, 'videos') for folder in folders}
        root = self.validation_root if self._apart else self.root
        paths = {os.path.join(root, path): path for path in found[root]}
        classes = {path: class_of(inside) for path, inside in paths.items()}
        # Classes come from the names seen, readable or not: a damaged file must not renumber the others.
        class_names = tuple(sorted({class_of(inside) for folder in found.values() for inside in folder}))
        captions = read_captions(root, found[root])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            opened = dict(zip(classes, pool.map(self._open, classes)))
        unreadable = {path: reason for path, reason in opened.items() if isinstance(reason, str)}
        usable = [path for path in classes if path not in unreadable]
        for path, reason in unreadable.items():
            logging.warning('%s is left out: %s', path, reason)
        summary = f'{root}: {len(usable)} of {len(classes)} video files can be used'
        if not usable:
            reasons = [f'{path}: {reason}' for path, reason in unreadable.items()]
            raise ValueError('\n  '.join([summary, *reasons]))
        logging.log(logging.WARNING if unreadable else logging.INFO, summary)
        object.__setattr__(self, 'class_names', class_names)
        object.__setattr__(self, 'files', tuple(opened[path][0] for path in usable))
        object.__setattr__(self, 'windows', tuple(opened[path][1] for path in usable))
        object.__setattr__(self, 'labels', tuple(class_names.index(classes[path]) for path in usable))
        object.__setattr__(self, 'unreadable', unreadable)
        captions = None if captions is None else tuple(captions[paths[path]] for path in usable)
        object.__setattr__(self, 'captions', captions)

    @property
    def _apart(self) -> bool:
        """Whether the split has files of its own."""
        return bool(self.validation_root) and self.split == 'validation'

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.clips_per_file * len(self.files)

    def __getitem__(self, index: int) -> dict:
        """Returns element `index` (see the class); raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} clips')
        number = index % len(self.files)
        file, windows = self.files[number], self.windows[number]
        draw = element_draws(self.seed, self.split, index)
        indices = windows[draw(len(windows))]

        height, width = height_width(self.size)
        scale = max(height / file.height, width / file.width)
        tall, wide = max(height, round(file.height * scale)), max(width, round(file.width * scale))
        video_THWC = file.read(indices, (tall, wide))
        if self.split == 'train':
            top, left = draw(tall - height + 1), draw(wide - width + 1)
        else:
            top, left = (tall - height) // 2, (wide - width) // 2
        video_THWC = video_THWC[:, top : top + height, left : left + width]
        if self.flip and self.split == 'train' and draw(2):
            video_THWC = video_THWC[:, :, ::-1]
        element = {'video': np.ascontiguousarray(video_THWC), 'label': np.int32(self.labels[number])}
        return element if self.captions is None else element | {'caption': self.captions[number]}

    def _open(self, path: str) -> tuple[VideoFile, Windows] | str:
        """The file and its windows, or the reason why it cannot be used."""
        try:
            file = VideoFile.open(path)
        except (av.FFmpegError, ValueError) as error:
            return str(error)
        held_out = 1.0 if self._apart else self.validation_fraction
        windows = split_windows(file.seconds, self.split, held_out, self.frames, self.stride, self.fps)
        if not len(windows):
            rate = 'its own rate' if self.fps is None else f'{self.fps} frames a second'
            return (
                f'too short: the {self.split} part has {windows.end - windows.first} of {len(file)} frames, '
                f'a window needs {self.frames} at stride {self.stride} and {rate}'
            )
        return file, windows
