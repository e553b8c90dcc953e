"""What clips are asked for, in the words of a user: labels, prompts, first frames."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Request:
    """One element for every clip in each field that is not None; `request[a:b]` is the request of some clips.

    Attributes:
        labels: classes, by number; -1 is none in particular.
        prompts: texts; '' is none in particular.
        frames_NTHWC: uint8, the frames to go on from.
        pictures: stacks of independent pictures are asked for in place of clips, all with the clip's label or prompt.

    Raises:
        ValueError: if fields differ in length, or there is none; if pictures are to go on from frames.
    """

    labels: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    frames_NTHWC: np.ndarray | None = None
    pictures: bool = False

    def __post_init__(self):
        lengths = {name: len(value) for name, value in self._lists().items()}
        if len(set(lengths.values())) != 1 or not len(self):
            raise ValueError(f'a request has one element for every clip in each of its fields, not {lengths}')
        if self.pictures and self.frames_NTHWC is not None:
            raise ValueError(f'pictures go on from nothing, and {self.frames_NTHWC.shape[1]} frames are given')

    def _lists(self):
        fields = {'labels': self.labels, 'prompts': self.prompts, 'frames': self.frames_NTHWC}
        return {name: value for name, value in fields.items() if value is not None}

    def __len__(self) -> int:
        return min((len(value) for value in self._lists().values()), default=0)

    def __getitem__(self, some: slice) -> 'Request':
        labels, prompts, frames = (
            None if value is None else value[some] for value in (self.labels, self.prompts, self.frames_NTHWC)
        )
        return Request(labels, prompts, frames, self.pictures)

    def filled(self, count: int) -> 'Request':
        """The request repeated and cut to `count` clips."""
        chosen = np.resize(np.arange(len(self)), count)

        def take(value):
            return None if value is None else [value[i] for i in chosen]

        frames = None if self.frames_NTHWC is None else self.frames_NTHWC[chosen]
        return Request(take(self.labels), take(self.prompts), frames, self.pictures)
