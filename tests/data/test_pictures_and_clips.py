"""Two sources, one behind the other."""

import numpy as np
import pytest

from walt.data.mixed_digits import MixedDigits
from walt.data.moving_digits import MovingDigits
from walt.data.pictures_and_clips import PicturesAndClips

CLIPS = MovingDigits('train', frames=3, size=16, digit_size=10, clips=4)


def test_elements_and_sizes_are_those_of_one_source_and_then_of_the_other():
    pictures = MixedDigits('train', pictures=5)
    both = PicturesAndClips(pictures, CLIPS)
    assert len(both) == 9 and both.sizes_N3.tolist() == [list(both[index]['video'].shape[:3]) for index in range(9)]
    np.testing.assert_array_equal(both[4]['video'], pictures[4]['video'])
    np.testing.assert_array_equal(both[5]['video'], CLIPS[0]['video'])
    assert set(both[0]) == set(both[8]) == {'video', 'label'}
    with pytest.raises(IndexError):
        both[9]


def test_sources_without_sizes_or_of_other_classes_are_refused():
    with pytest.raises(ValueError, match='list does not say its sizes_N3'):
        PicturesAndClips([], CLIPS)

    class Two(MovingDigits):
        num_classes = 2

    with pytest.raises(ValueError, match='pictures have 2 classes, clips 10'):
        PicturesAndClips(Two('train', clips=4), CLIPS)
