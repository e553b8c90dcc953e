"""One video file as a sequence of frames, any of which can be read exactly.

Containers know frames by timestamp, not by number, and many say nothing true about how many there are (GIF, WebM).
Opening a file therefore walks through its packets, which is fast since nothing is decoded, and lists the timestamp of
every frame. To read frame n, the reader seeks to the key frame before timestamp n and decodes forward until that
timestamp comes by.

Timestamps are trusted only where they agree with those of the first frames as decoded (in AVI they are often those of
the decoding order) and the container has an index to seek by, and a seek only where every wanted frame comes by after
it. Otherwise frames are counted from the beginning of the file: slower, never wrong.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np

# Frames decoded when a file is opened: enough to see a group of pictures out of order.
_HEAD = 8

# Program and transport streams: after a seek into these FFmpeg may give a packet the timestamp of its neighbour.
_UNINDEXED = ('mpeg', 'mpegts')


@dataclasses.dataclass(frozen=True, eq=False)
class VideoFile:
    """The index of one video file. `VideoFile.open(path)` makes it; `len(file)` is the number of frames.

    Fields:
        path: the file
        height, width: size of a frame as shown, in pixels (a phone held upright records a picture that lies down)
        fps: mean frame rate, in frames a second
        seconds: float64 (frames,), when each frame is shown, from the first one on
        timestamps: int64 (frames,) in the file's own unit, or None where they do not identify the frames
    """

    path: str
    height: int
    width: int
    fps: float
    seconds: np.ndarray
    timestamps: np.ndarray | None

    @classmethod
    def open(cls, path: str | os.PathLike) -> 'VideoFile':
        """Reads the index of a file.

        Raises FileNotFoundError; ValueError or av.FFmpegError, with the reason, where this is no readable video.
        """
        path = os.fspath(path)
        with av.open(path) as container:
            stream = _video_stream(container)
            rate, unit = float(stream.average_rate or 0), float(stream.time_base)
            head = list(itertools.islice(container.decode(stream), _HEAD))
            if not head:
                raise ValueError('no frame decodes')
            height, width = _rgb(head[0]).shape[:2]
        with av.open(path) as container:
            # Without size: the end of the stream. Discarded: cut away by the file's edit list, so never shown.
            packets = [p for p in container.demux(_video_stream(container)) if p.size and not p.is_discard]
            indexed = container.format.name not in _UNINDEXED
        timestamps = _trusted([p.pts for p in packets], [frame.pts for frame in head]) if indexed else None
        if timestamps is not None and len(timestamps) > 1:
            seconds = (timestamps - timestamps[0]) * unit
            rate = (len(seconds) - 1) / seconds[-1]
        elif rate:
            seconds = np.arange(len(packets)) / rate
        else:
            raise ValueError('neither timestamps nor a frame rate')
        return cls(path, height, width, rate, seconds, timestamps)

    def __len__(self) -> int:
        return len(self.seconds)

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        """Returns the frames `indices`, in that order, as uint8 (len(indices), height, width, 3).

        `size` is the (height, width) to which frames are scaled, both axes on their own; None keeps the file's.
        Raises IndexError where the file has no such frame, ValueError where one does not decode.
        """
        wanted = {int(index) for index in indices}
        if not wanted or min(wanted) < 0 or max(wanted) >= len(self):
            raise IndexError(f'frames {sorted(wanted)} of {self.path}, which has {len(self)}')
        pictures = {} if self.timestamps is None else self._decode(wanted, size, seek=True)
        if len(pictures) < len(wanted):
            pictures = self._decode(wanted, size, seek=False)
        if len(pictures) < len(wanted):
            raise ValueError(f'{self.path}: frames {sorted(wanted - pictures.keys())} of {len(self)} do not decode')
        return np.stack([pictures[int(index)] for index in indices])

    def frames(self, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
        """All frames that decode, one at a time, uint8 (height, width, 3); `size` as in `read`.

        Of a damaged file they may be fewer or more than its length says.
        """
        with av.open(self.path) as container:
            for frame in container.decode(_video_stream(container)):
                yield _rgb(frame, size)

    def _decode(self, wanted: set[int], size: tuple[int, int] | None, seek: bool) -> dict[int, np.ndarray]:
        """The wanted frames that come by, up to the last one, after a seek to the first or from the beginning."""
        first, last = min(wanted), max(wanted)
        pictures = {}
        with av.open(self.path) as container:
            stream = _video_stream(container)
            try:
                if seek:
                    container.seek(int(self.timestamps[first]), stream=stream, backward=True)
                for count, frame in enumerate(container.decode(stream)):
                    index = self._index(frame.pts) if seek else count
                    if index in wanted:
                        pictures[index] = _rgb(frame, size)
                    if index is not None and index >= last:
                        break
            except av.FFmpegError as error:
                if not seek:
                    raise ValueError(f'{self.path}: damaged before frame {last} of {len(self)}: {error}') from error
        return pictures

    def _index(self, timestamp: int | None) -> int | None:
        """The number of the frame that is shown at `timestamp`, None where no frame is."""
        if timestamp is None:
            return None
        index = int(np.searchsorted(self.timestamps, timestamp))
        return index if index < len(self) and self.timestamps[index] == timestamp else None


def _video_stream(container: av.container.InputContainer):
    """The main video stream, and not, for instance, the cover picture of a film."""
    stream = container.streams.best('video')
    if stream is None:
        raise ValueError('no video stream')
    return stream


def _trusted(timestamps: list[int | None], head: list[int | None]) -> np.ndarray | None:
    """The packets' timestamps in order of display, or None where they are not those of the decoded frames."""
    if None in timestamps or None in head:
        return None
    distinct = np.unique(np.array(timestamps, np.int64))
    return distinct if len(distinct) == len(timestamps) and distinct[: len(head)].tolist() == head else None


def _rgb(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """The frame upright, uint8 (height, width, 3); averaged over areas where it shrinks, cubic where it grows."""
    turns = frame.rotation // 90 % 4  # quarter turns counter-clockwise
    if size is not None:
        height, width = size if turns % 2 == 0 else size[::-1]
        shrinks = height * width < frame.height * frame.width
        frame = frame.reformat(width, height, 'rgb24', interpolation='AREA' if shrinks else 'BICUBIC')
    return np.rot90(frame.to_ndarray(format='rgb24'), turns)
