"""What is read in samples of many sizes, with a judge of which the answer is known."""

from types import SimpleNamespace

import numpy as np

from walt.evaluation.packed import measure_packed_samples


def test_packed_samples_are_counted_by_shape_and_class():
    """Of two classes, the judge sees the first in all pictures that are wide."""
    asked = []

    def clips(shapes, labels, seed, rows):
        asked.extend(zip(shapes, labels))
        return [np.zeros((*shape, 3), np.uint8) for shape in shapes]

    stage = SimpleNamespace(denoiser=SimpleNamespace(classes=2), clips=clips)
    judge = SimpleNamespace(read_clips=lambda clips: np.array([int(c.shape[1] >= c.shape[2]) for c in clips]))
    found = measure_packed_samples(stage, judge, ['1x8x16', '1x16x8'], samples=3, seed=0, rows=1)
    assert found == {
        '1x8x16': {'clips': 0.5, 'clips_by_class': [1, 0]},
        '1x16x8': {'clips': 0.5, 'clips_by_class': [0, 1]},
    }
    assert asked[:6] == [((1, 8, 16), 0)] * 3 + [((1, 8, 16), 1)] * 3
