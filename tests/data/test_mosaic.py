"""Clips whole and in fours."""

import numpy as np
import pytest

from walt.data.mosaic import Mosaic
from walt.data.moving_digits import MovingDigits
from walt.tokenizer.pixels import shrink


@pytest.fixture(scope='module')
def clips():
    return MovingDigits('train', frames=3, size=16, digit_size=10, clips=7)


def test_every_other_element_is_a_clip_as_it_is(clips):
    mosaic = Mosaic(clips)
    assert len(mosaic) == 7
    for index in (0, 2, 6):
        assert set(mosaic[index]) == {'video'}
        np.testing.assert_array_equal(mosaic[index]['video'], clips[index]['video'])


@pytest.mark.parametrize(('index', 'inside'), [(1, (1, 2, 3, 4)), (5, (5, 6, 0, 1))])
def test_the_others_are_four_clips_shrunk_as_super_resolution_shrinks_them(clips, index, inside):
    video = Mosaic(clips)[index]['video']
    assert video.shape == (3, 16, 16, 3) and video.dtype == np.uint8
    quarters = [video[:, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    for quarter, number in zip(quarters, inside):
        small = np.asarray(shrink(clips[number]['video'], 2), np.int16)
        assert np.abs(quarter - small).max() <= 1  # halves are rounded either way


def test_what_cannot_be_is_refused(clips):
    with pytest.raises(ValueError, match=r'\(3, 15, 15, 3\) cannot be halved'):
        Mosaic(MovingDigits('train', frames=3, size=15, digit_size=10, clips=4))
    for index in (7, 8, -1):
        with pytest.raises(IndexError, match=f'index {index} of 7'):
            Mosaic(clips)[index]
