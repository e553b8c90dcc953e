"""Windows of evenly spaced frames within one part of a video.

A clock gives every frame of a file its time, in steps of the wanted frame rate: seconds times fps, or simply the
frame's number where the file's own rate is kept. A window that starts at frame s takes the frames nearest to

    clock[s],  clock[s] + stride,  ...,  clock[s] + (frames - 1) stride

so one rule serves both, and files of uneven timing too. The last of these times may be up to half a frame after the
part's last frame, for timestamps are rounded (to milliseconds in WebM, hundredths of a second in GIF). Training has the
first part of a file, validation the rest; no window crosses the cut.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """All windows of one part of one file: `len(windows)` of them, `windows[n]` the frames of window n.

    Fields:
        clock: float64 (N,), the time of each frame of the file, in steps of the wanted rate, rising
        first, end: the part's first frame, and the one after its last
        frames: frames in a window
        stride: steps from one frame of a window to the next
    """

    clock: np.ndarray
    first: int
    end: int
    frames: int
    stride: int

    def __len__(self) -> int:
        if self.first >= self.end:
            return 0
        half_a_frame = (self.clock[-1] - self.clock[0]) / max(1, 2 * (len(self.clock) - 1))
        latest = self.clock[self.end - 1] + half_a_frame - self.stride * (self.frames - 1)
        return int(np.searchsorted(self.clock[self.first : self.end], latest, side='right'))

    def __getitem__(self, number: int) -> np.ndarray:
        """Returns the window's frame numbers, int64 (frames,); raises IndexError outside 0 .. len - 1."""
        if not 0 <= number < len(self):
            raise IndexError(f'window {number} of {len(self)}')
        times = self.clock[self.first + number] + self.stride * np.arange(self.frames)
        halfway = (self.clock[1:] + self.clock[:-1]) / 2
        return np.minimum(np.searchsorted(halfway, times), self.end - 1)


def split_windows(
    seconds: np.ndarray, split: str, validation_fraction: float, frames: int, stride: int, fps: float | None
) -> Windows:
    """The windows of a file's 'train' or 'validation' part.

    `seconds`, float64 (N,), says when each frame of the file is shown; `fps` None keeps the file's own frames.
    """
    length = len(seconds)
    clock = np.arange(length, dtype=np.float64) if fps is None else seconds * fps
    cut = round(length * (1 - validation_fraction))
    first, end = (0, cut) if split == 'train' else (cut, length)
    return Windows(clock, first, end, frames, stride)
