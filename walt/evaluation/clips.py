"""The real clips that a run is measured on."""

from typing import NamedTuple

import numpy as np


class Clips(NamedTuple):
    """Clips uint8 (N, T, H, W, 3), their labels int (N,), and captions, '' where there are none."""

    videos: np.ndarray
    labels: np.ndarray
    captions: list[str]


def read_clips(source, count: int) -> Clips:
    """The first `count` clips of a source; of a folder with more files than that, one of every so many files."""
    every = max(1, len(getattr(source, 'files', ())) // count)
    elements = [source[index] for index in range(0, len(source), every)[:count]]
    videos, labels = (np.stack([element[name] for element in elements]) for name in ('video', 'label'))
    return Clips(videos, labels, [element.get('caption', '') for element in elements])
